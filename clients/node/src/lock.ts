/// <reference lib="esnext.disposable" />
import { ArgumentError, CallError, ClosedError, LostError, NotHeldError } from './errors'
import type { Hold } from './hold'
import type { Keys } from './keys'
import { CALL_MS, type Server } from './server'
import { Alarm, now, pause } from './time'
import { millis, parseNumber } from './wire'

/** The part of the Locker that a Lock uses. */
export interface Keeper {
  readonly server: Server
  /** The lock is over. Ignore signals for it that come before `ended`. */
  over(lock: Lock, type: 'released' | 'lost', ended: number, error?: unknown): void
}

/**
 * A held lock.
 *
 * Make one with a Locker. `await using lock = await locker.acquire(...)` releases it at the end of the block.
 */
export class Lock {
  readonly name: string
  /** The token by which Redis knows the holder. Another process with the token can go on with the lock. */
  readonly token: string
  /** Grows with each grant of this name. Have the storage refuse a lower one than it has seen. */
  readonly fence: number
  /**
   * Aborts with a LostError when the lock may be lost: stop then. It aborts ahead of the end of the lease, by a
   * tenth of the lease and at most 500 ms. A timer does it, without any call. It is too late only if the event
   * loop is blocked, the process stands still, or the server's clock is put forward. After a reset it aborts with
   * the next renewal.
   */
  readonly signal: AbortSignal

  readonly #keeper: Keeper
  readonly #keys: Keys
  readonly #hold: Hold
  readonly #abort = new AbortController()
  readonly #notice: Alarm
  readonly #renewal: Alarm
  #turn: Promise<unknown> = Promise.resolve() // one lock_extend at a time
  #releasing: Promise<void> | undefined

  /** @internal */
  constructor(keeper: Keeper, keys: Keys, token: string, fence: number, hold: Hold) {
    this.name = keys.name
    this.token = token
    this.fence = fence
    this.signal = this.#abort.signal
    this.#keeper = keeper
    this.#keys = keys
    this.#hold = hold
    // These timers do not keep the process alive: a forgotten release must not.
    this.#notice = new Alarm(() => this.#ring(), false)
    this.#renewal = new Alarm(() => this.#renew(), false)
    this.#arm()
  }

  /** How long the lock is surely still held, ms; 0: it is over; Infinity: it never expires. */
  get left(): number {
    this.#ring()
    return this.#hold.isHeld ? Math.max(0, this.#hold.deadline - now()) : 0
  }

  /**
   * Makes the lease end this many ms from now; renewal goes on with it.
   *
   * - NotHeldError: the lock is lost or released.
   * - ReplyError: nothing has changed.
   * - UnavailableError: Redis may have carried the call out, or may still do so. From then on the shorter lease
   *   counts, for renewal, for the signal, and for later calls of extend.
   */
  async extend(lease: number): Promise<void> {
    if (typeof lease !== 'number' || !(lease >= 100)) {
      throw new ArgumentError(
        `redislock: lease must be a number of milliseconds, at least 100, or Infinity: ${lease}`,
      )
    }
    await this.#inTurn(() => this.#extend(lease))
  }

