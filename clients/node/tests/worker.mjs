// One process of processes.test.mjs: 25 promises take one lock in turn, until the log is long enough. Some waits are
// aborted. Who finds somebody else inside, or is not alone until the end, writes it down.
import { Locker } from '../dist/index.mjs'
import { close, kinds, pause } from './support.mjs'

const [, , kind, url, cycles] = process.argv
const client = await kinds[kind](url)
const run = (...args) => (client.call ? client.call(...args) : client.sendCommand(args))
const locker = new Locker(client, { lease: 3000 })

// In one step each, so that most of the time goes into the lock.
const ENTER = `
local inside = redis.call('GET', 'inside')
if inside and redis.call('SISMEMBER', 'killed', inside:match('^%d+')) == 1 then inside = false end
redis.call('SET', 'inside', ARGV[1])
return { redis.call('RPUSH', 'log', ARGV[2]), inside or '' }`
const LEAVE = `
local inside = redis.call('GET', 'inside')
if inside == ARGV[1] then redis.call('DEL', 'inside') end
return inside or ''`

let done = 0
async function work(lock) {
  const me = `${process.pid} ${lock.token}`
  const [count, inside] = await run('EVAL', ENTER, '0', me, String(lock.fence))
  done = count
  if (inside && !lock.signal.aborted) await run('RPUSH', 'violations', `${me}: ${inside}`)
  if (Math.random() < 0.1) await pause(1)
  const still = await run('EVAL', LEAVE, '0', me)
  if (still !== me && !lock.signal.aborted)
    await run('RPUSH', 'violations', `${me}, and then ${still}`)
}

async function loop() {
  while (done < Number(cycles)) {
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
