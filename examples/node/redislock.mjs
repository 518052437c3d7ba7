/**
 * A lock for many machines: redislock's functions called with `redis` or `ioredis`. Copy this file.
 *
 *   import { createClient } from 'redis'              // or createCluster; or from ioredis:
 *   import { withLock } from './redislock.mjs'        // new Redis(...), new Cluster([...])
 *
 *   const client = await createClient().on('error', console.error).connect()
 *   await withLock(client, 'orders', async (lock) => {   // waits its turn, first come, first served
 *     await pay(order, { fence: lock.fence, signal: lock.signal })
 *   })
 *
 * lock.signal aborts when the lock may be lost: stop then. It aborts ahead of the end of the lease, by a
 * tenth of the lease and 500 ms at most. A timer that calls nothing does it, so a renewal that hangs cannot
 * hold it up. It comes too late only if the event loop does not get its turn, if the process stands still,
 * or if the server's clock is put forward.
 *
 * lock.fence is a number that grows with each grant: have storage refuse one that is lower than the last
 * it saw. A lease is renewed while the work goes on; for that, too, the event loop must get its turn.
 *
 * Options: leaseMs (10,000; the others wait that long if this process dies; Infinity: never expires),
 * timeoutMs (Infinity; 0: only try; NotAcquiredError when it is over), signal (an AbortSignal that ends
 * the wait), renew (true), token (your own, if another process shall go on with the same lock), library
 * (path of lock.lua, to load it where it is missing; else: redis-cli -x FUNCTION LOAD < lua/lock.lua),
 * prefix ('lock'). Each wait for a busy lock has a connection of its own, a duplicate of the client.
 */
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

const WAIT_MS = 30_000 // our place in the queue is kept so long after our last call
const CHECK_IN_MS = 2_000 // call at least so often: then a dead waiter in front costs about two seconds
const CALL_MS = 3_000 // until a call without an answer is tried again
const GIVE_UP_MS = 5_000 // how long a release is tried before it is left to the end of the lease
const NOTICE_MS = 500 // the signal aborts so long before the lease ends, or a tenth of the lease if that is less
const TIMER_MAX = 2 ** 31 - 1 // setTimeout fires at once if it is more

/** The lock was busy until the time was over. */
export class NotAcquiredError extends Error {}
/** The lock is not held any more, or may not be: the reason of lock.signal. */
export class LostError extends Error {}

/** Runs work(lock) with the lock, releases it, and returns what work returned. */
export async function withLock(client, name, work, options) {
  const lock = await acquire(client, name, options)
  let failed = true
  try {
    const result = await work(lock)
    failed = false
    return result
  } finally {
    await lock.release().catch((error) => {
      if (!failed) throw error // else what work threw is what the caller has to see
    })
  }
}

/** Waits for the lock. Network trouble is waited out, too. */
export async function acquire(client, name, options = {}) {
  const { leaseMs = 10_000, timeoutMs = Infinity, signal, renew = true, token = randomBytes(16).toString('hex') } = options
  checkLease(leaseMs)
  if (typeof timeoutMs !== 'number' || !(timeoutMs >= 0)) throw new RangeError(`timeoutMs must be a number, not negative: ${timeoutMs}`)
  const functions = new Functions(client, name, options)
  const end = performance.now() + timeoutMs
  let blocker // connected when there is something to wait for
  let failures = 0
  let doubtMs = Infinity // see Lock
  signal?.throwIfAborted()
  try {
    for (;;) {
      const sent = performance.now() // so whatever is slow, the lease ends here before it does there
      const last = sent >= end // WAIT_MS 0: get it now, or leave the queue
      const fate = functions.fate()
      const before = doubtMs
      doubtMs = leaseMs // until it is answered
      try {
        const [held, value, leftMs] = await functions.acquire(token, leaseMs, last ? 0 : WAIT_MS)
        if (fate.answered()) doubtMs = before
        signal?.throwIfAborted()
        if (held) {
          const term = { sent, leaseMs: leftMs < 0 ? Infinity : leftMs }
          if (performance.now() < noticeOf(term)) return new Lock(functions, token, value, { leaseMs, term, doubtMs }, renew)
        } else if (last) {
          throw new NotAcquiredError(`lock "${name}": busy for ${timeoutMs} ms`)
        } else {
          blocker ??= await functions.client.duplicate()
          // What it pops is only a hint: the next call tells, and confirms the full lease.
          const pause = Math.max(10, Math.min(leftMs, CHECK_IN_MS, end - performance.now())) // 0 would be for ever
          await within(pause + CALL_MS, blocker.run(functions.signals, ['BLPOP', functions.signals, (pause / 1000).toFixed(3)]), signal)
        }
        failures = 0
      } catch (error) {
        blocker?.close()
        blocker = undefined
        failures++
        if (fate.refused(error)) doubtMs = before
        if (error instanceof NotAcquiredError || !functions.passes(error) || (last && failures > 2)) throw error
        await sleep(Math.min(1000, 20 * 2 ** failures) * (0.5 + Math.random() / 2), undefined, { signal })
      }
    }
  } catch (error) {
    // Leave the queue, and hand on what was granted meanwhile. Not answered: it lapses.
    if (!(error instanceof NotAcquiredError)) await functions.release(token).catch(() => {})
    signal?.throwIfAborted()
    throw error
  } finally {
    blocker?.close()
  }
}

