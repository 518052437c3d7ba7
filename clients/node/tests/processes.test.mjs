// Many promises, in one process and in several that are killed.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Locker, LostError } from '../dist/index.mjs'
import { blockedOn, close, eventually, kinds, newName, Server } from './support.mjs'

const CYCLES = Number(process.env.CYCLES ?? 10_000)
const worker = fileURLToPath(new URL('./worker.mjs', import.meta.url))

for (const [kind, connect] of Object.entries(kinds)) {
  if (kind.endsWith('RESP2')) continue // nothing here is of the protocol
  describe(kind, { timeout: 1_800_000 }, () => {
    test('1,000 promises wait on one connection, and are served in order', async (t) => {
      const server = await Server.start(t)
      const client = await connect(server.url)
      const locker = new Locker(client)
      t.after(async () => {
        await locker.close()
        close(client)
      })
      const name = newName()
      const holder = await locker.acquire(name)
      const order = []
      const all = []
      for (let i = 0; i < 1000; i++) {
        const served = locker.withLock(name, () => order.push(i))
        // On a machine that is too busy, a handed-over lease of 2 s can run out. The order holds.
        all.push(served.catch((error) => assert(error instanceof LostError)))
      }
      await eventually(async () => (await server.cli('ZCARD', `lock-queue:{${name}}`)) === '1000')
      await eventually(async () => (await blockedOn(server, 'blpop')) === 1)
      // The user's (ioredis connects when it likes), ours for calls, ours that blocks, and redis-cli's.
      const clients = (await server.cli('CLIENT', 'LIST')).split('\n').length
      assert(clients <= 4, `${clients} connections`)
      await holder.extend(10_000) // it does not wait behind the waiters
      await holder.release()
      await Promise.all(all)
      assert.deepEqual(
        order,
        order.map((_, i) => i),
      )
      assert.equal((await locker.inspect(name)).holder, '')
    })

    test('50 promises in two processes, aborted and killed: never two holders, nobody stuck', async (t) => {
      const server = await Server.start(t)
      const client = await connect(server.url)
      const locker = new Locker(client)
      t.after(async () => {
        await locker.close()
        close(client)
      })
      const children = new Set()
      t.after(() => {
        for (const child of children) child.kill('SIGKILL')
      })
      let failed
      const start = () => {
        const child = spawn(process.execPath, [worker, kind, server.url, String(CYCLES)], {
          stdio: ['ignore', 'inherit', 'inherit'],
        })
        children.add(child)
        child.once('exit', (code) => {
          children.delete(child)
          if (code) failed = `a worker ended with ${code}`
        })
        return child
      }
      const done = async () => Number(await server.cli('LLEN', 'log'))
      start()
      for (let kills = 0; kills < 4; kills++) {
        const victim = start()
        const before = await done()
        await eventually(
          async () => failed || (await done()) >= Math.min(before + CYCLES / 10, CYCLES),
        )
        await server.cli('SADD', 'killed', victim.pid)
        victim.kill('SIGKILL')
        if (victim.exitCode === null && victim.signalCode === null) await once(victim, 'exit')
      }
      start()
      for (const child of [...children]) {
        if (child.exitCode === null) await once(child, 'exit')
      }
      assert.equal(failed, undefined)
      assert((await done()) >= CYCLES)
      assert.equal(await server.cli('LRANGE', 'violations', 0, -1), '')
      const fences = (await server.cli('LRANGE', 'log', 0, -1)).split('\n').map(Number)
      for (const [i, fence] of fences.entries()) assert(i === 0 || fence > fences[i - 1])
      // Of the last victim at most a lease is left.
      await eventually(async () => (await locker.inspect('chaos')).holder === '')
      await locker.withLock('chaos', () => {})
      assert.equal(await server.cli('EXISTS', 'lock:{chaos}', 'lock-queue:{chaos}'), '0')
    })
  })
}
