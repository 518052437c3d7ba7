// A worker of the mixed fleet, see suite_test.go.
import { createInterface } from 'node:readline'
import { BusyError, Locker, NotHeldError } from '@redislock/client'

const { ADDR, NAME, LEASE, MIN_HOLD = 0, WAIT = 120, REGISTER, WHO, CLIENT, RESP, CLUSTER } = process.env
const nodes = (CLUSTER ?? ADDR).split(' ').map((address) => ({ host: address.split(':')[0], port: Number(address.split(':')[1]) }))
const protocol = Number(RESP)
let client, run
if (CLIENT === 'redis') {
  const { createClient, createCluster } = await import('redis')
  client = CLUSTER
    ? createCluster({ rootNodes: nodes.map((socket) => ({ socket })), RESP: protocol })
    : createClient({ socket: nodes[0], RESP: protocol })
  await client.on('error', console.error).connect()
  run = (...args) => (CLUSTER ? client.sendCommand(REGISTER, false, args) : client.sendCommand(args))
} else {
  const { Cluster, Redis } = await import('ioredis')
  client = CLUSTER ? new Cluster(nodes, { redisOptions: { protocol } }) : new Redis({ ...nodes[0], protocol })
  client.on('error', console.error)
  run = (...args) => client.call(...args)
}
const locker = new Locker(client)
const options = { lease: LEASE * 1000, minHold: MIN_HOLD * 1000, wait: WAIT * 1000 }
const lock = await locker.acquire(NAME, options).catch((error) => {
  if (!(error instanceof BusyError)) throw error
  console.log('busy')
  process.exit()
})
console.log('held', lock.fence)
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'write') {
    console.log('wrote', await run('FCALL', 'register_write', '1', REGISTER, String(lock.fence), WHO))
  } else if (line === 'close') {
    await locker.close()
    console.log('closed')
  }
}
await lock.release().then(
  () => console.log('released'),
  (error) => {
    if (!(error instanceof NotHeldError)) throw error
    console.log('lost')
  },
)
await locker.close()
client.destroy?.() ?? client.disconnect()
