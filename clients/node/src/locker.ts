import { randomBytes } from 'node:crypto'
import { onAbort } from './abort'
import { ArgumentError, BusyError, CallError, ClosedError, LostError, NotHeldError } from './errors'
import { Hold } from './hold'
import { Hub } from './hub'
import { inOrder, type Keys, keysFrom, keysOf } from './keys'
import { type Keeper, Lock, Locks } from './lock'
import {
  type LockEvent,
  type LockerOptions,
  type LockOptions,
  type Request,
  requestOf,
  type Settings,
  settingsOf,
} from './options'
import { driverOf, type RedisClient } from './redis'
import { CALL_MS, Server } from './server'
import { now, pause, within } from './time'
import { backoff } from './wait'
import { parseFields, parseNumber } from './wire'

/** How long to retry a call that needs no lock. */
const ASK_MS = 5000
/** How long close waits at most. */
const CLOSE_MS = 6000

/** The result of inspect. Times are ms. */
export interface LockState {
  readonly name: string
  /** The holder's token, '' if nobody holds the lock. */
  readonly holder: string
  /** The last fencing token given out, 0 if none is known. */
  readonly fence: number
  /** The rest of the lease; Infinity: it never expires; 0: nobody holds the lock. */
  readonly ttl: number
  /** How many hold it, together or alone. */
  readonly held: number
  /** The first 1,000 that hold it together. */
  readonly holders: readonly { readonly token: string; readonly ttl: number }[]
  /** How many wait. */
  readonly waiting: number
  /** The first 1,000 waiters, in order. */
  readonly waiters: readonly LockWaiter[]
}

export interface LockWaiter {
  readonly token: string
  readonly waited: number
  /** It loses its place then, unless it calls before. */
  readonly lapsesIn: number
  /** That it asked for; Infinity: it never expires. */
  readonly lease: number
  /** Its signal list. */
  readonly signal: string
  /** How many may hold the lock, itself included: 1 alone, Infinity any number. */
  readonly holders: number
}

/**
 * Takes locks through one client of `redis` or `ioredis`. One per process is enough.
 *
 * It makes connections of its own, with the client's address, credentials and TLS: one for calls, and one that is
 * blocked while anybody waits. In a cluster: one for calls to each primary, and one for each contended lock.
 */
export class Locker {
  readonly #settings: Settings
  readonly #server: Server
  readonly #hub: Hub
  readonly #keeper: Keeper
  readonly #held = new Map<Lock, { since: number; mayRequeue: boolean; inWork: boolean }>()
  #closing: Promise<void> | undefined

  constructor(client: RedisClient, options: LockerOptions = {}) {
    const settings = settingsOf(options)
    this.#settings = { ...settings, onEvent: settings.onEvent && quiet(settings.onEvent) }
    this.#server = new Server(driverOf(client), settings.library)
    this.#hub = new Hub(this.#server, this.#settings, randomBytes(8).toString('base64url'))
    this.#keeper = { server: this.#server, over: (...args) => this.#over(...args) }
  }

  /**
   * Takes the lock. If it is busy, waits, first come, first served. The wait survives network trouble and failovers. A
   * lock is not reentrant: a holder that acquires it again waits for itself.
   *
   * - BusyError: `wait` is over, and Redis said that the lock is busy.
   * - UnavailableError: `wait` is over, and nobody answered.
   * - The reason of `signal`, when it aborts.
   *
   * After an error the caller does not hold the lock and has no place in the queue.
   */
  async acquire(name: string, options?: LockOptions): Promise<Lock> {
    return this.#obtain('acquire', this.#keys(name), requestOf(this.#settings, options), false)
  }

