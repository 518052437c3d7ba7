// A process that forgets to release: it must end by itself.
import { Locker } from '../dist/index.mjs'
import { close, kinds } from './support.mjs'

const [, , kind, url] = process.argv
const client = await kinds[kind](url)
const locker = new Locker(client)
await locker.withLock('forgotten', async () => {
  await locker.acquire('forgotten', { wait: 200 }).catch(() => {}) // it makes a connection that blocks
})
await locker.acquire('forgotten', { lease: 60_000 })
close(client)
