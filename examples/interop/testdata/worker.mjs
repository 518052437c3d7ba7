// A worker of the mixed fleet, see suite_test.go.
import { createInterface } from 'node:readline'
import { Locker, NotHeldError } from '@redislock/client'

const { ADDR, NAME, LEASE, REGISTER, WHO, CLIENT, RESP, CLUSTER } = process.env
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
const lock = await locker.acquire(NAME, { lease: LEASE * 1000, wait: 120_000 })
console.log('held', lock.fence)
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'write') {
    console.log('wrote', await run('FCALL', 'register_write', '1', REGISTER, String(lock.fence), WHO))
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
