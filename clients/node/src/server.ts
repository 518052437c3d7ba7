import { CallError, codeOf, LibraryError, passes, textOf } from './errors'
import { type Keys, slotOf } from './keys'
import { LAST_MS } from './lease'
import { source, version } from './library'
import { type Address, CONNECT_MS, type Driver, isReply, type Socket } from './redis'
import { now, within } from './time'

/** A call without an answer ends after this, and its connection with it. */
export const CALL_MS = 2000
/** How long one BLPOP blocks: it may be blocked on a demoted or stopped primary. */
const BLOCK_S = 2
/** How late BLPOP's reply may be: CLIENT PAUSE delays it. */
const BLOCK_GRACE_MS = 1500
/** The most signals in one reply. */
const POP_MAX = 1000
/** An unused connection is closed after this. */
const IDLE_MS = 10_000
const MAX_REDIRECTS = 5

const DEMOTED = /^(READONLY|UNBLOCKED|MASTERDOWN)$/

/** How long a call may take, and whether it keeps the process alive meanwhile. */
export interface Patience {
  readonly ms: number
  readonly holds: boolean
}

export interface Answer {
  readonly value: unknown
  /** LAST_MS before the call was sent, by our clock. */
  readonly sent: number
}

/** A connection of our own. When it fails, all its calls fail, and a new connection replaces it. */
class Link {
  readonly address: Address
  broken = false
  loading: Promise<void> | undefined
  #socket: Socket
  #calls = new Set<(cause: unknown) => void>()
  #retired = false

  constructor(socket: Socket, address: Address) {
    this.#socket = socket
    this.address = address
    socket.onEnd((cause) => this.#break(cause))
  }

  /** Sends now. The errors are CallErrors. */
  call(args: string[], { ms, holds }: Patience): Promise<unknown> {
    let lost: (cause: unknown) => void = () => {}
    const broken = new Promise<never>((_, reject) => {
      // A reply here is to the login: Redis has carried out nothing else.
      lost = (cause) => reject(classify(cause))
    })
    this.#calls.add(lost)
    const reply = this.#socket.send(args).catch((error) => {
      throw classify(error)
    })
    const late = () => {
      this.retire() // perhaps it died silently
      const text = `no answer within ${Math.round(ms)} ms`
      return new CallError(new Error(text), { passes: true, mayArrive: true })
    }
    if (this.broken) lost(new Error('the connection was closed'))
    return within(ms, Promise.race([reply, broken]), holds, late).finally(() => {
      this.#calls.delete(lost)
      if (this.#retired && this.#calls.size === 0) this.close()
    })
  }

