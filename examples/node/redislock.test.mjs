// REDIS_URL=redis://127.0.0.1:7001 REDIS_CLUSTER=127.0.0.1:7101 node --test
//
// Needs servers of its own: their function library is deleted and their clients are disconnected.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { createClient, createClientPool, createCluster, createSentinel } from 'redis'
import { Cluster, Redis } from 'ioredis'
import { acquire, inspect, LostError, NotAcquiredError, reset, withLock } from './redislock.mjs'

const url = process.env.REDIS_URL
assert(url, 'REDIS_URL is not set: it must be a server for this test alone')
const library = fileURLToPath(new URL('../../lua/lock.lua', import.meta.url))
const SOON = 60_000 // generous: nothing is proved by being fast

const quietly = (client) => client.on('error', () => {})
const kinds = {
  'redis, RESP2': () => quietly(createClient({ url, RESP: 2 })).connect(),
  'redis, RESP3': () => quietly(createClient({ url, RESP: 3 })).connect(),
  'ioredis, RESP2': () => quietly(new Redis(url, { protocol: 2 })),
  'ioredis, RESP3': () => quietly(new Redis(url, { protocol: 3 })),
}
const run = (client, ...args) => (client.call ? client.call(...args) : client.sendCommand(args))
const close = (client) => (client.disconnect && client.call ? client.disconnect() : client.destroy())
const newName = () => `node-${randomUUID()}`

async function eventually(condition) {
  for (const end = performance.now() + SOON; !(await condition()); await sleep(5)) {
    assert(performance.now() < end, 'it did not come true')
  }
}

const aborted = (signal) => eventually(() => signal.aborted)

