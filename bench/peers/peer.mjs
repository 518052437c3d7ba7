// One contender with a lock of a Node.js library. Usage: peer.mjs KIND URL. See README.md.
// PEERS is the folder where node_modules is.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'

const LEASE = 10_000 // for all peers
const [kind, url] = process.argv.slice(2)
const require = createRequire(`${process.env.PEERS}/`)
const { Redis } = require('ioredis')
const client = new Redis(url)
client.on('error', () => {}) // ioredis connects anew by itself
const version = (name) => `${name} ${require(`${name}/package.json`).version}`

// Each acquire(name) returns what releases.
const kinds = {
  redislock() {
    const { Locker } = createRequire(import.meta.url)('../../clients/node')
    const locker = new Locker(client)
    return async (name) => {
      const lock = await locker.acquire(name)
      return () => lock.release()
    }
  },
  redlock(options) {
    const { Redlock } = require('@sesamecare-oss/redlock')
    const redlock = new Redlock([client], { retryCount: -1, ...options })
    redlock.on('error', () => {}) // as its README asks
    return async (name) => {
      const lock = await redlock.acquire([name], LEASE)
      return () => lock.release()
    }
  },
  'redlock-1ms': () => kinds.redlock({ retryDelay: 1, retryJitter: 0 }),
  'redis-semaphore'() {
    const { Mutex } = require('redis-semaphore')
    return async (name) => {
      const mutex = new Mutex(client, name, { lockTimeout: LEASE, acquireTimeout: Number.POSITIVE_INFINITY })
      await mutex.acquire()
      return () => mutex.release()
    }
  },
}

let stopped = false
const now = () => process.hrtime.bigint()
const say = (line) => process.stdout.write(`${line}\n`)

async function cycle(acquire, name, hold) {
  const records = []
  for (let last = false; !last; ) {
    const asked = now()
    const release = await acquire(name)
    const granted = now()
    last = stopped
    if (hold > 0 && !last) await setTimeout(hold)
    const left = now()
    await release()
    records.push(`${asked} ${granted} ${left}\n`)
  }
  return `${records.join('')}done`
}

const acquire = kinds[kind]()
let held
async function obey([word, name, hold]) {
  if (word === 'cycle') {
    stopped = false
    say(await cycle(acquire, name, Number(hold) / 1000))
  } else if (word === 'acquire') {
    held = await acquire(name)
    say(`granted ${now()}`)
  } else {
    await held()
    say(`released ${now()}`)
  }
}

process.on('unhandledRejection', () => {}) // of a renewal in the background
await client.ping()
const names = { redlock: ['@sesamecare-oss/redlock'], 'redlock-1ms': ['@sesamecare-oss/redlock'], 'redis-semaphore': ['redis-semaphore'], redislock: [] }
say(`ready ${[...names[kind], 'ioredis'].map(version).join(', ')}, Node.js ${process.versions.node}`)
createInterface({ input: process.stdin })
  .on('line', (line) => {
    if (line === 'stop') stopped = true
    else obey(line.split(' ')).catch((e) => say(`error ${String(e).replace(/\s+/g, ' ')}`))
  })
  .on('close', () => process.exit(0))
