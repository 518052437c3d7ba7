import { onAbort } from './abort'
import {
  BusyError,
  CallError,
  ClosedError,
  LockError,
  LostError,
  QueueFullError,
  textOf,
  UnavailableError,
} from './errors'
import type { Keys } from './keys'
import type { Grant } from './lease'
import type { Request, Settings } from './options'
import { type Blocker, CALL_MS, type Server } from './server'
import { Alarm, now, pause } from './time'
import { backoff, FOREMOST_MS, type Line, Undo, Wait } from './wait'
import { millis, parseAcquired, parseSignal, type Signal } from './wire'

/** How long a try takes at most. */
export const TRY_MS = 3000
/** With more contended locks than this, the first waiter of each calls less often, still within a handed-over lease. */
const MANY_LOCKS = 100
const CROWD_MS = 1500
/** With more waiters than this for a lock, Redis keeps their places longer: together they call 40 times a second. */
const PLACE_MS = 75
const MAX_WAIT_MS = 86_400_000
/** How many past waits the hub remembers. */
const PAST_MAX = 8192
/** How long after the end of a wait a signal may come that was sent before. */
const LATE_SIGNAL_MS = 1000
/** How long to try to give up a past wait that got the lock again. */
const AGAIN_MS = 5000
/** The shortest time between two reports of trouble. */
const REPORT_MS = 60_000

interface Waiter {
  readonly keys: Keys
  readonly request: Request
  readonly op: string
  readonly wait: Wait
  readonly line: SharedLine
  readonly began: number
  readonly alarm: Alarm
  readonly limit: Alarm
  /** The signal list in which it is registered. */
  popper: Popper | undefined
  /** Only its place or lock is left to give up. */
  isOver: boolean
  isUndoing: boolean
  end: (grant: Grant | LockError | { reason: unknown }) => void
}

/** This client's waiters for one lock, in order. */
interface SharedLine extends Line {
  readonly waiters: Set<Waiter>
}

/** Pops a signal list while somebody waits for a signal in it. */
interface Popper extends Blocker {
  readonly list: string
  count: number
}

/** Delivers signals to the waiters. */
export class Hub {
  readonly #server: Server
  readonly #settings: Settings
  readonly #id: string
  #closed = false
  #waiters = new Map<string, Set<Waiter>>() // by token
  #lines = new Map<string, SharedLine>() // by the lock's key
  #poppers = new Map<string, Popper>() // by list
  #leaving = new Map<string, Promise<void>>() // by token
  #past = new Map<string, { keys: Keys; ended: number }>() // by token
  #reported = -Infinity

  constructor(server: Server, settings: Settings, id: string) {
    this.#server = server
    this.#settings = settings
    this.#id = id
  }

