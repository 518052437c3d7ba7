// What a user's TypeScript sees: compiled with --strict under node16 and bundler resolution.

import {
  BusyError,
  type Lock,
  LockError,
  type LockErrorCode,
  type LockEvent,
  Locker,
  type LockState,
  type Locks,
  source,
} from '@redislock/client'
import { Cluster, Redis } from 'ioredis'
import { createClient, createCluster } from 'redis'

type Equal<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const is = <T extends true>(_?: T) => {}

const node = createClient()
new Locker(node)
new Locker(createClient({ RESP: 2 }))
new Locker(createCluster({ rootNodes: [] }))
new Locker(new Redis())
new Locker(new Cluster([]))
// @ts-expect-error: it is no client
new Locker({})
// @ts-expect-error: there is no such option
new Locker(node, { leese: 1 })

const locker = new Locker(node, {
  lease: 10_000,
  owner: 'web',
  onEvent(event) {
    is<Equal<typeof event, LockEvent>>()
    if (event.type === 'acquired') is<Equal<typeof event.waited, number>>()
    if (event.type === 'trouble') is<Equal<typeof event.waiting, number>>()
  },
})
const lock = await locker.acquire('a', { wait: 5000, signal: AbortSignal.timeout(1) })
is<Equal<typeof lock, Lock>>()
is<Equal<typeof lock.fence, number>>()
is<Equal<typeof lock.signal, AbortSignal>>()
is<Equal<typeof lock.left, number>>()
const maybe = await locker.tryAcquire('a')
is<Equal<typeof maybe, Lock | null>>()
const seven = await locker.withLock('a', async (held) => held.fence + 7)
is<Equal<typeof seven, number>>()
const text = await locker.withLock('a', { holders: 3 }, () => 'text')
is<Equal<typeof text, string>>()
const locks = await locker.acquireAll(['a', 'b'], { shared: true })
is<Equal<typeof locks, Locks>>()
await locker.withLocks(['a'], (all) => all.signal)
const state = await locker.inspect('a')
is<Equal<typeof state, LockState>>()
is<
  Equal<typeof state.waiters extends readonly (infer W)[] ? W : never, LockState['waiters'][number]>
>()
const was: boolean = await locker.reset('a')
const count: number = await locker.resetAll()
{
  await using held = await locker.acquire('a')
  await held.extend(1000)
}
// @ts-expect-error: there is no such option
await locker.acquire('a', { timeout: 100 })
// @ts-expect-error: a try has no limit
await locker.tryAcquire('a', { wait: 100 })
// @ts-expect-error: times are numbers
await locker.acquire('a', { lease: '5s' })
// @ts-expect-error: several locks need tokens of their own
await locker.acquireAll(['a'], { token: 'mine' })
try {
  await lock.release()
} catch (error) {
  if (error instanceof BusyError) is<Equal<typeof error.code, LockErrorCode>>()
  if (error instanceof LockError && error.code === 'LOCK_LOST') throw error
  // @ts-expect-error: no such code
  if (error instanceof LockError && error.code === 'LOST') throw error
}
export default [was, count, source]
