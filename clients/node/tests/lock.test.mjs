// What a user can do with a Locker, on one server, with each client library.
import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { after, before, describe, test } from 'node:test'
import { BusyError, ClosedError, Locker, LostError, NotHeldError, source } from '../dist/index.mjs'
import { aborted, close, command, eventually, kinds, newName, pause, Server } from './support.mjs'

for (const [kind, connect] of Object.entries(kinds)) {
  describe(kind, { timeout: 300_000 }, () => {
    let server, client, locker
    before(async () => {
      server = await Server.start()
      client = await connect(server.url)
      locker = new Locker(client)
    })
    after(async () => {
      await locker.close()
      close(client)
      server.stop()
    })

    const pttl = async (name) => Number(await command(client, 'PTTL', `lock:{${name}}`))
    const waiting = async (name) => (await locker.inspect(name)).waiting
    async function queued(name, options, by = locker) {
      const count = await waiting(name)
      const result = by.acquire(name, options)
      result.catch(() => {}) // it is awaited later
      await eventually(async () => (await waiting(name)) > count)
      return { result } // not awaited here
    }
    const own = (t, options) => {
      const it = new Locker(client, options)
      t.after(() => it.close())
      return it
    }

    test('withLock holds, returns what work did, and releases', async () => {
      const name = newName()
      let first
      const work = async (lock) => {
        first = lock
        assert.equal((await locker.inspect(name)).holder, lock.token)
        return 42
      }
      assert.equal(await locker.withLock(name, work), 42)
      assert.equal((await locker.inspect(name)).holder, '')
      await locker.withLock(name, { wait: 0 }, async (second) => {
        assert(second.fence > first.fence)
        assert.notEqual(second.token, first.token)
        assert(second.left > 0)
      })
      assert.equal(first.left, 0)
      assert(first.signal.aborted)
    })

    test('what work throws is what the caller sees; a loss is an error though work is through', async () => {
      const name = newName()
      const mine = locker.withLock(name, async () => {
        await locker.reset(name)
        throw new Error('mine')
      })
      await assert.rejects(mine, /^Error: mine$/)
      const reset = locker.withLock(name, () => locker.reset(name))
      await assert.rejects(reset, LostError)
      const over = locker.withLock(name, { maxHold: 1000 }, (lock) => aborted(lock.signal))
      await assert.rejects(over, /maximum hold of 1000 ms/)
    })

    test('a try and a limit leave no place in the queue', async () => {
      const name = newName()
      await locker.withLock(name, async () => {
        assert.equal(await locker.tryAcquire(name), null)
        await assert.rejects(locker.acquire(name, { wait: 0 }), {
          name: 'BusyError',
          code: 'LOCK_BUSY',
        })
        const began = performance.now()
        await assert.rejects(locker.acquire(name, { wait: 300 }), BusyError)
        assert(performance.now() - began >= 300)
        assert.equal(await waiting(name), 0)
      })
      const lock = await locker.tryAcquire(name)
      await lock.release()
    })

    test('an aborted signal ends the wait with its reason', async () => {
      const name = newName()
      await locker.withLock(name, async () => {
        const controller = new AbortController()
        const { result } = await queued(name, { signal: controller.signal })
        controller.abort(new Error('enough'))
        await assert.rejects(result, /enough/)
        assert.equal(await waiting(name), 0)
        await assert.rejects(locker.acquire(name, { signal: controller.signal }), /enough/)
      })
    })

    test('one signal ends many waits, and Node.js warns of no leak', async (t) => {
      const name = newName()
      const warnings = []
      const note = (warning) => warnings.push(warning.message)
      process.on('warning', note)
      t.after(() => process.off('warning', note))
      await locker.withLock(name, async () => {
        const controller = new AbortController()
        const { signal } = controller
        const waits = Array.from({ length: 12 }, () => locker.acquire(name, { signal }))
        const several = Array.from({ length: 12 }, () => locker.acquireAll([name], { signal }))
        const all = Promise.allSettled([...waits, ...several])
        await eventually(async () => (await waiting(name)) === 24)
        controller.abort(new Error('enough'))
        for (const { reason } of await all) assert.equal(reason?.message, 'enough')
        assert.equal(await waiting(name), 0)
        assert.equal(getEventListeners(signal, 'abort').length, 0)
      })
      assert.deepEqual(warnings, [])
    })

    test('first come, first served, over two Lockers; each confirms the whole lease', async (t) => {
      const name = newName()
      const other = own(t)
      const holder = await locker.acquire(name)
      const order = []
      const results = []
      for (let i = 0; i < 4; i++) {
        const { result } = await queued(name, { lease: 60_000 }, i % 2 ? other : locker)
        results.push(
          result.then(async (lock) => {
            order.push(i)
            await eventually(async () => (await pttl(name)) > 2000)
            await lock.release()
            return lock.fence
          }),
        )
      }
      await holder.release()
      const fences = [holder.fence, ...(await Promise.all(results))]
      assert.deepEqual(order, [0, 1, 2, 3])
      assert.deepEqual(
        fences,
        [...new Set(fences)].sort((a, b) => a - b),
      )
    })

    test('several names: in one order, once each, all or nothing', async () => {
      const [a, b] = [newName(), newName()].sort()
      const locks = await locker.acquireAll([b, a, `{${a}}`])
      assert.deepEqual(
        locks.all.map(({ name }) => name.replace(/[{}]/g, '')),
        [a, b],
      )
      assert.equal(locks.get(a), locks.all[0])
      await assert.rejects(locker.acquireAll([a, b], { wait: 0 }), BusyError)
      await locks.release()
      assert.equal((await locker.inspect(a)).holder, '')
      const held = await locker.acquire(b)
      await assert.rejects(locker.acquireAll([a, b], { wait: 100 }), BusyError)
      assert.equal((await locker.inspect(a)).holder, '')
      const waits = locker.withLocks([a, b], async () => 'through')
      await eventually(async () => (await waiting(b)) === 1)
      await locker.reset(a) // it is lost while the other is waited for; the next renewal tells
      await held.release()
      await assert.rejects(waits, LostError)
      assert.equal(await locker.withLocks([a, b], async (all) => all.all.length), 2)
    })

    test('an owner label is on every token, HOST:PID by default', async (t) => {
      const lock = await locker.acquire(newName())
      assert(lock.token.includes(`:${process.pid}:`))
      await lock.release()
      await own(t, { owner: 'cron' }).withLock(newName(), (it) => assert.match(it.token, /^cron:/))
      await locker.withLock(newName(), { owner: '' }, (it) => assert.match(it.token, /^[\w-]+$/))
    })

    test('a token of your own goes from process to process', async (t) => {
      const name = newName()
      const first = await locker.acquire(name, { token: 'mine', lease: 60_000 })
      assert(first.detach() > 0)
      assert(first.signal.aborted)
      const second = await own(t).acquire(name, { token: 'mine', wait: 0 })
      assert.equal(second.fence, first.fence)
      await second.release()
      assert.equal((await locker.inspect(name)).holder, '')
    })

    test('the lease is renewed, and extend changes what it is renewed for', async () => {
      const name = newName()
      const lock = await locker.acquire(name, { lease: 3000 })
      await eventually(async () => (await pttl(name)) < 2500)
      await eventually(async () => (await pttl(name)) > 2500)
      await lock.extend(60_000)
      assert((await pttl(name)) > 50_000)
      assert(lock.left > 50_000)
      assert(!lock.signal.aborted)
      await lock.release()
      await assert.rejects(lock.extend(1000), NotHeldError)
    })

    test('without renewal the lock is lost, and the holder is told ahead of the end', async () => {
      const name = newName()
      const lock = await locker.acquire(name, { lease: 5000, renew: false })
      await aborted(lock.signal)
      assert((await pttl(name)) > 0)
      assert(lock.signal.reason instanceof LostError)
      assert.equal(lock.signal.reason.code, 'LOCK_LOST')
      assert.equal(lock.left, 0)
      await assert.rejects(lock.extend(5000), NotHeldError)
      await lock.release().catch((error) => assert(error instanceof NotHeldError))
    })

    test('an event loop that was blocked past the lease finds the lock lost', async () => {
      const lock = await locker.acquire(newName(), { lease: 1000 })
      const end = performance.now() + 1100
      while (performance.now() < end); // nothing else gets its turn
      await aborted(lock.signal) // though a timer of renewal comes before that of the notice
      assert.equal(lock.left, 0)
      await lock.release().catch((error) => assert(error instanceof NotHeldError))
    })

    test('the maximum hold ends renewal, and the lock', async () => {
      const name = newName()
      const lock = await locker.acquire(name, { lease: 3000, maxHold: 4000 })
      await aborted(lock.signal)
      assert.match(String(lock.signal.reason), /maximum hold of 4000 ms/)
      await eventually(async () => (await pttl(name)) === -2)
    })

    test('the minimum hold keeps others out, though it is released', async () => {
      const name = newName()
      const lock = await locker.acquire(name, { minHold: 60_000 })
      await lock.release()
      await lock.release()
      const left = await pttl(name)
      assert(left > 50_000 && left <= 60_000, `${left} ms`)
      assert.equal(await locker.tryAcquire(name), null)
      await locker.reset(name)
      // It is over: released at once.
      const short = await locker.acquire(name, { minHold: 1 })
      await pause(5)
      await short.release()
      assert.equal(await pttl(name), -2)
    })

    test('held together: at most n, in one queue with those who want it alone', async () => {
      const name = newName()
      const two = { holders: 2 }
      const [a, b] = [await locker.acquire(name, two), await locker.acquire(name, two)]
      assert.equal(a.fence, b.fence)
      assert.equal(await locker.tryAcquire(name, two), null)
      const third = await locker.tryAcquire(name, { shared: true }) // its own limit counts
      assert.equal(third.fence, a.fence)
      await third.release()
      const state = await locker.inspect(name)
      assert.equal(state.held, 2)
      assert.deepEqual(state.holders.map(({ token }) => token).sort(), [a.token, b.token].sort())
      const order = []
      const wait = async (who, options) => {
        const { result } = await queued(name, options)
        return result.then(async (lock) => {
          order.push(who)
          await lock.release()
          return lock
        })
      }
      const alone = wait('alone', {})
      await eventually(async () => (await waiting(name)) === 1)
      const readers = [wait('reader', { shared: true })]
      await eventually(async () => (await waiting(name)) === 2)
      assert.equal((await locker.inspect(name)).waiters[1].holders, Infinity)
      assert.equal(await locker.tryAcquire(name, { shared: true }), null) // nobody overtakes
      await a.release()
      assert.deepEqual(order, [])
      await b.release()
      assert((await alone).fence > a.fence)
      assert((await readers[0]).fence > (await alone).fence)
      assert.deepEqual(order, ['alone', 'reader'])
      const shares = await Promise.all([1, 2, 3].map(() => locker.acquire(name, { shared: true })))
      assert.equal(await locker.reset(name), true)
      for (const share of shares) await assert.rejects(share.release(), NotHeldError)
    })

    test('leases of 1 s and 60 s side by side never change each other', async () => {
      const name = newName()
      const [shared, renew] = [true, false]
      for (const leases of [
        [1000, 60_000],
        [60_000, 1000],
      ]) {
        const locks = []
        for (const lease of leases) locks.push(await locker.acquire(name, { shared, renew, lease }))
        const [short, long] = leases[0] === 1000 ? locks : locks.reverse()
        const { holders } = await locker.inspect(name)
        const ttl = ({ token }) => holders.find((holder) => holder.token === token)?.ttl ?? 0
        assert(ttl(short) <= 1000 && ttl(long) > 30_000, JSON.stringify(holders))
        await aborted(short.signal)
        await eventually(async () => (await locker.inspect(name)).held === 1)
        assert(long.left > 30_000 && !long.signal.aborted)
        await long.extend(1000)
        assert((await pttl(name)) <= 1001) // so nothing is left of 60 s
        await long.release()
      }
      const endless = await locker.acquire(name, { shared, lease: Infinity })
      const other = await locker.acquire(name, { shared, lease: 60_000 })
      assert.equal(await pttl(name), -1)
      await endless.release()
      assert((await pttl(name)) > 0) // the key has its TTL back
      await other.release()
    })

    test('readers who wait behind a writer are let in together, and each confirms its own lease', async () => {
      const name = newName()
      const writer = await locker.acquire(name)
      const readers = []
      for (let i = 0; i < 3; i++) readers.push(await queued(name, { shared: true, lease: 30_000 }))
      await writer.release()
      const locks = await Promise.all(readers.map(({ result }) => result))
      assert.equal(new Set(locks.map(({ fence }) => fence)).size, 1)
      await eventually(async () => {
        const { holders } = await locker.inspect(name)
        return holders.length === 3 && holders.every(({ ttl }) => ttl > 2000)
      })
      for (const lock of locks) await lock.release()
      assert.equal((await locker.inspect(name)).held, 0)
    })

    test('a queue that is full is an error', async () => {
      const name = newName()
      await locker
        .withLock(name, async () => {
          const { result } = await queued(name, { queueLimit: 1, wait: 60_000 })
          const full = { code: 'LOCK_QUEUE_FULL', name: 'QueueFullError' }
          await assert.rejects(locker.acquire(name, { queueLimit: 1 }), full)
          assert.equal(await waiting(name), 1)
          await locker.reset(name)
          await (await result).release()
        })
        .catch((error) => assert(error instanceof LostError))
    })

    test('without expiry', async () => {
      const name = newName()
      const lock = await locker.acquire(name, { lease: Infinity })
      assert.equal(await pttl(name), -1)
      assert.equal(lock.left, Infinity)
      assert.equal((await locker.inspect(name)).ttl, Infinity)
      const { result } = await queued(name, { lease: Infinity })
      await lock.release()
      const next = await result
      await eventually(async () => (await pttl(name)) === -1) // confirmed
      await eventually(() => next.left === Infinity)
      await next.release()
    })

    test('reset takes the lock away; release says so', async () => {
      const name = newName()
      const lock = await locker.acquire(name)
      assert.equal(await locker.reset(name), true)
      assert.equal(await locker.reset(name), false)
      await assert.rejects(lock.release(), { name: 'NotHeldError', code: 'LOCK_NOT_HELD' })
    })

    test('resetAll takes all locks of its prefix, and leaves alone what the library did not write', async (t) => {
      const mine = own(t, { prefix: 'all[*]' })
      const locks = await Promise.all(['a', 'b', 'c:{d}'].map((name) => mine.acquire(name)))
      const other = await locker.acquire(newName())
      await server.cli('SET', 'all[*]:{config}', 'x')
      await server.cli('LPUSH', 'all[*]:{list}', 'x')
      assert.equal(await mine.resetAll(), 3)
      for (const lock of locks) await assert.rejects(lock.release(), NotHeldError)
      assert.equal(await server.cli('GET', 'all[*]:{config}'), 'x')
      await other.release()
    })

    test('inspect shows the queue', async () => {
      const name = newName()
      const lock = await locker.acquire(name, { owner: 'first' })
      const { result } = await queued(name, { owner: 'second', lease: 7000 })
      const state = await locker.inspect(name)
      assert.equal(state.holder, lock.token)
      assert.equal(state.fence, lock.fence)
      assert(state.ttl > 0 && state.ttl <= 10_000)
      assert.equal(state.waiting, 1)
      assert.equal(state.waiters.length, 1)
      assert.match(state.waiters[0].token, /^second:/)
      assert.equal(state.waiters[0].lease, 7000)
      await lock.release()
      await (await result).release()
    })

    test('a waiter survives that its connections are cut', async () => {
      const name = newName()
      const holder = await locker.acquire(name)
      const { result } = await queued(name)
      await server.cli('CLIENT', 'KILL', 'TYPE', 'normal')
      await holder.release()
      await (await result).release()
    })

    test('the library is loaded again after a flush, once for all who call', async () => {
      const names = Array.from({ length: 50 }, newName)
      await server.cli('FUNCTION', 'FLUSH')
      await server.cli('CONFIG', 'RESETSTAT')
      const locks = await Promise.all(names.map((name) => locker.acquire(name)))
      const stats = await server.cli('INFO', 'commandstats')
      assert.match(stats, /cmdstat_function\|load:calls=1,/)
      await Promise.all(locks.map((lock) => lock.release()))
    })

    test('a library that may not be loaded is an error that says what to do', async (t) => {
      const alone = await Server.start(t)
      const by = await connect(alone.url)
      t.after(() => close(by))
      for (const library of ['verify', 'never']) {
        const strict = new Locker(by, { library })
        t.after(() => strict.close())
        await assert.rejects(strict.acquire('a'), {
          code: 'LOCK_LIBRARY',
          message: /redis-cli -x FUNCTION LOAD/,
        })
      }
      const old = source.replace(/^local VERSION = .*$/m, "local VERSION = '0.9.0'")
      const older = source.replace(/^local VERSION = .*$/m, "local VERSION = '1.0.0-old'")
      assert.notEqual(old, older)
      await alone.cli('FUNCTION', 'LOAD', old)
      await assert.rejects(new Locker(by).acquire('a'), {
        code: 'LOCK_LIBRARY',
        message: /0\.9\.0/,
      })
      await alone.cli('FUNCTION', 'FLUSH')
      const loads = new Locker(by)
      t.after(() => loads.close())
      await loads.load()
      assert.equal(await alone.cli('FCALL_RO', 'lock_version', 0), '1.0.0')
    })

    test('close: waiters are told, what acquire gave is released, what withLock took stays until work is through', async () => {
      const [a, b] = [newName(), newName()]
      const closing = new Locker(client)
      const lock = await closing.acquire(a)
      let through
      const inside = new Promise((resolve) => {
        through = resolve
      })
      let at
      const work = closing.withLock(b, async (lock) => {
        at = lock
        await inside
      })
      work.catch(() => {})
      await eventually(() => at)
      const { result } = await queued(a, {}, closing)
      const closed = closing.close()
      await assert.rejects(result, { code: 'LOCK_CLOSED' })
      assert(lock.signal.reason instanceof ClosedError)
      assert(at.signal.reason instanceof ClosedError)
      await eventually(async () => (await locker.inspect(a)).holder === '')
      assert.equal((await locker.inspect(b)).holder, at.token)
      through()
      await assert.rejects(work, ClosedError)
      await closed
      assert.equal((await locker.inspect(b)).holder, '')
      await assert.rejects(closing.acquire(a), ClosedError)
    })

    test('events', async (t) => {
      const name = newName()
      const events = []
      const observed = own(t, { onEvent: (event) => events.push(event) })
      const lock = await observed.acquire(name)
      const { result } = await queued(name, {}, observed)
      await observed.acquire(name, { wait: 0 }).catch(() => {})
      await lock.release()
      const next = await result
      await locker.reset(name)
      await next.release().catch(() => {})
      // Who hands a lock over may learn that later than who gets it.
      assert.deepEqual(events.map(({ type }) => type).sort(), [
        'acquired',
        'acquired',
        'lost',
        'notAcquired',
        'released',
      ])
      assert.deepEqual(
        events.filter(({ type }) => type === 'acquired').map(({ handedOver }) => handedOver),
        [false, true],
      )
    })

    test('keys are those of all languages', async () => {
      const all = {
        a: 'lock:{a}',
        'a:{b}': 'lock:a:{b}',
        '{}a': 'lock:{{}a}',
        'a{b': 'lock:{a{b}',
        'größe-😀': 'lock:{größe-😀}',
      }
      for (const [name, key] of Object.entries(all)) {
        await locker.withLock(name, async (lock) => {
          assert.equal(await server.cli('GET', key), lock.token)
        })
      }
    })

    test('a wrong call says what is wrong, and nothing is sent', async () => {
      const wrong = [
        [/must not be empty/, ''],
        [/must not begin with "}"/, '}x'],
        [/must be a string/, 7],
        [/unknown option "timeout": there are lease, wait/, 'x', { timeout: 100 }],
        [/unknown option "leaseMs"/, 'x', { leaseMs: 100 }],
        ...[10, 0, -1, Number.NaN, '5000', 1e22].map((lease) => [
          /^.*lease must be/,
          'x',
          { lease },
        ]),
        ...[-1, Number.NaN, '5'].map((wait) => [/wait must be/, 'x', { wait }]),
        [/maxHold must be/, 'x', { maxHold: 0 }],
        [/minHold 100 must not be more than maxHold 50/, 'x', { minHold: 100, maxHold: 50 }],
        [/token must be a string, not empty/, 'x', { token: '' }],
        [/holders must be a whole number/, 'x', { holders: 0 }],
        [/holders must be a whole number/, 'x', { holders: 1.5 }],
        [/either holders or shared/, 'x', { holders: 2, shared: true }],
        [/signal must be an AbortSignal/, 'x', { signal: 5 }],
      ]
      for (const [message, ...args] of wrong) {
        await assert.rejects(locker.acquire(...args), { code: 'LOCK_ARGUMENT', message })
      }
      assert.throws(() => new Locker(client, { leese: 1 }), /unknown option "leese"/)
      assert.throws(() => new Locker(client, { prefix: 'a:b' }), /prefix/)
      assert.throws(() => new Locker({}), { code: 'LOCK_CLIENT', message: /createClient/ })
      assert.throws(() => new Locker(undefined), { name: 'UnsupportedClientError' })
      await assert.rejects(locker.withLock('x', {}), /must be a function/)
      const name = newName()
      await server.cli('LPUSH', `lock:{${name}}`, 'not a lock')
      await assert.rejects(locker.acquire(name), { code: 'LOCK_REPLY', message: /WRONGTYPE/ })
    })
  })
}