  get waiting(): number {
    let count = 0
    for (const line of this.#lines.values()) count += line.waiters.size
    return count
  }

  /** How many signal lists have a popper. */
  get popping(): number {
    return this.#poppers.size
  }

  /** Takes the lock, or waits for it. */
  async obtain(op: string, keys: Keys, request: Request): Promise<Grant> {
    const { signal } = request
    if (signal?.aborted) throw signal.reason
    if (this.#closed) throw new ClosedError(`redislock: ${op} "${keys.name}": the Locker is closed`)
    const began = now()
    // An earlier wait with the same token must not give up this wait's place.
    if (request.ownToken) await this.#leaving.get(request.token)
    const isTry = request.wait === 0
    const line = this.#lines.get(keys.lock) ?? { waiters: new Set() }
    const { firstLease, ownToken, minHold, queueLimit } = request
    const asking = { lease: firstLease, isTry, ownToken, keeps: minHold > 0, queueLimit }
    const wait = new Wait(asking, line, now())
    wait.paced = (ms) =>
      ms >= FOREMOST_MS && this.#lines.size > MANY_LOCKS ? Math.max(ms, CROWD_MS) : ms

    const result = await new Promise<Grant | LockError | { reason: unknown }>((end) => {
      const waiter: Waiter = {
        keys,
        request,
        op,
        wait,
        line,
        began,
        alarm: new Alarm(() => this.#step(waiter), true),
        limit: new Alarm(() => expire(), true),
        popper: undefined,
        isOver: false,
        isUndoing: false,
        end,
      }
      const expire = () => {
        wait.expire(now())
        this.#step(waiter)
      }
      this.#add(waiter)
      waiter.limit.set(isTry ? began + TRY_MS : began + request.wait)
      const unlisten = signal && onAbort(signal, expire)
      const settle = waiter.end
      waiter.end = (result) => {
        unlisten?.()
        settle(result)
      }
      this.#step(waiter)
    })
    if (result instanceof LockError) throw result
    if ('reason' in result) throw result.reason
    return result
  }

  /** Ends all waits, and all later ones at once. */
  close(): void {
    this.#closed = true
    this.#endAll(
      () => true,
      (w) => new ClosedError(`redislock: ${w.op} "${w.keys.name}": the Locker is closed`),
    )
  }

  /** Resolves when the leavers have finished. */
  async settled(): Promise<void> {
    while (this.#leaving.size > 0) await Promise.all(this.#leaving.values())
  }

  /** Notes the end of a wait: it was given up, or its lock was released or lost. */
  remember(keys: Keys, token: string, ended: number): void {
    if (this.#past.has(token)) return
    this.#past.set(token, { keys, ended })
    if (this.#past.size <= PAST_MAX) return
    for (const oldest of this.#past.keys()) {
      this.#past.delete(oldest)
      break
    }
  }

  #add(w: Waiter): void {
    const same = this.#waiters.get(w.request.token) ?? new Set()
    this.#waiters.set(w.request.token, same.add(w))
    if (w.request.wait === 0) return
    this.#lines.set(w.keys.lock, w.line)
    w.line.waiters.add(w)
    w.wait.isForemost = w.line.waiters.size === 1
  }

  #remove(w: Waiter): void {
    const same = this.#waiters.get(w.request.token)
    same?.delete(w)
    if (same?.size === 0) this.#waiters.delete(w.request.token)
    if (w.popper) w.popper.count--
    if (!w.line.waiters.delete(w)) return
    if (w.line.waiters.size === 0) this.#lines.delete(w.keys.lock)
    for (const foremost of w.line.waiters) {
      if (!foremost.wait.isForemost) {
        foremost.wait.isForemost = true
        this.#step(foremost) // the foremost calls sooner
      }
      break
    }
  }

  /** Takes the next step of a wait: a call, a sleep, or the end. */
  #step(w: Waiter): void {
    const { wait } = w
    if (wait.outcome && !w.isOver) {
      w.isOver = true
      w.limit.set(Infinity)
      this.#remove(w)
    }
    if (wait.undo && !w.isUndoing) {
      w.isUndoing = true
      const { keys, request } = w
      this.#giveUp(keys, request.token, wait.undo, request).then(() => this.#step(w))
    }
    if (wait.outcome) {
      const tellBy = wait.undo?.over ? 0 : wait.tellBy
      w.alarm.set(now() < tellBy ? tellBy : Infinity)
      if (now() >= tellBy || wait.outcome.kind === 'held') w.end(this.#resultOf(w))
      return
    }
    if (wait.wakeAt <= now()) this.#call(w)
    else w.alarm.set(wait.wakeAt)
  }

  #call(w: Waiter): void {
    const { wait, keys, request } = w
    w.alarm.set(Infinity)
    const waitMs = Math.max(this.#settings.waitTtl, w.line.waiters.size * PLACE_MS)
    const kept = request.wait > 0 ? Math.min(waitMs, MAX_WAIT_MS) : 0
    wait.calls(now(), kept)
    this.#acquire(keys, request, kept, true)
      .then(
        (reply) => {
          wait.answered(now(), reply)
          if (!wait.outcome) this.#listen(w)
        },
        (error: CallError) => {
          wait.failed(now(), error, error)
          if (wait.trouble) this.#report(w)
        },
      )
      .then(() => this.#step(w))
  }

  async #acquire(keys: Keys, request: Request, waitMs: number, holds: boolean) {
    const { token, firstLease, holders } = request
    const args = [token, millis(firstLease), String(waitMs)]
    if (holders !== 1) args.push(String(holders))
    const send = () =>
      this.#server.fcall('lock_acquire', keys, args, { ms: CALL_MS, holds }, this.#list(keys))
    const answer = await send().catch((error: CallError) => {
      // A cluster, although the client is not a cluster client (a proxy, say).
      if (!/^CROSSSLOT /.test(error.message) || this.#server.perLock) throw error
      this.#server.perLock = true
      return send()
    })
    try {
      return parseAcquired(answer.value, answer.sent, firstLease)
    } catch (error) {
      throw new CallError(error, { passes: false, mayArrive: true })
    }
  }

  #list(keys: Keys): string {
    const { prefix } = this.#settings
    return `${prefix}-signal:${this.#server.perLock ? `${keys.tagged}:` : ''}${this.#id}`
  }

  /** The result for the caller. */
  #resultOf({ op, keys, request, wait, began }: Waiter): Grant | LockError | { reason: unknown } {
    const { outcome } = wait
    if (outcome?.kind === 'held') return outcome.grant
    const what = `redislock: ${op} "${keys.name}"`
    switch (outcome?.kind) {
      case 'busy':
        return new BusyError(`${what}: somebody holds the lock, or waits for it`)
      case 'full':
        return new QueueFullError(`${what}: ${outcome.before} wait already`)
      case 'late':
        return new LostError(
          `${what}: a lease of ${request.firstLease} ms had run out when the grant arrived ` +
            `(round trip ${Math.round(outcome.roundTrip)} ms): use a longer one`,
        )
      case 'failed':
        if (outcome.error instanceof CallError) return outcome.error.public(op, keys.name)
        if (outcome.error instanceof LockError) return outcome.error
    }
    if (request.signal?.aborted) return { reason: request.signal.reason }
    const ms = Math.round(now() - began)
    const trouble =
      wait.trouble === undefined ? '' : `; the last call failed: ${textOf(wait.trouble)}`
    if (wait.busy) return new BusyError(`${what}: busy for ${ms} ms${trouble}`, wait.trouble)
    return new UnavailableError(`${what}: no answer within ${ms} ms${trouble}`, wait.trouble)
  }

  /** Makes a popper pop the signals for it. */
  #listen(w: Waiter): void {
    const list = this.#list(w.keys)
    if (w.popper?.list === list) return
    if (w.popper) w.popper.count--
    let popper = this.#poppers.get(list)
    if (!popper) {
      popper = { list, count: 0, link: undefined }
      this.#poppers.set(list, popper)
      this.#pop(popper)
    }
    w.popper = popper
    popper.count++
  }

  async #pop(popper: Popper): Promise<void> {
    await undefined // lets the first waiter register
    for (let failures = 0; popper.count > 0; ) {
      try {
        const most = this.#server.perLock ? 1 : this.#lines.size
        this.#deliver(await this.#server.pop(popper, popper.list, most))
        failures = 0
      } catch (error) {
        if (error instanceof CallError && !error.passes) {
          this.#endAll(
            (w) => w.popper === popper,
            (w) => error.public(w.op, w.keys.name),
          )
        }
        await pause(backoff(failures++), false)
      }
    }
    this.#poppers.delete(popper.list)
    this.#server.park(popper)
  }

  /**
   * Brings signals to the waiters with their tokens. A signal for a past wait is usually just late. But after a
   * failover that lost the last writes, the queue has past waits again. Each would keep the lock for the 2 s of a
   * dead waiter. So when one of them gets the lock, all past waits for that lock are given up.
   */
  #deliver(elements: string[]): void {
    for (const element of elements) {
      const signal = parseSignal(element)
      if (signal) this.#tell(signal)
    }
  }

  #tell(signal: Signal): void {
    const waiters = this.#waiters.get(signal.token)
    for (const w of [...(waiters ?? [])]) {
      w.wait.told(now(), signal)
      this.#step(w)
    }
    const over = this.#past.get(signal.token)
    if (waiters || !over || now() < over.ended) return
    this.#again(over.keys, signal.token)
    if (now() - over.ended <= LATE_SIGNAL_MS) return
    for (const [token, other] of this.#past) {
      if (other.keys.lock !== over.keys.lock || now() - other.ended <= LATE_SIGNAL_MS) continue
      other.ended = now()
      this.#again(other.keys, token)
    }
  }

  #again(keys: Keys, token: string): void {
    if (!this.#leaving.has(token)) this.#giveUp(keys, token, new Undo(now(), AGAIN_MS, true))
  }

  /** Gives up a wait. A wait with the caller's own token needs its request, to ask again. */
  #giveUp(keys: Keys, token: string, undo: Undo, request?: Request): Promise<void> {
    const leaving = this.#undo(keys, token, undo, request).finally(() => {
      if (this.#leaving.get(token) === leaving) this.#leaving.delete(token)
      if (!request?.ownToken) this.remember(keys, token, now())
    })
    this.#leaving.set(token, leaving)
    return leaving
  }

  async #undo(keys: Keys, token: string, undo: Undo, request?: Request): Promise<void> {
    while (!undo.over) {
      await pause(Math.max(0, undo.wakeAt - now()), false)
      undo.calls()
      try {
        if (undo.call === 'release' || !request) {
          const patience = { ms: CALL_MS, holds: false }
          await this.#server.fcall('lock_release', keys, [token], patience)
          undo.released()
        } else {
          undo.asked(now(), await this.#acquire(keys, request, 0, false))
        }
      } catch (error) {
        undo.failed(now(), error as CallError)
      }
    }
  }

  #endAll(which: (w: Waiter) => boolean, why: (w: Waiter) => LockError): void {
    for (const same of [...this.#waiters.values()]) {
      for (const w of [...same]) {
        if (!which(w)) continue
        w.wait.fail(now(), why(w))
        this.#step(w)
      }
    }
  }

  #report(w: Waiter): void {
    if (w.request.wait === 0 || now() - this.#reported < REPORT_MS) return
    this.#reported = now()
    this.#settings.onEvent?.({
      type: 'trouble',
      name: w.keys.name,
      waiting: this.waiting,
      error: w.wait.trouble,
    })
  }
}
