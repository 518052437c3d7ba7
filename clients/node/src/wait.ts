import { earliest, newer, type ServerClock } from './clock'
import { type Grant, HANDED_MS, noticeOf } from './lease'
import type { Acquired, Signal } from './wire'

/** How often this client's first waiter for a lock calls at least, so a dead waiter in front of it costs seconds. */
export const FOREMOST_MS = 1000
/** How many grants may arrive too late before the wait fails: the network is too slow for the lease. */
const MAX_LATE = 3
/** How often a try is sent while Redis is in trouble. */
const TRY_CALLS = 3
/** How long a call waits until its place is given up, while Redis answers. */
const UNDO_MS = 500

export interface Asking {
  /** The lease to ask for; Infinity: never expires. */
  readonly lease: number
  /** Do not wait. */
  readonly isTry: boolean
  /** The token is the caller's own: another process may hold the lock with the token. */
  readonly ownToken: boolean
  /** The server must know a minimum hold before the work begins, in case the holder dies. */
  readonly keeps: boolean
  /** Do not wait behind this many others, or more. */
  readonly queueLimit: number
}

/** The common knowledge of this client's waiters for one lock. */
export interface Line {
  clock?: ServerClock
}

/** The end of a wait. */
export type Outcome =
  | { readonly kind: 'held'; readonly grant: Grant }
  /** The time was over. */
  | { readonly kind: 'unserved' }
  /** A try: somebody holds the lock or waits for it. */
  | { readonly kind: 'busy' }
  /** How many wait already. */
  | { readonly kind: 'full'; readonly before: number }
  /** Every grant had run out when it arrived. */
  | { readonly kind: 'late'; readonly roundTrip: number }
  | { readonly kind: 'failed'; readonly error: unknown }

export interface Failure {
  readonly passes: boolean
  readonly mayArrive: boolean
}

/**
 * One wait for a lock, without I/O: it takes the time and the events, and returns the next step.
 *
 * Call calls() at `wakeAt`, send lock_acquire, and report the result with answered() or failed(). When there is an
 * `outcome`, tell the caller at `tellBy`, or at the end of `undo` if that is sooner.
 */
export class Wait {
  outcome: Outcome | undefined
  /** Gives up the place or the lock that the wait may have. */
  undo: Undo | undefined
  tellBy = 0
  calling = false
  /** Redis has said during this wait that somebody holds the lock or waits for it. */
  busy = false
  /** Why the last call was not answered. */
  trouble: unknown
  /** It is this client's first waiter for its lock. */
  isForemost = false
  /** Slows down check-ins if a client waits for many locks. */
  paced: (ms: number) => number = (ms) => ms

  #asking: Asking
  #line: Line
  #clock: ServerClock | undefined
  #sent = 0
  #due: number
  #asked = 0
  #failures = 0
  #late = 0
  #roundTrip = 0
  #unanswered = false
  #leaves = false // give up the place or the lock
  #ours: boolean // a lock held with the token belongs to this wait
  #kept = 0 // how long the server keeps the place after the last call
  #told: Signal | undefined

  constructor(asking: Asking, line: Line, now: number) {
    this.#asking = asking
    this.#line = line
    this.#due = now
    this.#ours = !asking.ownToken
  }

  /** When the next call is due; Infinity: after the one under way was answered, or never. */
  get wakeAt(): number {
    if (this.outcome || this.calling) return Infinity
    if (!this.isForemost || this.#asked === 0) return this.#due
    return Math.min(this.#due, this.#sent + this.paced(FOREMOST_MS))
  }

  /** The call is sent now. */
  calls(now: number, kept: number): void {
    this.calling = true
    this.#kept = kept
    this.#sent = now
    this.#asked++
  }

  answered(now: number, reply: Acquired): void {
    this.calling = false
    this.busy ||= !reply.held
    if (reply.held) this.#ours ||= this.#clock !== undefined || isFresh(reply)
    if (this.outcome) {
      this.#undo(now)
      return
    }
    const told = this.#told
    this.#told = undefined
    this.#roundTrip = now - reply.sent
    if (reply.held) {
      // After a second call it was queued, if only by a call whose answer was lost.
      const queued = this.#asked > 1 && !this.#asking.isTry
      // The signals that follow need it if this grant came too late.
      this.#line.clock = newer(this.#line.clock, {
        now: reply.now,
        at: reply.sent,
        by: now,
        high: 0,
      })
      // The lease counts from before the call was sent, so the server's lease ends later.
      const term = { from: reply.sent, length: reply.ms }
      this.#take(now, { fence: reply.value, term, unconfirmed: false, queued })
      return
    }
    if (this.#asking.isTry) {
      this.outcome = { kind: 'busy' }
      return
    }
    const isFirst = this.#clock === undefined
    this.#ours = true
    this.#clock = { now: reply.now, at: reply.sent, by: now, high: 0 }
    this.#line.clock = newer(this.#line.clock, this.#clock)
    this.trouble = undefined
    this.#failures = 0
    this.#due = now + this.paced(reply.ms)
    if (isFirst && reply.value > this.#asking.queueLimit) {
      this.#end(now, { kind: 'full', before: reply.value - 1 })
      return
    }
    if (told) this.told(now, told)
  }