  /** Stops using the connection. Calls under way may still get an answer. */
  retire(): void {
    this.broken = this.#retired = true
    if (this.#calls.size === 0) this.close()
  }

  close(): void {
    this.#break(new Error('the connection was closed'))
    this.#socket.close()
  }

  #break(cause: unknown): void {
    this.broken = true
    for (const lost of [...this.#calls]) lost(cause)
  }
}

function classify(error: unknown): CallError {
  if (error instanceof CallError) return error
  if (!isReply(error)) return new CallError(error, { passes: true, mayArrive: true })
  return new CallError(error, { passes: passes(textOf(error)), mayArrive: false })
}

/** Access to the function library, on connections of our own: one for calls to each node, and blocking ones. */
export class Server {
  /** Each lock has a signal list of its own: all keys of a call must be in one slot. */
  perLock: boolean
  #driver: Driver
  #mode: 'load' | 'verify' | 'never'
  #links = new Map<Address, Promise<Link>>()
  #blocking = new Set<Link>()
  #idle = new Map<Link, NodeJS.Timeout>() // of the blocking ones
  #slots: string[] = [] // in a cluster: the primary of each slot
  #refresh: Promise<void> | undefined
  #closed = false

  constructor(driver: Driver, mode: 'load' | 'verify' | 'never') {
    this.#driver = driver
    this.#mode = mode
    this.perLock = driver.isCluster
  }

  /** Calls a function. The errors are CallErrors. */
  async fcall(
    name: string,
    keys: Keys,
    args: string[],
    patience: Patience,
    signals?: string,
  ): Promise<Answer> {
    const all = [keys.lock, keys.queue, keys.state, ...(signals === undefined ? [] : [signals])]
    const command = name === 'lock_inspect' ? 'FCALL_RO' : 'FCALL'
    return this.#call(keys.lock, [command, name, String(all.length), ...all, ...args], patience)
  }

  /** Blocks for a while and returns the signals of a list. `most`: how many to expect. */
  async pop(blocker: Blocker, list: string, most: number): Promise<string[]> {
    const patience = { ms: BLOCK_S * 1000 + BLOCK_GRACE_MS, holds: false }
    const link = await this.#blockingLink(blocker, list)
    try {
      const first = link.call(['BLPOP', list, String(BLOCK_S)], patience)
      // Pending signals come with it. Check-ins make up for signals lost with an error.
      const more =
        most > 1 ? link.call(['LPOP', list, String(Math.min(most, POP_MAX))], patience) : undefined
      more?.catch(() => {})
      const popped = await first
      const rest = await more?.catch(() => undefined)
      return [
        ...(Array.isArray(popped) ? popped.slice(1) : []),
        ...(Array.isArray(rest) ? rest : []),
      ].map(String)
    } catch (error) {
      this.#close(link)
      blocker.link = undefined
      this.#learn(list, link, error)
      throw error
    }
  }

  async #blockingLink(blocker: Blocker, list: string): Promise<Link> {
    const address = await this.#address(list)
    const known = blocker.link
    if (known && !known.broken && known.address === address) return known
    if (known) this.park(blocker)
    for (const [link, timer] of this.#idle) {
      if (link.address !== address || link.broken) continue
      clearTimeout(timer)
      this.#idle.delete(link)
      blocker.link = link
      return link
    }
    const link = await this.#open(address)
    this.#blocking.add(link)
    blocker.link = link
    return link
  }

  /** Keeps a connection that nobody blocks on for a while. */
  park(blocker: Blocker): void {
    const { link } = blocker
    blocker.link = undefined
    if (!link || link.broken || this.#closed) {
      if (link) this.#close(link)
      return
    }
    const timer = setTimeout(() => this.#close(link), IDLE_MS).unref()
    this.#idle.set(link, timer)
  }

  #close(link: Link): void {
    this.#blocking.delete(link)
    clearTimeout(this.#idle.get(link))
    this.#idle.delete(link)
    link.close()
  }

  /** Runs on each primary, and returns all results. */
  async onPrimaries<T>(
    run: (call: (args: string[]) => Promise<unknown>) => Promise<T>,
    patience: Patience,
  ): Promise<T[]> {
    if (this.#driver.isCluster) await this.#refreshSlots(patience)
    const addresses: Address[] = this.#driver.isCluster
      ? [...new Set(this.#slots)].filter(Boolean)
      : [undefined]
    return Promise.all(
      addresses.map(async (address) => {
        const link = await this.#link(address)
        return run((args) => link.call(args, patience))
      }),
    )
  }

  /** Loads or checks the library on each primary. */
  async load(patience: Patience): Promise<void> {
    await this.onPrimaries(async (call) => this.#prepare(call, 'load'), patience)
  }

  close(): void {
    this.#closed = true
    for (const opening of this.#links.values())
      opening.then(
        (link) => link.close(),
        () => {},
      )
    this.#links.clear()
    for (const link of [...this.#blocking]) this.#close(link)
  }

  async #call(key: string, args: string[], patience: Patience): Promise<Answer> {
    const end = now() + patience.ms
    let asking: string | undefined // the node for one ASK, while a slot is being moved
    for (let tries = 0; ; tries++) {
      let link: Link
      let loaded: Promise<void> | undefined
      let sent = now()
      const rest = () => ({ ms: Math.max(1, end - now()), holds: patience.holds })
      try {
        const connected = asking === undefined ? this.#linkFor(key) : this.#link(asking)
        link = await within(rest().ms, connected, patience.holds, () => new Error('no connection'))
      } catch (error) {
        if (this.#driver.isCluster) this.#refreshSlots(rest()).catch(() => {})
        if (error instanceof CallError && !error.mayArrive) throw error
        throw new CallError(textOf(error) === '' ? 'no connection' : error, {
          passes: true,
          mayArrive: false,
        })
      }
      try {
        loaded = link.loading
        if (loaded) await within(rest().ms, loaded, patience.holds, notLoaded)
        if (asking !== undefined) link.call(['ASKING'], rest()).catch(() => {})
        sent = now() - LAST_MS
        return { value: await link.call(args, rest()), sent }
      } catch (error) {
        const failure = classify(error)
        asking = undefined
        const redirected = /^(MOVED|ASK) \d+ (.+)$/.exec(failure.message)
        const again = tries < MAX_REDIRECTS && now() < end
        if (/Function not found/.test(failure.message) && this.#mode !== 'never' && again) {
          await this.#reload(link, rest())
        } else if (redirected && this.#driver.isCluster && again) {
          const to = this.#target(redirected[2] as string, link)
          if (redirected[1] === 'ASK') asking = to
          else this.#moved(key, to)
        } else {
          this.#learn(key, link, failure)
          throw missing(failure)
        }
      }
    }
  }

  /** Learns from an error where the servers are. */
  #learn(key: string, link: Link, error: unknown): void {
    const moved = /^MOVED \d+ (.+)$/.exec(textOf(error))
    if (moved && this.#driver.isCluster) {
      this.#moved(key, this.#target(moved[1] as string, link))
      return
    }
    // A new connection to the name of a demoted server may lead to the new primary.
    if (DEMOTED.test(codeOf(error))) {
      link.retire()
      if (!this.#driver.isCluster) {
        for (const other of this.#blocking) other.retire()
        for (const opening of this.#links.values())
          opening.then(
            (other) => other.retire(),
            () => {},
          )
      }
    }
    if (this.#driver.isCluster && (link.broken || DEMOTED.test(codeOf(error)))) {
      this.#refreshSlots({ ms: CALL_MS, holds: false }).catch(() => {})
    }
  }

  #moved(key: string, to: string): void {
    this.#slots[slotOf(key)] = to
    this.#refreshSlots({ ms: CALL_MS, holds: false }).catch(() => {})
  }

  /** An address without a host means the node that named it. */
  #target(address: string, link: Link): string {
    if (!address.startsWith(':')) return address
    const asked = link.address ?? ''
    return asked.slice(0, asked.lastIndexOf(':')) + address
  }

  async #address(key: string): Promise<Address> {
    if (!this.#driver.isCluster) return undefined
    const slot = slotOf(key)
    if (this.#slots[slot] === undefined) await this.#refreshSlots({ ms: CALL_MS, holds: true })
    const address = this.#slots[slot]
    if (address === undefined) throw new Error(`CLUSTERDOWN nobody serves slot ${slot}`)
    return address
  }

  async #linkFor(key: string): Promise<Link> {
    return this.#link(await this.#address(key))
  }

  /** The connection for calls to a node. All callers that ask meanwhile share a new one. */
  async #link(address: Address): Promise<Link> {
    const known = this.#links.get(address)
    if (known) {
      const link = await known
      if (!link.broken) return link
      if (this.#links.get(address) === known) this.#links.delete(address)
      return this.#link(address)
    }
    const opening = this.#open(address).then((link) => {
      if (this.#mode !== 'never') {
        const patience = { ms: CALL_MS, holds: false }
        // Calls wait for it, and find its error.
        link.loading = this.#prepare((args) => link.call(args, patience), this.#mode).finally(
          () => {
            link.loading = undefined
          },
        )
        link.loading.catch(() => link.retire()) // the next call checks again
      }
      return link
    })
    this.#links.set(address, opening)
    opening.catch(() => {
      if (this.#links.get(address) === opening) this.#links.delete(address)
    })
    return opening
  }

  async #open(address: Address): Promise<Link> {
    if (this.#closed) throw new Error('the Locker is closed')
    // A client library may wait for ever for its own connection.
    const opening = this.#driver.open(address)
    const late = () => new Error(`not connected within ${CONNECT_MS} ms`)
    try {
      const link = new Link(await within(CONNECT_MS + 100, opening, false, late), address)
      if (this.#closed) link.close()
      return link
    } catch (error) {
      opening.then(
        (socket) => socket.close(),
        () => {},
      ) // too late
      throw isReply(error) ? classify(error) : error // a wrong password, say
    }
  }

  /** After FUNCTION FLUSH, or on a new primary: one load, however many calls need it. */
  async #reload(link: Link, patience: Patience): Promise<void> {
    if (link.loading) {
      return within(patience.ms, link.loading, patience.holds, notLoaded)
    }
    link.loading = this.#prepare((args) => link.call(args, patience), this.#mode).finally(() => {
      link.loading = undefined
    })
    await link.loading
  }

  /** Checks the library of a node, and loads it if the mode says so. */
  async #prepare(
    call: (args: string[]) => Promise<unknown>,
    mode: 'load' | 'verify' | 'never',
  ): Promise<void> {
    const have = await versionOn(call)
    if (have === undefined || isUsable(have)) return
    const remedy = 'redis-cli -x FUNCTION LOAD REPLACE < node_modules/@redislock/client/lock.lua'
    const what =
      have === '' ? 'has no function library' : `has version ${have} of the function library`
    const wrong = `redislock: Redis ${what}, and version ${version} is needed; to load it: ${remedy}`
    if (mode !== 'load' || (have !== '' && major(have) !== major(version))) {
      throw refused(new LibraryError(wrong))
    }
    try {
      await call(['FUNCTION', 'LOAD', ...(have === '' ? [] : ['REPLACE']), source])
    } catch (error) {
      const failure = classify(error)
      if (failure.passes) throw failure
      // Somebody else was faster, or has a library with our name.
      const loaded = /already exists/.test(failure.message) ? await versionOn(call) : ''
      if (loaded !== undefined && isUsable(loaded)) return
      throw refused(new LibraryError(`${wrong} (${failure.message})`, failure.cause))
    }
  }

  async #refreshSlots(patience: Patience): Promise<void> {
    this.#refresh ??= this.#readSlots(patience).finally(() => {
      this.#refresh = undefined
    })
    return this.#refresh
  }