for (const [kind, connect] of Object.entries(kinds)) {
  describe(kind, () => {
    const timed = kind.endsWith('RESP3') ? test : () => {} // they take seconds, and nothing of the protocol
    let client, other
    before(async () => {
      client = await connect()
      other = await connect()
      await run(client, 'FUNCTION', 'FLUSH')
      await (await acquire(client, newName(), { library })).release()
    })
    after(() => [client, other].forEach(close))

    /** A client. meddle decides what becomes of each call of this function: it is given the call. */
    async function meddled(t, name, meddle) {
      const client = await connect()
      t.after(() => close(client))
      const method = client.call ? 'call' : 'sendCommand'
      const send = client[method].bind(client)
      client[method] = (...args) => (args.flat().includes(name) ? meddle(() => send(...args)) : send(...args))
      return client
    }

    async function toldAhead(lock) {
      await aborted(lock.signal)
      const ms = await left(lock.name)
      assert(ms > 50, `${ms} ms are left`) // it was told at about 500
    }

    const left = (name) => run(other, 'PTTL', `lock:{${name}}`).then(Number)
    const waiting = (name) => run(other, 'ZCARD', `lock-queue:{${name}}`).then(Number)
    async function queued(name, options) {
      const count = await waiting(name)
      const result = acquire(client, name, options)
      result.catch(() => {}) // it is awaited later
      await eventually(async () => (await waiting(name)) > count)
      return { result } // not awaited here
    }

    test('withLock holds, returns and releases', async () => {
      const name = newName()
      let first
      assert.equal(await withLock(client, name, async (lock) => {
        first = lock
        assert.equal(String((await inspect(client, name)).holder), lock.token)
        return 42
      }), 42)
      assert.equal(String((await inspect(client, name)).holder), '')
      await withLock(client, name, async (second) => {
        assert(second.fence > first.fence)
        assert.notEqual(second.token, first.token)
        assert(second.leftMs > 0)
      })
      assert.equal(first.leftMs, 0)
    })

    test('what work throws is what the caller sees', async () => {
      const name = newName()
      await assert.rejects(withLock(client, name, async () => {
        await reset(client, name)
        throw new Error('mine')
      }), /^Error: mine$/)
      await assert.rejects(withLock(client, name, async () => { await reset(client, name) }), LostError)
    })

    test('a try and a timeout leave no place in the queue', async () => {
      const name = newName()
      await withLock(client, name, async () => {
        await assert.rejects(acquire(client, name, { timeoutMs: 0 }), NotAcquiredError)
        const began = performance.now()
        await assert.rejects(acquire(client, name, { timeoutMs: 300 }), NotAcquiredError)
        assert(performance.now() - began >= 300)
        assert.equal(await waiting(name), 0)
      })
      await (await acquire(client, name, { timeoutMs: 0 })).release()
    })

    test('first come, first served; who was handed the lock confirms the whole lease', async () => {
      const name = newName()
      const holder = await acquire(client, name)
      const order = []
      const results = []
      for (let i = 0; i < 3; i++) {
        const { result } = await queued(name, { leaseMs: 60_000 })
        results.push(result.then(async (lock) => {
          order.push(i)
          assert((await left(name)) > 2000)
          await lock.release()
          return lock.fence
        }))
      }
      await holder.release()
      const fences = [holder.fence, ...(await Promise.all(results))]
      assert.deepEqual(order, [0, 1, 2])
      assert.deepEqual(fences, [...new Set(fences)].sort((a, b) => a - b))
    })

    test('a signal ends the wait', async () => {
      const name = newName()
      await withLock(client, name, async () => {
        const controller = new AbortController()
        const { result } = await queued(name, { signal: controller.signal })
        controller.abort(new Error('enough'))
        await assert.rejects(result, /enough/)
        assert.equal(await waiting(name), 0)
        await assert.rejects(acquire(client, name, { signal: controller.signal }), /enough/)
      })
    })

    test('a waiter survives that its connections are cut', async () => {
      const name = newName()
      const holder = await acquire(client, name)
      const { result } = await queued(name)
      const killer = await connect()
      await eventually(async () => Number(await run(killer, 'CLIENT', 'KILL', 'TYPE', 'normal')) > 0)
      close(killer)
      await holder.release()
      await (await result).release()
    })

    test('a waiter survives that the library is flushed', async () => {
      const name = newName()
      const holder = await acquire(client, name, { library })
      const { result } = await queued(name, { library })
      await run(client, 'FUNCTION', 'DELETE', 'lock')
      await holder.release()
      await (await result).release()
    })

    test('keys', async () => {
      for (const [name, key] of Object.entries({ a: 'lock:{a}', 'a:{b}': 'lock:a:{b}', '{}a': 'lock:{{}a}', 'a{b': 'lock:{a{b}', 'a}b': 'lock:{a}b}' })) {
        await run(client, 'DEL', key)
        await withLock(client, name, async (lock) => assert.equal(String(await run(client, 'GET', key)), lock.token))
      }
    })

    timed('the lease is renewed', async () => {
      const name = newName()
      await withLock(client, name, async (lock) => {
        await eventually(async () => (await left(name)) < 5000)
        await eventually(async () => (await left(name)) > 5000)
        assert(!lock.signal.aborted)
      }, { leaseMs: 6000 })
    })

    timed('without renewal the lock is lost', async () => {
      const lock = await acquire(client, newName(), { leaseMs: 1000, renew: false })
      await aborted(lock.signal)
      assert(lock.signal.reason instanceof LostError)
      await assert.rejects(lock.extend(5000), LostError)
      await lock.release().catch((error) => assert(error instanceof LostError)) // the server's lease ends a little later
    })

    timed('an event loop that was blocked past the lease finds the lock lost', async () => {
      const lock = await acquire(client, newName(), { leaseMs: 1000 })
      while (lock.leftMs > 0); // nothing else gets its turn
      for (const end = performance.now() + 100; performance.now() < end; ); // the server's lease ends later
      assert.equal(lock.leftMs, 0)
      await aborted(lock.signal)
      await lock.release().catch((error) => assert(error instanceof LostError))
    })

    timed('the holder is told while a renewal hangs', async () => {
      const name = newName()
      const lock = await acquire(client, name, { leaseMs: 1000 })
      await run(other, 'CLIENT', 'PAUSE', String(2 * SOON), 'WRITE') // as a silent network
      try {
        await aborted(lock.signal)
      } finally {
        await run(other, 'CLIENT', 'UNPAUSE')
      }
      await withLock(client, name, async () => {})
    })

    timed('the notice comes ahead of the end while a renewal hangs', async (t) => {
      const client = await meddled(t, 'lock_extend', () => new Promise(() => {}))
      await toldAhead(await acquire(client, newName(), { leaseMs: 5000 }))
    })

    timed('a shorter lease counts though its reply is lost', async (t) => {
      const client = await meddled(t, 'lock_extend', async (call) => {
        await call()
        throw new Error('the reply is lost')
      })
      const lock = await acquire(client, newName(), { leaseMs: 20_000, renew: false })
      await assert.rejects(lock.extend(5000), /the reply is lost/)
      await toldAhead(lock)
    })

    timed('a shorter lease may arrive after a longer one', async (t) => {
      let reaches = false
      const client = await meddled(t, 'lock_extend', async (call) => {
        if (reaches) return call()
        throw new Error('it is late')
      })
      const lock = await acquire(client, newName(), { leaseMs: 20_000, renew: false })
      await assert.rejects(lock.extend(5000), /it is late/)
      reaches = true
      await lock.extend(30_000)
      const keys = ['lock', 'lock-queue', 'lock-state'].map((prefix) => `${prefix}:{${lock.name}}`)
      assert.equal(await run(other, 'FCALL', 'lock_extend', '3', ...keys, lock.token, '5000'), 1)
      await toldAhead(lock)
    })

    test('a call of the wait may arrive after a longer lease', async (t) => {
      let reaches = false
      const client = await meddled(t, 'lock_acquire', async (call) => {
        if (reaches) return call()
        reaches = true
        throw new Error('it is late')
      })
      await withLock(client, newName(), async (lock) => {
        await lock.extend(60_000)
        assert(lock.leftMs <= 20_000)
      }, { leaseMs: 20_000 })
    })

    test('a lease that Redis refused does not count', async (t) => {
      const client = await meddled(t, 'lock_extend', async () => { throw new Error('NOPERM no permissions') })
      await withLock(client, newName(), async (lock) => {
        await assert.rejects(lock.extend(5000), /NOPERM/)
        assert(lock.leftMs > 5000)
      }, { leaseMs: 60_000 })
    })

    test('a reset is noticed by extend, and at the next renewal', async () => {
      const name = newName()
      const lock = await acquire(client, name, { leaseMs: 60_000 })
      await lock.extend(30_000)
      assert((await left(name)) <= 30_000)
      assert.equal(await reset(client, name), true)
      assert.equal(await reset(client, name), false)
      await assert.rejects(lock.extend(60_000), LostError)
      assert(lock.signal.aborted)
      await assert.rejects(lock.release(), LostError)
    })

    test('without expiry', async () => {
      const name = newName()
      await withLock(client, name, async (lock) => {
        assert.equal(await left(name), -1)
        assert.equal(lock.leftMs, Infinity)
      }, { leaseMs: Infinity })
    })

    test('a wrong call says what to do', async () => {
      for (const [pattern, ...args] of [
        [/must be a string, not empty/, ''],
        [/not beginning with '}'/, '}x'],
        ...[10, 0, -1, NaN, '5000'].map((leaseMs) => [/leaseMs must be a number, at least 1000, or Infinity/, 'x', { leaseMs }]),
        ...[-1, NaN, '5000'].map((timeoutMs) => [/timeoutMs must be a number, not negative/, 'x', { timeoutMs }]),
        [/LEASE_MS must be a whole number of milliseconds, 9999999999999 at most/, 'x', { leaseMs: 1e22 }],
        [/TOKEN must not be empty/, 'x', { token: '' }],
      ]) await assert.rejects(acquire(client, ...args), pattern)
      for (const other of [{}, createClientPool(), createSentinel({ name: 'x', sentinelRootNodes: [] })]) {
        await assert.rejects(acquire(other, 'x'), /createClient or createCluster/)
      }
      const name = newName()
      await run(client, 'LPUSH', `lock:{${name}}`, 'not a lock')
      await assert.rejects(acquire(client, name), /WRONGTYPE/)
      await run(client, 'FUNCTION', 'DELETE', 'lock')
      await assert.rejects(acquire(client, name), /redis-cli -x FUNCTION LOAD/)
      await (await acquire(client, newName(), { library })).release()
    })
  })
}