  /** The call was refused, or got no answer. `error` is for the outcome. */
  failed(now: number, error: unknown, { passes, mayArrive }: Failure): void {
    this.calling = false
    this.#unanswered ||= mayArrive
    if (this.outcome) {
      this.#undo(now)
      return
    }
    if (passes) this.trouble = error
    if (!passes || (this.#asking.isTry && this.#asked === TRY_CALLS)) {
      this.#end(now, { kind: 'failed', error })
      return
    }
    this.#due = now + backoff(this.#failures++)
    const told = this.#told
    this.#told = undefined
    if (told) this.told(now, told)
  }

  /**
   * A signal came. Believe it without a call only if it is unambiguous: the server's last word counts.
   */
  told(now: number, signal: Signal): void {
    if (this.outcome) return
    if (this.calling) {
      this.#told = signal
      return
    }
    const clock = this.#line.clock
    const { ownToken, keeps } = this.#asking
    if (signal.fence === 0 || !this.#clock || !clock || ownToken || keeps) {
      this.#due = now
      return
    }
    const length = Math.min(this.#asking.lease, HANDED_MS)
    const from = earliest(clock, signal.deadline, now) - length
    const handedOver = signal.deadline - Math.ceil(length) // by the server's clock
    if (
      from > now || // in the future: the server's clock has jumped
      handedOver < this.#clock.now || // the server has queued us since: the grant was taken back
      handedOver <= clock.high // perhaps taken back: the server's clock was put back
    ) {
      this.#due = now
      return
    }
    this.#take(now, {
      fence: signal.fence,
      term: { from, length },
      unconfirmed: length !== this.#asking.lease,
      queued: true,
    })
  }

  /** The limit of the wait is over, or its caller has given up. */
  expire(now: number): void {
    if (!this.outcome) this.#end(now, { kind: 'unserved' })
  }

  /** It fails for a reason from outside. */
  fail(now: number, error: unknown): void {
    if (!this.outcome) this.#end(now, { kind: 'failed', error })
  }

  /** Ends the wait. After its first call it may have a place or the lock. */
  #end(now: number, outcome: Outcome): void {
    this.outcome = outcome
    this.#leaves = this.#asked > 0
    this.tellBy = this.#leaves && this.trouble === undefined ? now + UNDO_MS : now
    this.#undo(now)
  }

  /** Undo only after the call is answered: on another connection, the undoing call could overtake it. */
  #undo(now: number): void {
    if (!this.#leaves || this.calling) return
    const lives = Math.max(this.#kept, Math.min(this.#asking.lease, 3_600_000))
    this.undo = new Undo(now, lives, this.#ours)
  }

  #take(now: number, grant: Omit<Grant, 'doubt'>): void {
    if (now < noticeOf(grant.term)) {
      const doubt = this.#unanswered ? this.#asking.lease : Infinity
      this.outcome = { kind: 'held', grant: { ...grant, doubt } }
      return
    }
    const short = Math.min(this.#asking.lease, HANDED_MS)
    if (this.#roundTrip > short / 2) this.#late++
    if (this.#asking.isTry || this.#late >= MAX_LATE) {
      this.#end(now, { kind: 'late', roundTrip: this.#roundTrip })
    } else {
      this.#due = now
    }
  }
}

/** Whether a lock was granted by this very call: a fencing token is the time of its grant in microseconds. */
const isFresh = (reply: Acquired): boolean => Math.floor(reply.value / 1000) === reply.now

/**
 * Gives up a place in a queue, or a grant that nobody wants, for as long as a place or a lease can live.
 *
 * Call calls() at `wakeAt`, send the `call`, and report the result with released(), asked() or failed().
 */
export class Undo {
  over = false
  wakeAt: number
  #until: number
  #ours: boolean
  #failures = 0

  constructor(now: number, lives: number, ours: boolean) {
    this.wakeAt = now
    this.#until = now + lives
    this.#ours = ours
  }

  /**
   * With the caller's own token, another process may hold the lock. Then a lock_acquire with WAIT_MS 0 only leaves the
   * queue.
   */
  get call(): 'release' | 'acquire' {
    return this.#ours ? 'release' : 'acquire'
  }

  calls(): void {
    this.wakeAt = Infinity
  }

  released(): void {
    this.over = true
  }

  asked(now: number, reply: Acquired): void {
    this.#ours = reply.held && isFresh(reply)
    this.over = !this.#ours
    if (this.#ours) this.wakeAt = now
  }

  failed(now: number, { passes }: Failure): void {
    this.over = !passes || now >= this.#until
    if (!this.over) this.wakeAt = now + backoff(this.#failures++)
  }
}

/** 10 ms, doubled each time up to 1 s. A random half spreads the clients. */
export function backoff(failures: number): number {
  const most = Math.min(10 * 2 ** Math.min(failures, 7), 1000)
  return most / 2 + (Math.random() * most) / 2
}
