// Only this file knows the client libraries: how to open connections of our own with the user's address,
// credentials and TLS, but with our own time limits.
import { type LockError, textOf, UnsupportedClientError } from './errors'
import { now, within } from './time'

/**
 * A client of `redis` 4 or newer (createClient, createCluster, createSentinel, createClientPool) or of `ioredis` 5 or
 * newer (Redis, for Sentinel, too; Cluster).
 */
export type RedisClient = NodeRedisClient | IoredisClient

export interface NodeRedisClient {
  // biome-ignore lint/suspicious/noExplicitAny: the libraries' own types differ between their versions
  sendCommand(...args: any[]): Promise<any>
}

export interface IoredisClient {
  // biome-ignore lint/suspicious/noExplicitAny: as above
  call(...args: any[]): Promise<any>
  // biome-ignore lint/suspicious/noExplicitAny: as above
  duplicate(...args: any[]): any
}

export const CONNECT_MS = 2000

/** One end of a connection: "host:port", or undefined if the client knows only one. */
export type Address = string | undefined

/** The part of a client library that Server uses. */
export interface Driver {
  readonly isCluster: boolean
  /** A connection of our own, connected. */
  open(address: Address): Promise<Socket>
  /** In a cluster: nodes to ask where the slots are. */
  seeds(): Promise<string[]>
}

/** One connection of a client library. */
export interface Socket {
  send(args: string[]): Promise<unknown>
  close(): void
  /** Called when the connection is over. */
  onEnd(run: (cause: unknown) => void): void
}

// biome-ignore lint/suspicious/noExplicitAny: what follows reads fields that some versions have
type Any = any

export function driverOf(client: unknown): Driver {
  const c = client as Any
  if (typeof c === 'object' && c !== null) {
    const duplicates = typeof c.duplicate === 'function'
    if (duplicates && typeof c.call === 'function') {
      return c.isCluster ? new IoredisCluster(c) : new Ioredis(c)
    }
    if (typeof c.sendCommand === 'function') {
      if (typeof c.nodeClient === 'function') return new NodeRedisCluster(c)
      const leases = typeof c.execute === 'function' || typeof c.getSentinelNode === 'function'
      if (duplicates || leases) return new NodeRedis(c)
    }
  }
  throw unsupported()
}

function unsupported(): LockError {
  return new UnsupportedClientError(
    'redislock: the client must be one of redis 4 or newer (createClient, createCluster, ' +
      'createSentinel, createClientPool) or of ioredis 5 or newer (Redis, Cluster)',
  )
}

const ignore = () => {} // the call that fails tells

class Ioredis implements Driver {
  readonly isCluster: boolean = false
  constructor(protected client: Any) {}

  async seeds(): Promise<string[]> {
    return []
  }

  async open(address: Address): Promise<Socket> {
    return this.connect(this.client, address ? endpoint(address) : {})
  }

  protected async connect(base: Any, overrides: object): Promise<Socket> {
    const copy = base.duplicate({
      lazyConnect: true,
      connectTimeout: CONNECT_MS,
      retryStrategy: null, // a connection that is over is replaced by a new one
      sentinelRetryStrategy: null,
      sentinelReconnectStrategy: null,
      reconnectOnError: null,
      autoResendUnfulfilledCommands: false, // we must know the fate of each call
      maxRetriesPerRequest: null,
      enableOfflineQueue: true,
      enableReadyCheck: false,
      enableAutoPipelining: false,
      commandTimeout: undefined,
      blockingTimeout: undefined,
      socketTimeout: undefined,
      stringNumbers: false,
      replyMapping: 'legacy',
      keyPrefix: '', // another prefix is another lock
      readOnly: false,
      monitor: false,
      ...overrides,
    })
    const ends: ((cause: unknown) => void)[] = []
    let cause: unknown
    copy.on('error', (error: unknown) => {
      cause = error
    })
    copy.on('end', () => {
      for (const run of ends) run(cause ?? new Error('the connection was closed'))
    })
    try {
      await within(
        CONNECT_MS,
        copy.connect(),
        true,
        () => new Error(`not connected within ${CONNECT_MS} ms`),
      )
    } catch (error) {
      copy.disconnect()
      throw cause ?? error
    }
    copy.stream?.unref?.()
    return {
      send: ([command, ...args]) => copy.call(command, ...args),
      close: () => copy.disconnect(),
      onEnd: (run) => ends.push(run),
    }
  }
}

class IoredisCluster extends Ioredis {
  override readonly isCluster = true
  #base: Any // a node's connection, of which ours are duplicates

  override async seeds(): Promise<string[]> {
    const base = await this.#node()
    const nodes = this.client.nodes('master').map((node: Any) => addressOf(node.options))
    return nodes.length > 0 ? nodes : [addressOf(base.options)]
  }

  override async open(address: Address): Promise<Socket> {
    const base = await this.#node()
    return this.connect(base, {
      ...endpoint(address as string),
      ...this.#mapped(address as string),
    })
  }

