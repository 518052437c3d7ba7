/// <reference lib="esnext.disposable" />
import { ArgumentError, CallError, ClosedError, LostError, NotHeldError } from './errors'
import type { Hold } from './hold'
import type { Keys } from './keys'
import { CALL_MS, type Server } from './server'
import { Alarm, now, pause } from './time'
import { backoff } from './wait'
import { millis, parseNumber } from './wire'

/** How long a release is tried. After that the lock is left to its lease. */
export const RELEASE_MS = 5000

/** What a Lock needs of its Locker. */
export interface Keeper {
  readonly server: Server
  /** It is not held any more. Until `ended`, the server may say that it is. */
  over(lock: Lock, type: 'released' | 'lost', ended: number, error?: unknown): void
}

/**
 * A lock that is held.
 *
 * Make one with a Locker. `await using lock = await locker.acquire(...)` releases it at the end of the block.
 */
export class Lock {
  readonly name: string
  /** What Redis knows the holder by. Another process that has it can go on with the lock. */
  readonly token: string
  /** Grows with each grant of this name. Have storage refuse one that is lower than the last it saw. */
  readonly fence: number
  /**
   * Aborts when the lock may be lost, with a LostError: stop then. It aborts ahead of the end of the lease,
   * by a tenth of the lease and 500 ms at most. A timer that calls nothing does it. It comes too late only
   * if the event loop does not get its turn, if the process stands still, or if the server's clock is put
   * forward. After a reset it comes with the next renewal.
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
    // They do not keep the process alive: a release that was forgotten must not.
    this.#notice = new Alarm(() => this.#ring(), false)
    this.#renewal = new Alarm(() => this.#renew(), false)
    this.#arm()
  }

  /** How long the lock is surely held, ms; 0: not any more; Infinity: it never expires. */
  get left(): number {
    this.#ring()
    return this.#hold.isHeld ? Math.max(0, this.#hold.deadline - now()) : 0
  }

  /**
   * The lease now ends so many ms from now; renewal goes on with it.
   *
   * A NotHeldError: the lock is lost or released. A ReplyError: nothing has changed. An UnavailableError: the
   * call may have been carried out, or may still arrive. Then the shorter lease counts, for renewal, for
   * the signal, and as the longest that this lock has from now on.
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
   * Hands the lock on. It tries for 5 s; then the error is an UnavailableError, the lock ends with its lease, and
   * release can be called again. A NotHeldError: the lock had been lost before.
   */
  release(): Promise<void> {
    this.#releasing ??= this.#release().catch((error) => {
      if (!(error instanceof NotHeldError)) this.#releasing = undefined
      throw error
    })
    return this.#releasing
  }

  /** Leaves the lock to its lease, for another process that goes on with its token. Returns how long that is, ms. */
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

  /** @internal The Locker is closed: no more renewal. */
  abandon(): void {
    this.#hold.wakeAt = Infinity
    this.#abort.abort(new ClosedError(`redislock: lock "${this.name}": the Locker is closed`))
  }

  async #release(): Promise<void> {
    const wasHeld = this.#hold.isHeld
    const back = this.#hold.returns(now())
    this.#arm()
    this.#abort.abort(new NotHeldError(`redislock: lock "${this.name}" was released`))
    let error: unknown
    try {
      // A renewal under way that arrives later would undo the minimum hold.
      if (back.call === 'extend') await this.#turn
      await this.#giveBack(back.call === 'extend' ? back.lease : undefined)
    } catch (caught) {
      error = caught
      throw caught
    } finally {
      if (wasHeld) {
        const lost = error instanceof NotHeldError
        const ended = back.call === 'extend' ? now() + back.lease : now()
        this.#keeper.over(this, lost ? 'lost' : 'released', ended, error)
      }
    }
  }

  async #giveBack(lease: number | undefined): Promise<void> {
    const end = now() + RELEASE_MS
    for (let failures = 0; ; failures++) {
      try {
        const patience = { ms: Math.min(CALL_MS, end - now()), holds: true }
        const { value } =
          lease === undefined
            ? await this.#keeper.server.fcall('lock_release', this.#keys, [this.token], patience)
            : await this.#keeper.server.fcall(
                'lock_extend',
                this.#keys,
                [this.token, millis(lease)],
                patience,
              )
        if (this.#hold.wasHeld(parseNumber('lock_release', value))) return
        throw new NotHeldError(
          `redislock: lock "${this.name}" had been lost before it was released`,
        )
      } catch (error) {
        if (!(error instanceof CallError)) throw error
        this.#hold.returnFailed(now(), error)
        if (!error.passes || now() >= end) throw error.public('release', this.name)
        await pause(Math.min(backoff(failures), Math.max(0, end - now())), true)
        if (now() >= end) throw error.public('release', this.name)
      }
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
      if (asked !== undefined) await this.#send(asked, { ms, holds: false })
    }).catch(() => {}) // it is tried again
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
      const failure =
        error instanceof CallError
          ? error
          : new CallError(error, { passes: false, mayArrive: true })
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
    this.#keeper.over(this, 'lost', this.#hold.deadline, error)
  }

  #arm(): void {
    this.#notice.set(this.#hold.noticeAt)
    this.#renewal.set(this.#hold.isHeld && !this.signal.aborted ? this.#hold.wakeAt : Infinity)
  }
}

// Not in all of Node.js 18: then there is no `await using` either.
if (Symbol.asyncDispose) {
  Object.defineProperty(Lock.prototype, Symbol.asyncDispose, {
    value(this: Lock) {
      return this.release()
    },
  })
}

export interface Lock extends AsyncDisposable {}

/** Several locks that are held together. */
export class Locks implements Iterable<Lock> {
  /** In the order in which they were taken: that of their keys. */
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

  /** The lock of this name, as it was asked for. */
  get(name: string): Lock | undefined {
    return this.all.find(
      (lock) => lock.name === name || lock.name === `{${name}}` || name === `{${lock.name}}`,
    )
  }

  /** Hands all of them on, the last one first. The error is the first one's that had one. */
  async release(): Promise<void> {
    let failed: { error: unknown } | undefined
    for (const lock of [...this.all].reverse()) {
      await lock.release().catch((error) => {
        failed ??= { error }
      })
    }
    if (failed) throw failed.error
  }
}

if (Symbol.asyncDispose) {
  Object.defineProperty(Locks.prototype, Symbol.asyncDispose, {
    value(this: Locks) {
      return this.release()
    },
  })
}

export interface Locks extends AsyncDisposable {}