  /**
   * Takes the lock if it can be had now and nobody waits for it. Otherwise resolves to null. If Redis does not answer
   * within 3 s, it rejects with an UnavailableError.
   */
  async tryAcquire(
    name: string,
    options?: Omit<LockOptions, 'wait' | 'signal'>,
  ): Promise<Lock | null> {
    try {
      const request = requestOf(this.#settings, { ...options, wait: 0 })
      return await this.#obtain('try to acquire', this.#keys(name), request, false)
    } catch (error) {
      if (error instanceof BusyError) return null
      throw error
    }
  }

  /**
   * Takes several locks, one after the other in the order of their keys, so callers never wait in a circle. A name
   * twice, or `x` and `{x}`, counts once. If one fails, or is lost meanwhile, it releases all. `wait` limits the whole.
   */
  async acquireAll(names: Iterable<string>, options?: Omit<LockOptions, 'token'>): Promise<Locks> {
    const all = inOrder([...names].map((name) => this.#keys(name)))
    if (all.length === 0) throw new ArgumentError('redislock: acquireAll needs a name')
    return this.#obtainAll(all, options, false)
  }

  /**
   * Takes the lock, or all of several, runs `work` with it, and releases it. Returns what `work` returned.
   *
   * It rejects with the error of `work`. If `work` succeeded, but the lock was lost before: a LostError. If the Locker
   * was closed before: a ClosedError.
   */
  withLock<T>(name: string, work: (lock: Lock) => T | Promise<T>): Promise<T>
  withLock<T>(name: string, options: LockOptions, work: (lock: Lock) => T | Promise<T>): Promise<T>
  async withLock<T>(
    name: string,
    ...args: [(lock: Lock) => T | Promise<T>] | [LockOptions, (lock: Lock) => T | Promise<T>]
  ): Promise<T> {
    const [options, work] = args.length === 1 ? [undefined, args[0]] : args
    checkWork(work)
    const request = requestOf(this.#settings, options)
    const lock = await this.#obtain('with', this.#keys(name), request, true)
    return during(lock, lock.name, work)
  }

  /** Takes several locks, runs `work` with them, and releases them: see acquireAll and withLock. */
  withLocks<T>(names: Iterable<string>, work: (locks: Locks) => T | Promise<T>): Promise<T>
  withLocks<T>(
    names: Iterable<string>,
    options: Omit<LockOptions, 'token'>,
    work: (locks: Locks) => T | Promise<T>,
  ): Promise<T>
  async withLocks<T>(
    names: Iterable<string>,
    ...args:
      | [(locks: Locks) => T | Promise<T>]
      | [Omit<LockOptions, 'token'>, (locks: Locks) => T | Promise<T>]
  ): Promise<T> {
    const [options, work] = args.length === 1 ? [undefined, args[0]] : args
    checkWork(work)
    const all = inOrder([...names].map((name) => this.#keys(name)))
    if (all.length === 0) throw new ArgumentError('redislock: withLocks needs a name')
    const locks = await this.#obtainAll(all, options, true)
    return during(locks, all.map(({ name }) => name).join('", "'), work)
  }

  /** Shows a lock and its queue. It changes nothing. */
  async inspect(name: string): Promise<LockState> {
    return this.#inspect(this.#keys(name))
  }

  /**
   * Takes the lock away from all its holders, and hands it on. Resolves to whether somebody held it. A former holder
   * notices at its next renewal; until then only the fencing token keeps its writes out.
   */
  async reset(name: string): Promise<boolean> {
    return this.#reset(this.#keys(name))
  }

  /**
   * Resets every held lock with this prefix, and resolves to their number. It finds them with SCAN on each primary, and
   * leaves alone a key that the function library did not write.
   */
  async resetAll(): Promise<number> {
    const found = new Set<string>()
    await this.#asking('reset all', '', async () => {
      const pattern = `${this.#settings.prefix.replace(/[*?[\]\\^-]/g, '\\$&')}:*`
      await this.#server.onPrimaries(async (call) => {
        let cursor = '0'
        do {
          const page = (await call(['SCAN', cursor, 'MATCH', pattern, 'COUNT', '1000'])) as [
            unknown,
            unknown[],
          ]
          cursor = String(page[0])
          for (const key of page[1]) found.add(String(key))
        } while (cursor !== '0')
      }, PATIENCE)
    })
    let count = 0
    for (const key of found) {
      const keys = keysFrom(this.#settings.prefix, key)
      if (!keys) continue
      const state = await this.#inspect(keys).catch((error) => {
        if (/WRONGTYPE/.test(error.message)) return undefined // not a lock
        throw error
      })
      if (state && state.fence > 0 && (await this.#reset(keys))) count++
    }
    return count
  }

  /** Loads the function library on each primary where it is missing or older. Otherwise the first call does it. */
  async load(): Promise<void> {
    await this.#asking('load', '', () => this.#server.load(PATIENCE))
  }

  /**
   * Ends the Locker. Waiters get a ClosedError. The signal of each held lock aborts with a ClosedError, and its renewal
   * ends. close releases at once the locks that acquire returned. withLock releases its own lock when its work has
   * ended, so nobody else gets that lock under running work. It takes 6 s at most. Your client stays open.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /** How many calls wait for a lock, and on how many blocked connections. */
  get stats(): { readonly waiting: number; readonly blocked: number; readonly held: number } {
    return { waiting: this.#hub.waiting, blocked: this.#hub.popping, held: this.#held.size }
  }

  async #close(): Promise<void> {
    for (const lock of this.#held.keys()) lock.abandon() // all holders know before the first lock is handed on
    this.#hub.close()
    const released = [...this.#held]
      .filter(([, { inWork }]) => !inWork)
      .map(([lock]) => lock.release().catch(() => {}))
    const works = async () => {
      while (this.#held.size > 0) await pause(20, false)
    }
    const all = Promise.all([...released, this.#hub.settled()]).then(works)
    await within(CLOSE_MS, all, true, () => new Error()).catch(() => {})
    // withLock releases its lock when its work has ended.
    works().then(() => this.#server.close())
  }

  #keys(name: string): Keys {
    const keys = keysOf(this.#settings.prefix, name)
    if (this.#closing) throw new ClosedError(`redislock: "${name}": the Locker is closed`)
    return keys
  }

  async #obtain(op: string, keys: Keys, request: Request, inWork: boolean): Promise<Lock> {
    const began = now()
    const { token } = request
    try {
      const grant = await this.#hub.obtain(op, keys, request)
      const hold = new Hold(request, grant, now())
      const lock = new Lock(this.#keeper, keys, token, grant.fence, hold)
      // A failover could put the token into the queue again.
      const mayRequeue = grant.queued && !request.ownToken
      this.#held.set(lock, { since: now(), mayRequeue, inWork })
      if (this.#closing) {
        await lock.giveUp().catch(() => {})
        throw new ClosedError(`redislock: ${op} "${keys.name}": the Locker is closed`)
      }
      this.#tell({
        type: 'acquired',
        name: keys.name,
        token,
        fence: grant.fence,
        waited: now() - began,
        handedOver: grant.queued,
      })
      return lock
    } catch (error) {
      this.#tell({ type: 'notAcquired', name: keys.name, waited: now() - began, error })
      throw error
    }
  }

  async #obtainAll(
    all: Keys[],
    options: Omit<LockOptions, 'token'> | undefined,
    inWork: boolean,
  ): Promise<Locks> {
    if (options && 'token' in options)
      throw new ArgumentError('redislock: several locks need tokens of their own')
    const first = requestOf(this.#settings, options)
    const end = now() + first.wait
    const lost = new AbortController()
    const stop = new AbortController() // the wait
    const { signal } = first
    if (signal?.aborted) throw signal.reason
    const unlisten = signal && onAbort(signal, () => stop.abort(signal.reason))
    const held: Lock[] = []
    try {
      for (const keys of all) {
        const wait = first.wait === 0 ? 0 : Math.max(1, end - now())
        const request = { ...requestOf(this.#settings, options), wait, signal: stop.signal }
        const lock = await this.#obtain('acquire', keys, request, inWork)
        held.push(lock)
        const tell = () => {
          lost.abort(lock.signal.reason)
          if (!(lock.signal.reason instanceof NotHeldError)) stop.abort(lock.signal.reason)
        }
        if (lock.signal.aborted) tell()
        else lock.signal.addEventListener('abort', tell)
        if (stop.signal.aborted) throw stop.signal.reason
      }
      return new Locks(held, lost.signal)
    } catch (error) {
      for (const lock of held.reverse()) await lock.giveUp().catch(() => {})
      throw error
    } finally {
      unlisten?.()
    }
  }

  #over(lock: Lock, type: 'released' | 'lost', ended: number, error: unknown): void {
    const known = this.#held.get(lock)
    if (!known) return
    this.#held.delete(lock)
    const { name, token, fence } = lock
    if (known.mayRequeue) this.#hub.remember(keysOf(this.#settings.prefix, name), token, ended)
    const held = now() - known.since
    this.#tell({ type, name, token, fence, held, ...(error === undefined ? {} : { error }) })
  }

  async #inspect(keys: Keys): Promise<LockState> {
    const reply = await this.#asking('inspect', keys.name, async () => {
      return (await this.#server.fcall('lock_inspect', keys, [], PATIENCE)).value
    })
    const fields = parseFields(reply)
    const list = (name: string) => (fields.get(name) ?? []) as unknown[][]
    const holder = String(fields.get('holder') ?? '')
    const ttl = lasting(Number(fields.get('ttl_ms')))
    return {
      name: keys.name,
      holder,
      fence: Number(fields.get('fence')),
      ttl: holder === '' ? 0 : ttl,
      held: Number(fields.get('held') ?? (holder === '' ? 0 : 1)),
      holders: list('holders').map(([token, ms]) => ({
        token: String(token),
        ttl: lasting(Number(ms)),
      })),
      waiting: Number(fields.get('waiting')),
      waiters: list('waiters').map(([token, waited, lapsesIn, lease, signal, holders]) => ({
        token: String(token),
        waited: Number(waited),
        lapsesIn: Number(lapsesIn),
        lease: Number(lease) || Infinity,
        signal: String(signal),
        holders: holders === undefined ? 1 : Number(holders) || Infinity,
      })),
    }
  }

  async #reset(keys: Keys): Promise<boolean> {
    return this.#asking('reset', keys.name, async () => {
      const { value } = await this.#server.fcall('lock_reset', keys, [], PATIENCE)
      return parseNumber('lock_reset', value) === 1
    })
  }

  /** Makes a call, and repeats it while its error passes. */
  async #asking<T>(op: string, name: string, call: () => Promise<T>): Promise<T> {
    const end = now() + ASK_MS
    for (let failures = 0; ; failures++) {
      try {
        return await within(
          Math.max(1, end - now()),
          call(),
          true,
          () => new CallError('no answer', { passes: true, mayArrive: true }),
        )
      } catch (caught) {
        const error =
          caught instanceof CallError
            ? caught
            : new CallError(caught, { passes: true, mayArrive: true })
        const ms = backoff(failures)
        if (!error.passes || now() + ms >= end) throw error.public(op, name)
        await pause(ms, true)
      }
    }
  }

  #tell(event: LockEvent): void {
    this.#settings.onEvent?.(event)
  }
}

const PATIENCE = { ms: CALL_MS, holds: true }

const lasting = (ms: number) => (ms === -1 ? Infinity : Math.max(0, ms))

function checkWork(work: unknown): void {
  if (typeof work !== 'function')
    throw new ArgumentError('redislock: the last argument must be a function')
}

/** Runs work, releases the lock, and rejects if the lock was lost in between. */
async function during<H extends Lock | Locks, T>(
  held: H,
  name: string,
  work: (held: H) => T | Promise<T>,
): Promise<T> {
  let result: T
  try {
    result = await work(held)
  } catch (error) {
    await held.release().catch(() => {}) // the caller must see the error of work
    throw error
  }
  const before: unknown = held.signal.aborted ? held.signal.reason : undefined
  let failed: unknown
  await held.release().catch((error) => {
    failed = error
  })
  if (before instanceof LostError || before instanceof ClosedError) throw before
  if (failed instanceof NotHeldError) {
    throw new LostError(`redislock: lock "${name}" was lost before the work was through`, failed)
  }
  if (failed) throw failed
  return result
}

/** Calls a user's function, and throws its error outside of the lock's own work. */
function quiet(onEvent: (event: LockEvent) => void): (event: LockEvent) => void {
  return (event) => {
    try {
      onEvent(event)
    } catch (error) {
      process.emitWarning(`redislock: onEvent threw: ${error}`)
    }
  }
}