  /**
   * Gives the lock back, and hands it to the next waiter.
   *
   * - NotHeldError: the lock had been lost before.
   * - UnavailableError: Redis did not answer for 5 s. Then the lock ends with its lease; release can be called again.
   */
  release(): Promise<void> {
    this.#releasing ??= this.#release().catch((error) => {
      if (!(error instanceof NotHeldError)) this.#releasing = undefined
      throw error
    })
    return this.#releasing
  }

  // Some of Node.js 18 has no such symbol; it has no `await using` either.
  [Symbol.asyncDispose](): Promise<void> {
    return this.release()
  }

  /** Leaves the lock to its lease, for another process with its token. Returns the rest of the lease, ms. */
  detach(): number {
    const { left } = this
    if (this.#hold.isHeld) {
      this.#hold.returned = true
      this.#arm()
      this.#abort.abort(new NotHeldError(`redislock: lock "${this.name}" was left to its lease`))
      this.#keeper.over(this, 'released', this.#hold.deadline)
    }
    return left
  }

  /** @internal The Locker is closed: renewal ends. */
  abandon(): void {
    this.#hold.wakeAt = Infinity
    this.#abort.abort(new ClosedError(`redislock: lock "${this.name}": the Locker is closed`))
  }

  /** @internal The caller does not get the lock. */
  giveUp(): Promise<void> {
    this.#hold.keepsNothing()
    return this.release()
  }

  async #release(): Promise<void> {
    const wasHeld = this.#hold.isHeld
    this.#hold.release(now())
    this.#arm()
    this.#abort.abort(new NotHeldError(`redislock: lock "${this.name}" was released`))
    while (!this.#hold.verdict) {
      await pause(Math.max(0, this.#hold.returnAt - now()), true)
      await this.#giveBack(this.#hold.returns(now()))
    }
    const error = this.#failed()
    if (wasHeld) {
      const type = error instanceof NotHeldError ? 'lost' : 'released'
      this.#keeper.over(this, type, Math.max(now(), this.#hold.keepUntil), error)
    }
    if (error) throw error
  }

  #failed(): Error | undefined {
    const { verdict } = this.#hold
    if (verdict?.kind === 'notHeld') {
      return new NotHeldError(`redislock: lock "${this.name}" had been lost before it was released`)
    }
    if (verdict?.kind === 'failed') return (verdict.error as CallError).public('release', this.name)
    return undefined
  }

  async #giveBack(kept: number): Promise<void> {
    // A renewal that arrives later would undo the minimum hold.
    if (kept > 0) await this.#turn
    const call = kept > 0 ? 'lock_extend' : 'lock_release'
    const args = kept > 0 ? [this.token, millis(kept)] : [this.token]
    const patience = { ms: Math.min(CALL_MS, this.#hold.returnEnd - now()), holds: true }
    try {
      const { value } = await this.#keeper.server.fcall(call, this.#keys, args, patience)
      this.#hold.answered(parseNumber(call, value))
    } catch (error) {
      const failure = asCallError(error)
      this.#hold.returnFailed(now(), failure, failure)
    }
  }

  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(run)
    this.#turn = result.catch(() => {})
    return result
  }

  async #extend(lease: number): Promise<void> {
    const asked = this.#hold.extends(now(), lease)
    this.#arm()
    if (asked === undefined) this.#ring()
    else await this.#send(asked, { ms: CALL_MS, holds: true })
    if (!this.#hold.isHeld) {
      throw new NotHeldError(
        `redislock: extend "${this.name}": ${this.#hold.lost ?? 'it was released'}`,
      )
    }
  }

  #renew(): void {
    this.#inTurn(async () => {
      const left = this.#hold.noticeAt - now()
      const asked = this.#hold.renews(now())
      this.#arm()
      // Soon enough for another try on a new connection.
      const ms = Math.min(CALL_MS, Math.max(50, left / 2))
      if (asked === undefined) this.#ring()
      else await this.#send(asked, { ms, holds: false })
    }).catch(() => {}) // retried
  }

  async #send(lease: number, patience: { ms: number; holds: boolean }): Promise<void> {
    try {
      const { value, sent } = await this.#keeper.server.fcall(
        'lock_extend',
        this.#keys,
        [this.token, millis(lease)],
        patience,
      )
      if (this.#hold.extended(now(), sent, parseNumber('lock_extend', value) === 1)) this.#lost()
    } catch (error) {
      const failure = asCallError(error)
      this.#hold.failed(now(), failure)
      throw failure.public('extend', this.name)
    } finally {
      this.#arm()
    }
  }

  #ring(): void {
    if (this.#hold.ring(now())) this.#lost()
    else this.#arm()
  }

  #lost(): void {
    const error = new LostError(
      `redislock: lock "${this.name}" is lost, or may be: ${this.#hold.lost}`,
    )
    this.#abort.abort(error)
    this.#arm()
    const ended = Math.max(this.#hold.deadline, this.#hold.keepUntil)
    this.#keeper.over(this, 'lost', ended, error)
  }

  #arm(): void {
    this.#notice.set(this.#hold.noticeAt)
    this.#renewal.set(this.#hold.isHeld && !this.signal.aborted ? this.#hold.wakeAt : Infinity)
  }
}

/** A reply that the function library does not make is an error, too. */
function asCallError(error: unknown): CallError {
  return error instanceof CallError
    ? error
    : new CallError(error, { passes: false, mayArrive: true })
}

/** Several locks that are held together. */
export class Locks implements Iterable<Lock> {
  /** In the order of their keys, in which they were taken. */
  readonly all: readonly Lock[]
  /** Aborts when one of them may be lost. */
  readonly signal: AbortSignal

  /** @internal */
  constructor(all: readonly Lock[], signal: AbortSignal) {
    this.all = all
    this.signal = signal
  }

  [Symbol.iterator](): Iterator<Lock> {
    return this.all[Symbol.iterator]()
  }

  /** The lock of this name, as the caller wrote it. */
  get(name: string): Lock | undefined {
    return this.all.find(
      (lock) => lock.name === name || lock.name === `{${name}}` || name === `{${lock.name}}`,
    )
  }

  /** Gives all locks back, the last one first, and rejects with the first error. */
  async release(): Promise<void> {
    let failed: { error: unknown } | undefined
    for (const lock of [...this.all].reverse()) {
      await lock.release().catch((error) => {
        failed ??= { error }
      })
    }
    if (failed) throw failed.error
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release()
  }
}
