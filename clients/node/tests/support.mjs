// Servers, clients and a network for the tests. Each server has its own folder and a free port.
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

/** A wait of a test: generous, as nothing is proved by being fast. */
export const SOON = 60_000

export const newName = () => `node-${randomUUID()}`

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

export async function eventually(condition, what = 'it did not come true') {
  for (const end = performance.now() + SOON; !(await condition()); await pause(5)) {
    assert(performance.now() < end, what)
  }
}

export const aborted = (signal) => eventually(() => signal.aborted, 'the signal did not abort')

export async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address()
  await new Promise((resolve) => server.close(resolve))
  return port
}

const run = promisify(execFile)

/** A redis-server. It ends with the test; without one, call stop(). */
export class Server {
  static async start(t, ...args) {
    for (let tries = 0; ; tries++) {
      const server = new Server(await freePort(), args)
      if (await server.#up()) {
        t?.after(() => server.stop())
        return server
      }
      server.stop() // the port was taken meanwhile
      assert(tries < 5, 'no redis-server')
    }
  }

  /** A sentinel that alone decides, for the primary at this port, called main. */
  static async startSentinel(t, port) {
    const dir = mkdtempSync(join(tmpdir(), 'redislock-'))
    const file = join(dir, 'sentinel.conf')
    writeFileSync(file, '')
    t.after(() => rmSync(dir, { recursive: true, force: true }))
    const sentinel = await Server.start(t, file, '--sentinel')
    await sentinel.cli('SENTINEL', 'MONITOR', 'main', '127.0.0.1', port, 1)
    await sentinel.cli('SENTINEL', 'SET', 'main', 'down-after-milliseconds', 1000)
    return sentinel
  }

  constructor(port, args) {
    this.port = port
    this.args = args
    this.dir = mkdtempSync(join(tmpdir(), 'redislock-'))
    this.launch()
  }

  get url() {
    return `redis://127.0.0.1:${this.port}`
  }

  get address() {
    return `127.0.0.1:${this.port}`
  }

  launch() {
    const plain = this.args.includes('--sentinel') ? [] : ['--save', '']
    const args = [
      ...this.args,
      '--bind',
      '127.0.0.1',
      '--dir',
      this.dir,
      '--port',
      `${this.port}`,
      ...plain,
    ]
    this.process = spawn(process.env.REDIS_SERVER || 'redis-server', args, { stdio: 'ignore' })
  }

  async #up() {
    let dead = false
    this.process.once('exit', () => {
      dead = true
    })
    for (const end = performance.now() + SOON; performance.now() < end && !dead; await pause(10)) {
      const up = await this.cli('PING').catch(() => '')
      if (up === 'PONG') return true
    }
    return false
  }

  async cli(...args) {
    const all = ['-p', `${this.port}`, ...args.map(String)]
    return (await run(process.env.REDIS_CLI || 'redis-cli', all, { timeout: SOON })).stdout.trim()
  }

  kill(signal = 'SIGKILL') {
    this.process.kill(signal)
  }

  stop() {
    this.kill('SIGCONT')
    this.kill()
    rmSync(this.dir, { recursive: true, force: true })
  }
}

/** Three primaries, with all slots. */
export async function startCluster(t) {
  // A primary that a test stops must not stop the others.
  const coverage = ['--cluster-require-full-coverage', 'no']
  const args = ['--cluster-enabled', 'yes', '--cluster-node-timeout', '2000', ...coverage]
  const servers = await Promise.all([1, 2, 3].map(() => Server.start(t, ...args)))
  const [first] = servers
  for (const [i, server] of servers.entries()) {
    const from = Math.floor((16384 * i) / 3)
    await server.cli('CLUSTER', 'ADDSLOTSRANGE', from, Math.floor((16384 * (i + 1)) / 3) - 1)
    await server.cli('CLUSTER', 'SET-CONFIG-EPOCH', i + 1)
    if (server !== first) await server.cli('CLUSTER', 'MEET', '127.0.0.1', first.port)
  }
  for (const server of servers) {
    const knows = async () => {
      const info = await server.cli('CLUSTER', 'INFO')
      return /state:ok/.test(info) && /known_nodes:3/.test(info)
    }
    await eventually(knows, 'the cluster did not form')
  }
  return servers
}

/** Between a client and a server. `mode` is for all connections: pass, or swallow what is sent in either direction. */
export class Link {
  mode = 'pass'
  connections = new Set()

  static async start(t, port) {
    const proxy = new Link(port)
    await new Promise((resolve) => proxy.server.listen(0, '127.0.0.1', resolve))
    t.after(() => proxy.stop())
    return proxy
  }

  constructor(target) {
    this.target = target
    this.server = net.createServer((client) => {
      const upstream = net.connect(this.target, '127.0.0.1')
      const connection = { client, upstream, swallow: this.mode === 'swallow' }
      this.connections.add(connection)
      const pass = (from, to) => {
        from.on('data', (bytes) => {
          if (!connection.swallow) to.write(bytes)
        })
        from.on('error', () => {})
        from.on('close', () => {
          this.connections.delete(connection)
          if (!connection.swallow) to.destroy()
        })
      }
      pass(client, upstream)
      pass(upstream, client)
    })
  }

  get port() {
    return this.server.address().port
  }

  get url() {
    return `redis://127.0.0.1:${this.port}`
  }

  /** The connections that there are die without a word; new ones, too, if the mode says so. */
  silence() {
    for (const connection of this.connections) connection.swallow = true
  }

  stop() {
    for (const { client, upstream } of this.connections) {
      client.destroy()
      upstream.destroy()
    }
    this.server.close()
  }
}

const optional = (name) => import(name).catch(() => undefined)
export const redis = await optional('redis')
export const ioredis = await optional('ioredis')
assert(redis || ioredis, 'neither redis nor ioredis is installed')

const quietly = (client) => client.on('error', () => {})

/** How to connect to a server, with each library that is installed. */
export const kinds = {
  ...(redis && {
    'redis, RESP2': async (url) => {
      const client = quietly(redis.createClient({ url, RESP: 2 }))
      await client.connect()
      return client
    },
    'redis, RESP3': async (url) => {
      const client = quietly(redis.createClient({ url, RESP: 3 }))
      await client.connect()
      return client
    },
  }),
  ...(ioredis && {
    ioredis: async (url) => quietly(new ioredis.Redis(url)),
  }),
}

export const clusterKinds = {
  ...(redis && {
    'redis cluster': async (servers) => {
      const rootNodes = servers.map(({ url }) => ({ url }))
      const client = quietly(redis.createCluster({ rootNodes }))
      await client.connect()
      return client
    },
  }),
  ...(ioredis && {
    'ioredis cluster': async (servers) =>
      quietly(new ioredis.Cluster(servers.map(({ port }) => ({ host: '127.0.0.1', port })))),
  }),
}

export function close(client) {
  if (client.call) client.disconnect()
  else if (client.destroy) client.destroy()
  else client.disconnect().catch(() => {})
}

/** A command by one of the clients. */
export const command = (client, ...args) =>
  client.call ? client.call(...args) : client.sendCommand(args)

/** How many connections of others have this command as their last. */
export async function blockedOn(server, command) {
  const list = await server.cli('CLIENT', 'LIST')
  return list.split('\n').filter((line) => line.includes(` cmd=${command} `)).length
}