  /** The address of a node as we see it, if there is a translation. */
  #mapped(address: string): object {
    const { natMap } = this.client.options ?? {}
    return (typeof natMap === 'function' ? natMap(address) : natMap?.[address]) ?? {}
  }

  async #node(): Promise<Any> {
    if (this.#base) return this.#base
    if (this.client.status === 'wait') this.client.connect().catch(ignore)
    const end = now() + CONNECT_MS
    let node = this.client.nodes()[0]
    while (!node) {
      if (now() > end) throw new Error('the cluster client is not connected')
      await new Promise((resolve) => setTimeout(resolve, 20))
      node = this.client.nodes()[0]
    }
    this.#base = node
    return node
  }
}

class NodeRedis implements Driver {
  readonly isCluster: boolean = false
  constructor(protected client: Any) {}

  async seeds(): Promise<string[]> {
    return []
  }

  async open(address: Address): Promise<Socket> {
    const copy = (base: Any) => this.copy(base, address ? endpoint(address) : {})
    // A Sentinel client knows its primary; all clients of a pool are alike.
    const { client } = this
    if (typeof client.getSentinelNode === 'function') {
      return this.connect(await client._execute(false, async (node: Any) => copy(node)))
    }
    if (typeof client.duplicate !== 'function') {
      return this.connect(await client.execute(async (node: Any) => copy(node)))
    }
    return this.connect(copy(client))
  }

  /** A client that is not connected yet. */
  protected copy(base: Any, socket: object): Any {
    return base.duplicate({
      socket: {
        ...base.options?.socket,
        ...socket,
        connectTimeout: CONNECT_MS,
        socketTimeout: undefined,
        reconnectStrategy: false, // a connection that is over is replaced by a new one
      },
      // An url would win over the socket of a node.
      ...(Object.keys(socket).length > 0 ? { url: undefined } : {}),
      keyPrefix: undefined,
      disableOfflineQueue: false,
      commandsQueueMaxLength: undefined,
      commandOptions: undefined,
      clientSideCache: undefined,
      maintNotifications: 'disabled',
      pingInterval: undefined,
      legacyMode: false,
      readonly: false,
    })
  }

  protected async connect(copy: Any): Promise<Socket> {
    const close = () => {
      if (typeof copy.destroy === 'function') {
        try {
          copy.destroy()
        } catch {} // closed before
      } else {
        copy.disconnect().catch(ignore)
      }
    }
    const ends: ((cause: unknown) => void)[] = []
    let cause: unknown
    const end = (error?: unknown) => {
      cause ??= error ?? new Error('the connection was closed')
      for (const run of ends) run(cause)
    }
    copy.on('error', end)
    copy.on('end', () => end())
    try {
      await within(
        CONNECT_MS,
        copy.connect(),
        true,
        () => new Error(`not connected within ${CONNECT_MS} ms`),
      )
    } catch (error) {
      close()
      throw error
    }
    copy.unref()
    return {
      send: (args) => copy.sendCommand(args),
      close,
      onEnd: (run) => ends.push(run),
    }
  }
}

class NodeRedisCluster extends NodeRedis {
  override readonly isCluster = true
  #base: Any // a node's client, of which ours are duplicates

  override async seeds(): Promise<string[]> {
    await this.#node()
    return this.client.masters.map((node: Any) => `${node.host}:${node.port}`)
  }

  override async open(address: Address): Promise<Socket> {
    const base = await this.#node()
    return this.connect(this.copy(base, this.#mapped(address as string)))
  }

  /** The address of a node as we see it: the client may translate it. */
  #mapped(address: string): object {
    for (const node of [...this.client.masters, ...(this.client.replicas ?? [])]) {
      const socket = node.client?.options?.socket
      if (`${node.host}:${node.port}` === address && socket)
        return { host: socket.host, port: socket.port }
    }
    return endpoint(address)
  }

  async #node(): Promise<Any> {
    this.#base ??= await within(
      CONNECT_MS,
      Promise.any(this.client.masters.map((node: Any) => this.client.nodeClient(node))),
      true,
      () => new Error('the cluster client is not connected'),
    )
    return this.#base
  }
}

const addressOf = ({ host, port }: { host: string; port: number }) => `${host}:${port}`

/** The port follows the last colon: an IPv6 address has more colons. */
function endpoint(address: string): { host: string; port: number } {
  const colon = address.lastIndexOf(':')
  return { host: address.slice(0, colon), port: Number(address.slice(colon + 1)) }
}

/** Whether an error of the library is a reply of Redis, not a failure of the connection. */
export function isReply(error: unknown): boolean {
  // Redis's errors begin with a word in capitals; those of the libraries and of sockets do not.
  return /^[A-Z][A-Z0-9_]+ /.test(textOf(error)) && (error as Any).syscall === undefined
}