/** Takes the lock away from whoever holds it, and hands it on. False: nobody held it. */
export async function reset(client, name, options) {
  return (await new Functions(client, name, options).call('FCALL', 'lock_reset')) === 1
}

/** { holder, fence, ttl_ms, waiting, waiters, ... }, see lua/README.md; holder is '' if there is none. */
export async function inspect(client, name, options) {
  const reply = await new Functions(client, name, options).call('FCALL_RO', 'lock_inspect')
  return Object.fromEntries(Array.from({ length: reply.length / 2 }, (_, i) => [String(reply[2 * i]), reply[2 * i + 1]]))
}

/**
 * A lock that is held.
 *
 * No term of it ends later than the server's. Calls are made one at a time, so the server saw none after
 * the last one that it answered; but for those that it did not answer, which may still arrive and shorten
 * the lease. doubtMs is the shortest lease of those: no later term is longer.
 */
export class Lock {
  #functions; #renew; #watch; #renewal; #released
  #kept // { leaseMs: to renew for, term: { sent, leaseMs }: what the server has promised, doubtMs }
  #over = false
  #calls = Promise.resolve()
  #lost = new AbortController()

  constructor(functions, token, fence, kept, renew) {
    Object.assign(this, { name: functions.name, token, fence, signal: this.#lost.signal })
    this.#functions = functions
    this.#renew = renew
    this.#keep(kept)
    this.#schedule()
  }

  /** How long the lock is surely held, by this machine's monotonic clock. */
  get leftMs() {
    return this.#over ? 0 : Math.max(0, deadlineOf(this.#kept.term) - performance.now())
  }

  /**
   * The lease now ends so long from now; renewal goes on with it. LostError: the lock is lost or released.
   * An error of Redis means that nothing has changed. After any other error the call may have been carried
   * out, or may still arrive: then the shorter lease counts, for renewal, for the signal, and as the longest
   * that this lock has from now on, whatever is asked for.
   */
  extend(leaseMs) {
    checkLease(leaseMs)
    return this.#inTurn(() => this.#extend(leaseMs))
  }

  #inTurn(call) {
    return (this.#calls = this.#calls.catch(() => {}).then(call))
  }

  async #extend(leaseMs) {
    const lost = () => new LostError(`lock "${this.name}" is not held any more`)
    if (this.#over) throw lost()
    const before = this.#kept
    const asked = { sent: performance.now(), leaseMs }
    const fate = this.#functions.fate()
    // Until Redis answers, it may have this lease, or not, or get it at any time: the shorter counts.
    this.#keep({
      leaseMs: Math.min(before.leaseMs, leaseMs),
      term: deadlineOf(asked) < deadlineOf(before.term) ? asked : before.term,
      doubtMs: Math.min(before.doubtMs, leaseMs),
    })
    try {
      const held = (await this.#functions.call('FCALL', 'lock_extend', this.token, millis(leaseMs))) === 1
      const { doubtMs } = fate.answered() ? before : this.#kept
      if (held) this.#keep({ leaseMs, term: { ...asked, leaseMs: Math.min(leaseMs, doubtMs) }, doubtMs })
      else this.#lose()
    } catch (error) {
      if (fate.refused(error)) this.#keep(before)
      throw error
    } finally {
      this.#schedule()
    }
    if (this.#over) throw lost()
  }

  /** Hands the lock on. LostError: it was not held any more. */
  release() {
    return (this.#released ??= this.#release())
  }

  [Symbol.asyncDispose]() {
    return this.release()
  }

  async #release() {
    this.#stop()
    let unsure = false // it may have been released, and only the reply was lost
    for (const end = performance.now() + GIVE_UP_MS; ; await sleep(100)) {
      const inTime = performance.now() < deadlineOf(this.#kept.term)
      const breaks = this.#functions.client.breaks()
      try {
        const reply = await this.#functions.release(this.token)
        unsure ||= inTime && this.#functions.client.breaks() > breaks
        if (reply === 1 || (reply === 0 && unsure)) return
        throw new LostError(`lock "${this.name}" had been lost before it was released`)
      } catch (error) {
        if (error instanceof LostError || !this.#functions.passes(error) || performance.now() > end) throw error
        unsure ||= inTime
      }
    }
  }

  /** The only place that changes until when the lock is held, and the time of the notice with it. */
  #keep(kept) {
    if (this.#over) return
    this.#kept = kept
    this.#tick()
  }

  #tick() {
    clearTimeout(this.#watch)
    const left = noticeOf(this.#kept.term) - performance.now()
    if (left <= 0) this.#lose()
    else this.#watch = setTimeout(() => this.#tick(), Math.min(Math.ceil(left), TIMER_MAX))
  }

  /** Renews when a third of the lease has passed, and after an error of any kind soon again. */
  #schedule() {
    clearTimeout(this.#renewal)
    const { sent, leaseMs } = this.#kept.term
    if (this.#over || !this.#renew || leaseMs === Infinity) return
    const pause = Math.max(Math.min(500, leaseMs / 20), sent + leaseMs / 3 - performance.now())
    this.#renewal = setTimeout(() => {
      this.#inTurn(() => this.#extend(this.#kept.leaseMs)).catch(() => {})
    }, Math.min(pause, TIMER_MAX))
  }

  #stop() {
    this.#over = true
    clearTimeout(this.#watch)
    clearTimeout(this.#renewal)
  }

  #lose() {
    if (this.#over) return
    this.#stop()
    this.#lost.abort(new LostError(`lock "${this.name}" is lost, or may be`))
  }
}

/** The function library, for one lock. */
class Functions {
  constructor(client, name, { library, prefix = 'lock' } = {}) {
    if (typeof name !== 'string' || name === '' || name.startsWith('}')) {
      throw new RangeError(`the name of a lock must be a string, not empty and not beginning with '}': ${name}`)
    }
    // All keys of a lock must share a hash tag: the {tag} in the name, or else the whole name.
    const tagged = /^[^{]*\{[^}]+\}/.test(name) ? name : `{${name}}`
    this.name = name
    this.library = library
    this.client = adapt(client)
    this.keys = [`${prefix}:${tagged}`, `${prefix}-queue:${tagged}`, `${prefix}-state:${tagged}`]
    this.signals = `${prefix}-signal:${tagged}:${randomBytes(8).toString('hex')}` // of one wait: never stale
  }

  acquire(token, leaseMs, waitMs) {
    return this.#run(['FCALL', 'lock_acquire', '4', ...this.keys, this.signals, token, millis(leaseMs), String(waitMs)])
  }

  release(token) {
    return this.call('FCALL', 'lock_release', token)
  }

  call(command, name, ...args) {
    return this.#run([command, name, '3', ...this.keys, ...args])
  }

  /**
   * What becomes of the call that is made next: answered() or refused(error) by Redis, and no copy of it
   * is under way. ioredis sends again by itself what had no answer when a connection broke.
   */
  fate() {
    const before = this.client.breaks()
    const answered = () => this.client.breaks() === before
    return { answered, refused: (error) => codeOf(error) !== undefined && answered() }
  }

  /** Whether the same call may succeed later without anybody's doing. */
  passes(error) {
    const code = codeOf(error)
    if (code) return /^(LOADING|BUSY|READONLY|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|UNBLOCKED|MASTERDOWN)$/.test(code)
    return !(error instanceof TypeError) && error.syscall !== 'open' && !this.client.closed()
  }

  async #run(args) {
    const run = () => within(CALL_MS, this.client.run(this.keys[0], args))
    try {
      return await run()
    } catch (error) {
      if (!/Function not found/.test(error.message)) throw error
      if (!this.library) {
        throw new Error('ERR the server does not have the library: redis-cli -x FUNCTION LOAD < lua/lock.lua ' +
          "(on each primary), or pass { library: 'lua/lock.lua' }", { cause: error })
      }
      await this.client.load(await readFile(this.library, 'utf8')).catch((e) => {
        if (!/already exists/.test(e.message)) throw e // else somebody was faster
      })
      return await run()
    }
  }
}

const BREAKS = Symbol('how many connections broke')

/** What is needed of a client: run(key, args), breaks(), load(code), closed(), duplicate() with close(). */
function adapt(client) {
  const quietly = (copy) => copy.on('error', () => {}) // the call that fails tells
  if (typeof client.call === 'function') { // ioredis
    if (client[BREAKS] === undefined) { // what then got no answer, it sends again by itself
      client[BREAKS] = 0
      client.on(client.isCluster ? '-node' : 'close', () => client[BREAKS]++)
    }
    return {
      run: (_key, args) => client.call(...args),
      breaks: () => client[BREAKS],
      load: (code) => Promise.all((client.isCluster ? client.nodes('master') : [client]).map((node) => node.call('FUNCTION', 'LOAD', code))),
      closed: () => client.status === 'end',
      duplicate: async () => adapt(quietly(client.duplicate())),
      close: () => client.disconnect(),
    }
  }
  const cluster = Array.isArray(client.masters)
  if (!cluster && typeof client.createPool !== 'function') { // a pool, or one of createSentinel, is something else
    throw new TypeError("the client must be of redis' createClient or createCluster, or of ioredis' Redis (for Sentinel, too) or Cluster")
  }
  const run = cluster // which sends by key
    ? (key, args) => client.sendCommand(key, false, args)
    : (_key, args) => client.sendCommand(args)
  return {
    run,
    breaks: () => 0,
    load: (code) => run(undefined, ['FUNCTION', 'LOAD', code]), // in a cluster, to all primaries
    closed: () => !client.isOpen,
    duplicate: async () => {
      const copy = quietly(client.duplicate({ minimizeConnections: true }))
      await within(CALL_MS, copy.connect()).catch((error) => {
        copy.destroy()
        throw error
      })
      return adapt(copy)
    },
    close: () => client.destroy(),
  }
}

function checkLease(ms) {
  if (typeof ms !== 'number' || !(ms >= 1000)) throw new RangeError(`leaseMs must be a number, at least 1000, or Infinity for never: ${ms}`)
}

const deadlineOf = ({ sent, leaseMs }) => sent + leaseMs

const noticeOf = (term) => deadlineOf(term) - Math.min(term.leaseMs / 10, NOTICE_MS)

/** The first word of an error reply; undefined: it is not an answer of Redis. */
const codeOf = (error) => /^([A-Z]{2,}) /.exec(error.message)?.[1]

const millis = (ms) => String(ms === Infinity ? 0 : Math.ceil(ms))

/** The promise, but not longer than that, nor than the signal allows. */
function within(ms, promise, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => settle(reject)(new Error(`no answer within ${Math.round(ms)} ms`)), ms)
    const abort = () => settle(reject)(signal.reason)
    const settle = (how) => (value) => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
      how(value)
    }
    promise.then(settle(resolve), settle(reject))
    if (signal?.aborted) abort()
    else signal?.addEventListener('abort', abort)
  })
}