  async #readSlots({ holds }: Patience): Promise<void> {
    const known = [...new Set(this.#slots)].filter(Boolean)
    const nodes = known.length > 0 ? known : await this.#driver.seeds()
    // The first answer counts, so a node that hangs delays nobody.
    const read = nodes.map(async (address) => {
      const link = await this.#link(address)
      const reply = await link.call(['CLUSTER', 'SLOTS'], { ms: CALL_MS, holds })
      const slots: string[] = []
      for (const [from, to, [host, port]] of reply as [number, number, [string | null, number]][]) {
        const address = host ? `${host}:${port}` : this.#target(`:${port}`, link)
        for (let slot = Number(from); slot <= Number(to); slot++) slots[slot] = address
      }
      if (slots.length === 0) throw new Error('CLUSTERDOWN no slots')
      return slots
    })
    try {
      this.#slots = await Promise.any(read)
    } catch (error) {
      if (known.length > 0) this.#slots = [] // next time, ask the nodes that the client knows
      throw error instanceof AggregateError ? error.errors[0] : error
    }
    for (const [address, opening] of this.#links) {
      if (this.#slots.includes(address as string)) continue
      this.#links.delete(address)
      opening.then(
        (link) => link.retire(),
        () => {},
      )
    }
  }
}

/** A blocking connection, while its owner needs it. */
export interface Blocker {
  link: Link | undefined
}

/** The version on a node; '': no library; undefined: no right to ask. */
async function versionOn(call: (args: string[]) => Promise<unknown>): Promise<string | undefined> {
  try {
    return String(await call(['FCALL_RO', 'lock_version', '0']))
  } catch (error) {
    if (/Function not found/.test(textOf(error))) return ''
    if (codeOf(error) === 'NOPERM') return undefined
    throw error
  }
}

const parts = (text: string) => text.split('.').map(Number)
const major = (text: string) => parts(text)[0]

/** Not older than ours, and of the same major version. */
function isUsable(have: string): boolean {
  const [a = 0, b = 0, c = 0] = parts(have)
  const [x = 0, y = 0, z = 0] = parts(version)
  return a === x && (b > y || (b === y && c >= z))
}

const notLoaded = () =>
  new CallError('the function library is still being loaded', { passes: true, mayArrive: false })

const refused = (error: LibraryError) => new CallError(error, { passes: false, mayArrive: false })

/** The error of a call that found no library and may not load it. */
function missing(failure: CallError): CallError {
  if (!/Function not found/.test(failure.message)) return failure
  return refused(
    new LibraryError(
      'redislock: Redis has no function library; to load it: ' +
        'redis-cli -x FUNCTION LOAD < node_modules/@redislock/client/lock.lua',
      failure.cause,
    ),
  )
}
