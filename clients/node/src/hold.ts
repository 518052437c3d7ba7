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

/** How long to retry a release. After that, the lease ends the lock. */
export const RELEASE_MS = 5000

/** The result of a release. */
export type Verdict =
  | { readonly kind: 'released' }
  | { readonly kind: 'notHeld' }
  | { readonly kind: 'failed'; readonly error: unknown }

/**
 * A held lock, without I/O: it takes the time and the events, and returns the next step.
 *
 * Call ring() at `noticeAt`, and renews() at `wakeAt`. Send the lock_extend that renews() returns, one at a time, and
 * report its result with extended() or failed().
 *
 * To give the lock back: release(), then returns() at each `returnAt`, until there is a `verdict`.
 */
export class Hold {
  /** Why the lock is lost; undefined: it is not, as far as we know. */
  lost: string | undefined
  /** The holder called release or detach. */
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

  /** When to tell the holder: ahead of the deadline. */
  get noticeAt(): number {
    return this.isHeld ? noticeOf(this.#lease.term) : Infinity
  }

  /** Checks whether the notice is due. True: the lock is lost now. */
  ring(now: number): boolean {
    if (now < this.noticeAt) return false
    return this.#lose(ending(this.#lease))
  }

  /** The lease to send, to confirm or to renew. undefined: nothing to send; ring() may be due. */
  renews(now: number): number | undefined {
    return now < this.wakeAt ? undefined : this.extends(now, this.#lease.length)
  }

  /** The lease to send, so that it ends `length` from now. undefined: the lock is lost or released. */
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

  /** lock_extend, sent at `sent`, was answered. True: the lock is lost now. */
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

  /** lock_extend was refused or got no answer. */
  failed(now: number, { mayArrive }: Failure): void {
    const next = this.#next
    const before = this.#before
    this.#before = this.#next = undefined
    if (!this.isHeld || !next || !before) return
    this.#lease = mayArrive ? unanswered(this.#lease, next.term, next.length) : before
    this.#schedule(now)
    // Retry soon, until the notice.
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

  /** Until when nobody else gets the lock, even if it is released. */
  get keepUntil(): number {
    return this.#lease.keepUntil
  }

  /** The caller does not get the lock: ignore the minimum hold. */
  keepsNothing(): void {
    this.#lease = { ...this.#lease, keepUntil: 0 }
  }

  /** When it is too late to give the lock back: the lease ends it. */
  get returnEnd(): number {
    return this.#returnEnd
  }

  /**
   * How to give the lock back: 0: with lock_release; otherwise with lock_extend and this lease, to keep the minimum
   * hold.
   */
  returns(now: number): number {
    this.returnAt = Infinity
    return toKeep(this.#lease, now)
  }

  /** The call that gives the lock back was answered. */
  answered(reply: number): void {
    this.verdict ??= { kind: reply === 1 || this.#replyLost ? 'released' : 'notHeld' }
  }

  /** That call was refused or got no answer. `error` is for the verdict. */
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
