import { earliest, newer, type ServerClock } from './clock'
import { type Grant, HANDED_MS, noticeOf } from './lease'
import type { Acquired, Signal } from './wire'

/** The first waiter that this client has for a lock calls at least so often: then a dead one before it costs seconds. */
export const FOREMOST_MS = 1000
/** So many grants may arrive when they have run out, over a network that is too slow for the lease. */
const MAX_LATE = 3
/** How often a try is sent while Redis is in trouble. */
const TRY_CALLS = 3
/** How long the caller of a wait that ended waits for its place to be given up, while Redis answers. */
const UNDO_MS = 500

export interface Asking {
  /** The lease to ask for; Infinity: never expires. */
  readonly lease: number
  /** Get it now, or not at all. */
  readonly isTry: boolean
  /** The token is the caller's own: another process may hold the lock with it. */
  readonly ownToken: boolean
  /** The server has to know of a minimum hold before work begins: who dies then must not let in the next one. */
  readonly keeps: boolean
  /** It does not wait behind so many others, or more. */
  readonly queueLimit: number
}

/** What the waiters of this client for one lock know together. */
export interface Line {
  clock?: ServerClock
}

/** How a wait has ended. */
export type Outcome =
  | { readonly kind: 'held'; readonly grant: Grant }
  /** The time was over. */
  | { readonly kind: 'unserved' }
  /** A try: somebody holds the lock or waits for it. */
  | { readonly kind: 'busy' }
  /** So many wait already. */
  | { readonly kind: 'full'; readonly before: number }
  /** Every grant had run out when it arrived. */
  | { readonly kind: 'late'; readonly roundTrip: number }
  | { readonly kind: 'failed'; readonly error: unknown }

export interface Failure {
  readonly passes: boolean
  readonly mayArrive: boolean
}

/**
 * One wait for a lock, without I/O: it is told the time and what happened, and says what to do next.
 *
 * Call calls() when `wakeAt` has come, and send lock_acquire; tell what became of it with answered() or failed().
 * When there is an `outcome`, its caller is told at `tellBy`, or when `undo` is over if that is sooner.
 */
export class Wait {
  outcome: Outcome | undefined
  /** Gives up the place in the queue, or the lock, that the wait may have. */
  undo: Undo | undefined
  tellBy = 0
  calling = false
  /** Redis has said in this wait that somebody holds the lock or waits for it. */
  busy = false
  /** Why the last call was not answered. */
  trouble: unknown
  /** It is the first of this client for its lock. */
  isForemost = false
  /** Stretches the pace where a client waits for many locks. */
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
  #leaves = false // the place in the queue, or the lock, has to be given up
  #ours: boolean // a lock that is held with the token was given to this wait
  #kept = 0 // how long the place is kept after the last call
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
      // Asked twice: it was queued, if only by a call whose answer was lost.
      const queued = this.#asked > 1 && !this.#asking.isTry
      // For the signals that follow if this grant came too late.
      this.#line.clock = newer(this.#line.clock, { now: reply.now, at: reply.sent, by: now, high: 0 })
      // It counts from before the call was sent: whatever was slow, the server's lease ends later.
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
   * A signal came. It is acted on without a call only if it is unambiguous: what the server says last counts.
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
      from > now || // yet to come: the server's clock has jumped
      handedOver < this.#clock.now || // the server has said since that we wait: it was taken back
      handedOver <= clock.high // perhaps, as the clock was put back
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

  /** The limit of the wait is over, or its caller wants it no longer. */
  expire(now: number): void {
    if (!this.outcome) this.#end(now, { kind: 'unserved' })
  }

  /** It fails for a reason from outside. */
  fail(now: number, error: unknown): void {
    if (!this.outcome) this.#end(now, { kind: 'failed', error })
  }

  /** Ends the wait. It may have a place in the queue, or the lock: once it has asked. */
  #end(now: number, outcome: Outcome): void {
    this.outcome = outcome
    this.#leaves = this.#asked > 0
    this.tellBy = this.#leaves && this.trouble === undefined ? now + UNDO_MS : now
    this.#undo(now)
  }

  /** On another connection, what is to undo a call could overtake it: so not before its fate is known. */
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
 * Gives up a place in a queue, or a grant that nobody wants any more, for as long as a place or a lease can live.
 *
 * Call calls() when `wakeAt` has come, and send the `call`; tell what became of it with released(), asked() or failed().
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
   * With a token of the caller's own, somebody else may hold the lock: then a lock_acquire with WAIT_MS 0, which only
   * leaves the queue.
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

/** 10 ms, doubled each time up to 1 s, with a random half so that clients spread. */
export function backoff(failures: number): number {
  const most = Math.min(10 * 2 ** Math.min(failures, 7), 1000)
  return most / 2 + (Math.random() * most) / 2
}