const [host, port] = (process.env.REDIS_CLUSTER ?? '').split(':')
const clusters = {
  'redis cluster, RESP2': () => quietly(createCluster({ rootNodes: [{ url: `redis://${host}:${port}` }], RESP: 2 })).connect(),
  'redis cluster, RESP3': () => quietly(createCluster({ rootNodes: [{ url: `redis://${host}:${port}` }], RESP: 3 })).connect(),
  'ioredis cluster': () => quietly(new Cluster([{ host, port: Number(port) }])),
}
for (const [kind, connect] of Object.entries(clusters)) {
  test(kind, { skip: !host && 'REDIS_CLUSTER=host:port is not set' }, async () => {
    const client = await connect()
    try {
      await (client.call
        ? Promise.all(client.nodes('master').map((node) => node.call('FUNCTION', 'FLUSH')))
        : client.sendCommand(undefined, false, ['FUNCTION', 'FLUSH']))
      for (const tag of ['a', 'b', 'c']) { // each on another one of three primaries
        const name = `${newName()}{${tag}}`
        const holder = await acquire(client, name, { library })
        await assert.rejects(acquire(client, name, { timeoutMs: 0 }), NotAcquiredError)
        const waiter = acquire(client, name)
        await eventually(async () => Number((await inspect(client, name)).waiting) === 1)
        await holder.release()
        const lock = await waiter
        assert(lock.fence > holder.fence)
        await lock.release()
      }
    } finally {
      close(client)
    }
  })
}
