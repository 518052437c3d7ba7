// Cluster and Sentinel, with each client library that is installed.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BusyError, Locker, NotHeldError } from '../dist/index.mjs'
import {
  blockedOn,
  close,
  clusterKinds,
  eventually,
  ioredis,
  kinds,
  newName,
  redis,
  Server,
  startCluster,
} from './support.mjs'

const owned = (t, client, options) => {
  t.after(() => close(client))
  const locker = new Locker(client, options)
  t.after(() => locker.close())
  return locker
}

async function queued(locker, name) {
  const before = (await locker.inspect(name)).waiting
  const result = locker.acquire(name)
  result.catch(() => {})
  await eventually(async () => (await locker.inspect(name)).waiting === before + 1)
  return { result }
}

describe('cluster', { timeout: 600_000, concurrency: 3 }, () => {
  for (const [kind, connect] of Object.entries(clusterKinds)) {
    test(`${kind}: on each primary, with its own blocked connection for each lock`, async (t) => {
      const servers = await startCluster(t)
      const locker = owned(t, await connect(servers))
      const names = ['a', 'b', 'c'].map((tag) => `${newName()}{${tag}}`) // each on another primary
      const holders = await Promise.all(names.map((name) => locker.acquire(name)))
      await assert.rejects(locker.acquire(names[0], { wait: 0 }), BusyError)
      const waits = []
      for (const name of names) waits.push(await queued(locker, name), await queued(locker, name))
      for (const server of servers) {
        await eventually(async () => (await blockedOn(server, 'blpop')) === 1)
      }
      const locks = []
      for (const [i, holder] of holders.entries()) {
        await holder.release()
        const lock = await waits[2 * i].result
        assert(lock.fence > holder.fence)
        await lock.release()
        locks.push(await waits[2 * i + 1].result)
      }
      assert.equal(await locker.resetAll(), 3)
      for (const lock of locks) await assert.rejects(lock.release(), NotHeldError)
      const all = await locker.acquireAll(names)
      await all.release()
    })

    test(`${kind}: a holder and a waiter follow a slot that moves`, async (t) => {
      const servers = await startCluster(t)
      const locker = owned(t, await connect(servers))
      const name = newName()
      const key = `lock:{${name}}`
      const slot = await servers[0].cli('CLUSTER', 'KEYSLOT', key)
      const owner = servers[Math.floor((Number(slot) * 3) / 16384)]
      const ids = new Map()
      for (const server of servers) ids.set(server, await server.cli('CLUSTER', 'MYID'))
      const target = servers.find((server) => server !== owner)
      await target.cli('FUNCTION', 'FLUSH') // the new owner may have no library

      const holder = await locker.acquire(name)
      const { result } = await queued(locker, name)
      await target.cli('CLUSTER', 'SETSLOT', slot, 'IMPORTING', ids.get(owner))
      await owner.cli('CLUSTER', 'SETSLOT', slot, 'MIGRATING', ids.get(target))
      const move = async () => {
        const keys = await owner.cli('CLUSTER', 'GETKEYSINSLOT', slot, 100)
        const all = keys.split('\n').filter(Boolean)
        if (all.length === 0) return true
        await owner.cli('MIGRATE', '127.0.0.1', target.port, '', 0, 5000, 'REPLACE', 'KEYS', ...all)
        return false
      }
      await eventually(move)
      for (const server of servers)
        await server.cli('CLUSTER', 'SETSLOT', slot, 'NODE', ids.get(target))
      await holder.extend(20_000)
      assert.equal(await target.cli('GET', key), holder.token)
      await holder.release()
      await (await result).release()
    })

    test(`${kind}: a primary that hangs holds up nobody on the others`, async (t) => {
      const servers = await startCluster(t)
      const locker = owned(t, await connect(servers))
      const names = ['a', 'b', 'c'].map((tag) => `${newName()}{${tag}}`)
      for (const name of names) await locker.withLock(name, () => {})
      const slots = await Promise.all(
        names.map((name) => servers[0].cli('CLUSTER', 'KEYSLOT', `lock:${name}`)),
      )
      const at = slots.map((slot) => servers[Math.floor((Number(slot) * 3) / 16384)])
      at[0].kill('SIGSTOP')
      const hung = assert.rejects(locker.acquire(names[0], { wait: 2500 }), {
        code: 'LOCK_UNAVAILABLE',
      })
      for (const i of [1, 2]) {
        await at[i].cli('FUNCTION', 'FLUSH')
        const lock = await locker.acquire(names[i], { lease: 2000 })
        await lock.extend(2000)
        await lock.release()
      }
      await hung
      at[0].kill('SIGCONT')
    })
  }

  test('a server that checks slots behind a client that does not know', async (t) => {
    const servers = await startCluster(t)
    for (const [kind, connect] of Object.entries(kinds)) {
      const slot = async (name) =>
        Number(await servers[0].cli('CLUSTER', 'KEYSLOT', `lock:{${name}}`))
      let name = newName()
      while ((await slot(name)) > 16384 / 3 - 1) name = newName() // it is on the first
      const locker = owned(t, await connect(servers[0].url))
      const holder = await locker.acquire(name)
      const { result } = await queued(locker, name)
      await holder.release()
      const lock = await result
      assert(lock.fence > holder.fence, kind)
      await lock.release()
    }
  })
})

