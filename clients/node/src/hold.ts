import {
  ask,
  asked,
  confirmed,
  deadlineOf,
  ending,
  type Grant,
  type Holding,
  type Lease,
  leaseOf,
  nextCall,
  noticeOf,
  type Term,
  toKeep,
  unanswered,
} from './lease'
import { backoff, type Failure } from './wait'

/** How long a release is tried. After that the lock is left to its lease. */
export const RELEASE_MS = 5000

/** How a release has ended. */
export type Verdict =
  | { readonly kind: 'released' }
  | { readonly kind: 'notHeld' }
  | { readonly kind: 'failed'; readonly error: unknown }

/**
 * A lock that is held, without I/O: it is told the time and what happened, and says what to do next.
 *
 * Call ring() when `noticeAt` has come, and renews() when `wakeAt` has; send the lock_extend that this returns, one at
 * a time, and tell what became of it with extended() or failed().
 *
 * To give the lock back: release(), then returns() whenever `returnAt` has come, until there is a `verdict`.
 */
export class Hold {
  /** Why the lock is lost; undefined: as far as is known it is not. */
  lost: string | undefined
  /** Release was called, or the lock was left to its lease. */
  returned = false
  wakeAt = Infinity
  returnAt = Infinity
  verdict: Verdict | undefined

  #lease: Lease
  #before: Lease | undefined // while a call is under way
  #next: { term: Term; length: number } | undefined
  #failures = 0
  #replyLost = false // a release was sent in time and got no answer
  #returnEnd = 0
  #returnFailures = 0

  constructor(holding: Holding, grant: Grant, now: number) {
    this.#lease = leaseOf(holding, grant, now)
    this.#schedule(now)
  }

  get isHeld(): boolean {
    return this.lost === undefined && !this.returned
  }

  /** Until when the lock is surely held, by our clock. */
  get deadline(): number {
    return deadlineOf(this.#lease.term)
  }

  /** When the holder is told: ahead of the deadline. */
  get noticeAt(): number {
    return this.isHeld ? noticeOf(this.#lease.term) : Infinity
  }

  /** The time of the notice may have come. True: the lock is lost now. */
  ring(now: number): boolean {
    if (now < this.noticeAt) return false
    return this.#lose(ending(this.#lease))
  }

  /** What to send to confirm or to renew. undefined: nothing, and perhaps ring() is due. */
  renews(now: number): number | undefined {
    return now < this.wakeAt ? undefined : this.extends(now, this.#lease.length)
  }

  /** What to send so that the lease ends `length` from now. undefined: the lock is not held any more. */
  extends(now: number, length: number): number | undefined {
    const isHeld = now < this.noticeAt && this.isHeld
    const term = isHeld ? ask(this.#lease, now, length) : undefined
    if (!term) return undefined
    this.#before = this.#lease
    this.#next = { term, length }
    this.#lease = asked(this.#lease, term)
    this.wakeAt = Infinity
    return term.length
  }

  /** lock_extend was answered. `sent` is when it was sent. True: the lock is lost now. */
  extended(now: number, sent: number, isHolder: boolean): boolean {
    const next = this.#next
    this.#before = this.#next = undefined
    if (!this.isHeld || !next) return false
    if (!isHolder) return this.#lose('it was taken away, or its key is gone')
    this.#failures = 0
    const term = { from: sent, length: next.term.length }
    this.#lease = { ...confirmed(this.#lease, term), length: next.length }
    this.#schedule(now)
    return this.ring(now) // the reply may have come too late
  }

  /** lock_extend was refused, or got no answer. */
  failed(now: number, { mayArrive }: Failure): void {
    const next = this.#next
    const before = this.#before
    this.#before = this.#next = undefined
    if (!this.isHeld || !next || !before) return
    this.#lease = mayArrive ? unanswered(this.#lease, next.term, next.length) : before
    this.#schedule(now)
    // Soon again, through any trouble, until the notice.
    if (this.wakeAt !== Infinity) {
      this.wakeAt = now + Math.min(backoff(this.#failures++), this.#lease.term.length / 10 + 1)
    }
  }

  /** The holder gives the lock back. */
  release(now: number): void {
    this.returned = true
    this.wakeAt = Infinity
    this.verdict = undefined
    this.returnAt = now
    this.#returnEnd = now + RELEASE_MS
  }

  /** Until when nobody else gets the lock, also if it is released. */
  get keepUntil(): number {
    return this.#lease.keepUntil
  }

  /** Its caller does not get the lock: no minimum hold is kept. */
  keepsNothing(): void {
    this.#lease = { ...this.#lease, keepUntil: 0 }
  }

  /** When it is too late to give the lock back: it is left to its lease. */
  get returnEnd(): number {
    return this.#returnEnd
  }

  /**
   * What to send to give the lock back: lock_extend with this lease, so that nobody else gets it before the minimum hold
   * is over; 0: lock_release.
   */
  returns(now: number): number {
    this.returnAt = Infinity
    return toKeep(this.#lease, now)
  }

  /** The call that gives the lock back was answered. */
  answered(reply: number): void {
    this.verdict ??= { kind: reply === 1 || this.#replyLost ? 'released' : 'notHeld' }
  }

  /** It was refused, or got no answer. `error` is for the verdict. */
  returnFailed(now: number, error: unknown, { passes, mayArrive }: Failure): void {
    this.#replyLost ||= mayArrive && now < this.deadline
    this.returnAt = passes ? now + backoff(this.#returnFailures++) : Infinity
    if (!passes || this.returnAt >= this.#returnEnd) this.verdict ??= { kind: 'failed', error }
  }

  #lose(why: string): boolean {
    if (!this.isHeld) return false
    this.lost = why
    this.wakeAt = Infinity
    return true
  }

  #schedule(now: number): void {
    this.wakeAt = nextCall(this.#lease, now)
  }
}
