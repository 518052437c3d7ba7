// Time limits, and connections that die: whatever the client library does about them by itself.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Locker, UnavailableError } from '../dist/index.mjs'
import {
  aborted,
  close,
  command,
  eventually,
  freePort,
  ioredis,
  kinds,
  Link,
  newName,
  Server,
  SOON,
} from './support.mjs'

/** Rejects with this, within this many ms and a second. A busy machine gets two more. */
async function within(ms, promise, error) {
  const began = performance.now()
  await assert.rejects(promise, error)
  const took = performance.now() - began
  assert(took < ms + 3000, `it took ${took} ms`)
}

for (const [kind, connect] of Object.entries(kinds)) {
  if (kind.endsWith('RESP2')) continue // nothing here is of the protocol
  describe(kind, { timeout: 300_000, concurrency: 4 }, () => {
    /** A Locker whose connections go through a link. */
    async function linked(t, server, options) {
      const link = await Link.start(t, server.port)
      const client = await connect(link.url)
      t.after(() => close(client))
      const locker = new Locker(client, options)
      t.after(() => locker.close())
      return { link, client, locker }
    }
    async function direct(t, server, options) {
      const client = await connect(server.url)
      t.after(() => close(client))
      const locker = new Locker(client, options)
      t.after(() => locker.close())
      return locker
    }
    const queue = async (locker, name, options) => {
      const result = locker.acquire(name, options)
      result.catch(() => {})
      await eventually(() => locker.stats.waiting > 0)
      await eventually(async () => (await locker.inspect(name)).waiting === 1)
      return { result }
    }

    test('a stopped server: each limit holds, and nothing looks busy', async (t) => {
      const server = await Server.start(t)
      const locker = await direct(t, server)
      const lock = await locker.acquire(newName(), { lease: 60_000 })
      server.kill('SIGSTOP')
      const name = newName()
      await Promise.all([
        within(3000, locker.tryAcquire(name), UnavailableError),
        within(1000, locker.acquire(name, { wait: 1000 }), { code: 'LOCK_UNAVAILABLE' }),
        within(4000, locker.acquire(name, { wait: 4000 }), { code: 'LOCK_UNAVAILABLE' }),
        within(1000, locker.acquire(name, { signal: AbortSignal.timeout(1000) }), {
          name: 'TimeoutError',
        }),
        within(2000, lock.extend(30_000), UnavailableError),
        within(5000, locker.inspect(name), UnavailableError),
      ])
      await within(5000, lock.release(), UnavailableError)
      server.kill('SIGCONT')
      await locker.withLock(name, () => {}) // it goes on
    })

    test('a port that refuses, and a network that swallows all: the limits hold', async (t) => {
      const server = await Server.start(t)
      const { link, locker } = await linked(t, server)
      const lock = await locker.acquire(newName(), { lease: 60_000 })
      const name = newName()
      const all = () =>
        Promise.all([
          within(3000, locker.tryAcquire(name), UnavailableError),
          within(1500, locker.acquire(name, { wait: 1500 }), UnavailableError),
        ])
      link.mode = 'swallow'
      link.silence()
      await all()
      link.target = await freePort()
      link.mode = 'pass'
      await all()
      await within(5000, lock.release(), UnavailableError)
      link.target = server.port
      await lock.release() // again, and now it gets through
      await locker.withLock(name, () => {})
    })

    test('a server that was demoted, and is replaced by none: the limits hold', async (t) => {
      const server = await Server.start(t)
      const locker = await direct(t, server)
      const lock = await locker.acquire(newName(), { lease: 60_000 })
      await server.cli('REPLICAOF', '127.0.0.1', await freePort())
      const name = newName()
      await Promise.all([
        within(3000, locker.tryAcquire(name), UnavailableError),
        within(1500, locker.acquire(name, { wait: 1500 }), UnavailableError),
        within(2000, lock.extend(30_000), UnavailableError),
      ])
      await within(5000, lock.release(), UnavailableError)
      await server.cli('REPLICAOF', 'NO', 'ONE')
      await lock.release()
      await locker.withLock(name, () => {})
    })

    test('the present connections die silently, new ones work: holder and waiter go on', async (t) => {
      const server = await Server.start(t)
      const other = await direct(t, server)
      const { link, locker } = await linked(t, server)
      const [a, b] = [newName(), newName()]
      const mine = await locker.acquire(a, { lease: 6000 })
      const holder = await other.acquire(b)
      const { result } = await queue(locker, b)
      link.silence()
      await mine.extend(30_000).catch((error) => assert(error instanceof UnavailableError))
      await eventually(async () => Number(await server.cli('PTTL', `lock:{${a}}`)) > 5500) // renewed
      assert(!mine.signal.aborted)
      await holder.release()
      await (await result).release()
      await mine.release()
    })

    test('the server behind the name is demoted, old connections stay: holder and waiter go on', async (t) => {
      const [old, next] = [await Server.start(t), await Server.start(t)]
      const other = await direct(t, old)
      const { link, locker } = await linked(t, old)
      await next.cli('REPLICAOF', '127.0.0.1', old.port)
      await eventually(async () =>
        /master_link_status:up/.test(await next.cli('INFO', 'replication')),
      )
      const [a, b] = [newName(), newName()]
      const mine = await locker.acquire(a, { lease: 15_000 })
      await other.acquire(b, { lease: 60_000 })
      const { result } = await queue(locker, b)
      // WAIT knows only of the writes of its own connection.
      const keys = [`lock:{${a}}`, `lock:{${b}}`, `lock-queue:{${b}}`]
      await eventually(async () => (await next.cli('EXISTS', ...keys)) === '3', 'not replicated')
      await next.cli('REPLICAOF', 'NO', 'ONE')
      link.target = next.port
      await old.cli('REPLICAOF', '127.0.0.1', next.port)
      await next.cli('PEXPIRE', `lock:{${b}}`, 1) // its lease ends
      await (await result).release()
      await eventually(async () => Number(await next.cli('PTTL', `lock:{${a}}`)) > 13_500) // renewed there
      assert(!mine.signal.aborted)
      await mine.release()
      assert.equal(await next.cli('EXISTS', `lock:{${a}}`), '0')
    })

    test('the holder is told ahead of the end while nobody answers', async (t) => {
      const server = await Server.start(t)
      const { link, locker } = await linked(t, server)
      const name = newName()
      const client = await connect(server.url)
      t.after(() => close(client))
      const lock = await locker.acquire(name, { lease: 5000 })
      link.mode = 'swallow'
      link.silence()
      await aborted(lock.signal)
      const left = Number(await command(client, 'PTTL', `lock:{${name}}`))
      assert(left > 0, `${left} ms are left`) // it was told at about 500
    })

    test('a call of the wait that got no answer may arrive later: no longer lease counts', async (t) => {
      const server = await Server.start(t)
      const { link, locker } = await linked(t, server)
      await locker.load()
      link.silence()
      await locker.withLock(newName(), { lease: 20_000 }, async (lock) => {
        await lock.extend(60_000)
        assert(lock.left <= 20_000, `${lock.left}`)
      })
    })

    test('a wait that ended during an outage leaves nothing behind when that is over', async (t) => {
      const server = await Server.start(t)
      const other = await direct(t, server)
      const { link, locker } = await linked(t, server)
      const name = newName()
      const holder = await other.acquire(name)
      const controller = new AbortController()
      const { signal } = controller
      const results = Array.from({ length: 20 }, () => locker.acquire(name, { signal }))
      const all = Promise.allSettled(results)
      await eventually(async () => (await other.inspect(name)).waiting === 20)
      link.mode = 'swallow'
      link.silence()
      controller.abort(new Error('enough'))
      for (const { reason } of await all) assert.equal(reason.message, 'enough')
      assert.equal((await other.inspect(name)).waiting, 20)
      link.mode = 'pass'
      await eventually(async () => (await other.inspect(name)).waiting === 0)
      await holder.release()
    })

    test('a password that is wrong by now is told at once', async (t) => {
      const server = await Server.start(t)
      await server.cli('CONFIG', 'SET', 'requirepass', 'right')
      const client = await connect(server.url.replace('//', '//:right@'))
      t.after(() => close(client))
      const locker = new Locker(client)
      t.after(() => locker.close())
      await locker.withLock(newName(), () => {})
      await server.cli('-a', 'right', '--no-auth-warning', 'CONFIG', 'SET', 'requirepass', 'other')
      const late = new Locker(client)
      t.after(() => late.close())
      await assert.rejects(late.acquire(newName(), { wait: 30_000 }), {
        code: 'LOCK_REPLY',
        message: /WRONGPASS|NOAUTH/,
      })
    })

    test('a release that was forgotten, and a Locker that was not closed, do not keep the process alive', async (t) => {
      const server = await Server.start(t)
      const script = fileURLToPath(new URL('./forgets.mjs', import.meta.url))
      const child = spawn(process.execPath, [script, kind, server.url], { stdio: 'inherit' })
      t.after(() => child.kill('SIGKILL'))
      const [code] = await once(child, 'exit', { signal: AbortSignal.timeout(SOON) })
      assert.equal(code, 0)
      assert.equal(Number(await server.cli('EXISTS', 'lock:{forgotten}')), 1)
    })
  })
}

test('options of ioredis that are hard on others do no harm', {
  skip: !ioredis && 'it is not installed',
  timeout: 120_000,
}, async (t) => {
  const server = await Server.start(t)
  const hard = {
    enableOfflineQueue: false,
    commandTimeout: 300,
    maxRetriesPerRequest: 0,
    keyPrefix: 'app:',
    lazyConnect: true,
    stringNumbers: true,
    enableAutoPipelining: true,
  }
  const client = new ioredis.Redis(server.url, hard)
  t.after(() => client.disconnect())
  const locker = new Locker(client)
  t.after(() => locker.close())
  const name = newName()
  const holder = await locker.acquire(name)
  assert.equal(await server.cli('EXISTS', `lock:{${name}}`), '1')
  const wait = locker.acquire(name)
  // A connection that is given up at each command timeout never gets so old.
  const old = async () => /age=[2-9] .* cmd=blpop /.test(await server.cli('CLIENT', 'LIST'))
  await eventually(old, 'no connection blocks for long')
  await holder.release()
  await (await wait).release()
})