describe('Sentinel', { timeout: 600_000, concurrency: 3 }, () => {
  const sentinels = {
    ...(redis?.createSentinel && {
      redis: async (port) => {
        const client = redis.createSentinel({
          name: 'main',
          sentinelRootNodes: [{ host: '127.0.0.1', port }],
        })
        client.on('error', () => {})
        await client.connect()
        return client
      },
    }),
    ...(ioredis && {
      ioredis: async (port) => {
        const client = new ioredis.Redis({ name: 'main', sentinels: [{ host: '127.0.0.1', port }] })
        return client.on('error', () => {})
      },
    }),
  }

  for (const [kind, connect] of Object.entries(sentinels)) {
    test(`${kind}: holder and waiter go on at the new primary`, async (t) => {
      const [primary, replica] = [await Server.start(t), await Server.start(t)]
      await replica.cli('REPLICAOF', '127.0.0.1', primary.port)
      const isUp = async () =>
        /master_link_status:up/.test(await replica.cli('INFO', 'replication'))
      await eventually(isUp)
      const sentinel = await Server.startSentinel(t, primary.port)
      const knows = async () => /slaves=1/.test(await sentinel.cli('INFO', 'sentinel'))
      await eventually(knows, 'the sentinel does not know the replica')
      const locker = owned(t, await connect(sentinel.port))
      const name = newName()
      const holder = await locker.acquire(name, { lease: 60_000 })
      const { result } = await queued(locker, name)
      // WAIT knows only of the writes of its own connection.
      const keys = [`lock:{${name}}`, `lock-queue:{${name}}`]
      await eventually(async () => (await replica.cli('EXISTS', ...keys)) === '2', 'not replicated')
      primary.kill()
      // Sentinel closes the connections of the one that it promotes.
      const role = () => replica.cli('ROLE').catch(() => '')
      await eventually(async () => (await role()).startsWith('master'), 'no failover')
      await eventually(() =>
        holder.extend(60_000).then(
          () => true,
          () => false,
        ),
      )
      assert.equal(await replica.cli('GET', `lock:{${name}}`), holder.token)
      await holder.release()
      await (await result).release()
    })
  }
})

test('a pool of redis', {
  skip: !redis?.createClientPool && 'this version has none',
  timeout: 60_000,
}, async (t) => {
  const server = await Server.start(t)
  const pool = redis.createClientPool({ url: server.url })
  pool.on('error', () => {})
  await pool.connect()
  const locker = new Locker(pool)
  t.after(async () => {
    await locker.close()
    pool.destroy()
  })
  const holder = await locker.acquire('a')
  const { result } = await queued(locker, 'a')
  await holder.release()
  await (await result).release()
})
