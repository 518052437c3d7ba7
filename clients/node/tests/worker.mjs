// One process of processes.test.mjs: 25 promises take one lock in turn, until the log is long enough. Some waits are
// aborted. Who finds somebody else inside, or is not alone until the end, writes it down.
import { Locker } from '../dist/index.mjs'
import { close, kinds, pause } from './support.mjs'

const [, , kind, url, cycles] = process.argv
const client = await kinds[kind](url)
const run = (...args) => (client.call ? client.call(...args) : client.sendCommand(args))
const locker = new Locker(client, { lease: 3000 })

async function work(lock) {
  const me = `${process.pid} ${lock.token}`
  const inside = await run('GET', 'inside')
  const isDead = inside && Number(await run('SISMEMBER', 'killed', inside.split(' ')[0])) === 1
  if (inside && !isDead && !lock.signal.aborted)
    await run('RPUSH', 'violations', `${me}: ${inside}`)
  await run('SET', 'inside', me)
  await pause(Math.random() * 2)
  await run('RPUSH', 'log', String(lock.fence))
  const still = await run('GET', 'inside')
  if (lock.signal.aborted) return
  if (still !== me) await run('RPUSH', 'violations', `${me}, and then ${still}`)
  await run('DEL', 'inside')
}

async function loop() {
  while (Number(await run('LLEN', 'log')) < Number(cycles)) {
    const signal =
      Math.random() < 0.3 ? AbortSignal.timeout(Math.round(Math.random() * 200)) : undefined
    try {
      await locker.withLock('chaos', { signal }, work)
    } catch (error) {
      if (error.name !== 'TimeoutError' && error.code !== 'LOCK_LOST') throw error
    }
  }
}

await Promise.all(Array.from({ length: 25 }, loop))
await locker.close()
close(client)
