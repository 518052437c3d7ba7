// Several users of several locks, see several_test.go.
import { Redis } from 'ioredis'
import { Locker, LostError } from '@redislock/client'

const { ADDR, NAMES, ROUNDS, USERS, PATIENCE } = process.env
const names = JSON.parse(NAMES)
const client = new Redis(`redis://${ADDR}`)
const locker = new Locker(client)
const random = (below) => Math.floor(Math.random() * below)

function some() {
  const all = [...names]
  for (let i = all.length - 1; i > 0; i--) {
    const j = random(i + 1)
    ;[all[i], all[j]] = [all[j], all[i]]
  }
  return all.slice(0, 2 + random(2))
}

let done = 0
async function user() {
  while ((await client.incr('rounds')) <= Number(ROUNDS)) {
    done++
    await locker.withLocks(some(), { wait: Number(PATIENCE) }, () => {}).catch((error) => {
      if (!(error instanceof LostError)) throw error // the machine was too busy
    })
  }
}
await Promise.all(Array.from({ length: Number(USERS) }, user))
console.log('done', done)
await locker.close()
client.disconnect()
