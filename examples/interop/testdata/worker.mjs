// A worker of the mixed fleet, see suite_test.go.
import { createInterface } from 'node:readline'
import { acquire, LostError } from './redislock.mjs'

const { ADDR, NAME, LEASE, REGISTER, WHO, CLIENT, RESP } = process.env
const [host, port] = ADDR.split(':')
let client, run
if (CLIENT === 'redis') {
  const { createClient } = await import('redis')
  client = createClient({ socket: { host, port: Number(port) }, RESP: Number(RESP) })
  await client.on('error', console.error).connect()
  run = (...args) => client.sendCommand(args)
} else {
  const { Redis } = await import('ioredis')
  client = new Redis({ host, port: Number(port), protocol: Number(RESP) })
  client.on('error', console.error)
  run = (...args) => client.call(...args)
}
const lock = await acquire(client, NAME, { leaseMs: LEASE * 1000, timeoutMs: 120_000 })
console.log('held', lock.fence)
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'write') {
    console.log('wrote', await run('FCALL', 'register_write', '1', REGISTER, String(lock.fence), WHO))
  }
}
await lock.release().then(
  () => console.log('released'),
  (error) => {
    if (!(error instanceof LostError)) throw error
    console.log('lost')
  },
)
client.destroy?.() ?? client.disconnect()
