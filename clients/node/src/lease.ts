/** The notice comes ahead of the deadline: a tenth of the lease, and this at most. */
const NOTICE_MS = 500
/** A handed-over lease lasts this long until it is confirmed: CLAIM_MS of lock.lua. */
export const HANDED_MS = 2000
/** A handed-over lock is confirmed after this. A holder that releases sooner saves the call. */
const CLAIM_AFTER_MS = 500

/** What the server has promised: the lock, for a length from then on, by our clock. Infinity: for ever. */
export interface Term {
  readonly from: number
  readonly length: number
}

export const deadlineOf = (term: Term): number => term.from + term.length

/** When the holder has to be told. Later than that it may not act any more. */
export function noticeOf(term: Term): number {
  if (term.length === Infinity) return Infinity
  return deadlineOf(term) - Math.min(term.length / 10, NOTICE_MS)
}

const atMost = (term: Term, length: number): Term => ({
  from: term.from,
  length: Math.min(term.length, length),
})

/** A lock that was just given to us. */
export interface Grant {
  readonly fence: number
  readonly term: Term
  /** The lease of a call that got no answer and may still arrive; Infinity: there is none. */
  readonly doubt: number
  /** Handed over with a short lease, which has to be confirmed. */
  readonly unconfirmed: boolean
  /** It was waited for. */
  readonly queued: boolean
}

export interface Holding {
  /** To renew for, ms; Infinity: never expires. */
  readonly lease: number
  /** From the grant on; Infinity: no limit. */
  readonly maxHold: number
  /** Nobody else gets the lock before this; 0: no such time. */
  readonly minHold: number
  readonly renew: boolean
}

/**
 * Until when a lock is held, and when to call the server for it. A value: its functions are told the time.
 *
 * No term ends later than the server's:
 *
 * - A term that the server has confirmed counts from when the call was sent. Calls are made one at a time, so
 *   the server has seen no later one.
 * - A call without an answer may still arrive and set its own length. So doubt, the shortest of these,
 *   limits all later terms.
 * - For the term of a signal, see Wait.
 * - A term that ends sooner counts from before its call is sent. It is taken back only if Redis refuses the
 *   call.
 */
export interface Lease {
  readonly term: Term
  readonly length: number
  readonly begin: number
  readonly maxHold: number
  /** Nobody else may have the lock before. */
  readonly keepUntil: number
  readonly renew: boolean
  readonly unconfirmed: boolean
  readonly doubt: number
}

export function leaseOf(holding: Holding, grant: Grant, now: number): Lease {
  return {
    term: atMost(grant.term, holding.maxHold),
    length: holding.lease,
    begin: grant.term.from,
    maxHold: holding.maxHold,
    keepUntil: now + holding.minHold,
    renew: holding.renew,
    unconfirmed: grant.unconfirmed,
    doubt: grant.doubt,
  }
}

/** What is left of the maximum hold, in the server's unit. */
const left = (lease: Lease, now: number): number =>
  lease.maxHold === Infinity ? Infinity : Math.trunc(lease.begin + lease.maxHold - now)

/** Whether the lease ends with the maximum hold, but for the rounding. */
export const isLast = (lease: Lease): boolean => left(lease, deadlineOf(lease.term)) <= 1

/** When to confirm or to renew. Infinity: not again. */
export function nextCall(lease: Lease, now: number): number {
  if (lease.unconfirmed) return now + Math.min(CLAIM_AFTER_MS, (deadlineOf(lease.term) - now) / 4)
  if (!lease.renew || lease.term.length === Infinity || isLast(lease)) return Infinity
  return lease.term.from + Math.min(lease.term.length, lease.length) / 3
}

/** The term to ask for. undefined: nothing is left of the maximum hold. */
export function ask(lease: Lease, now: number, length: number): Term | undefined {
  const most = left(lease, now)
  const term = { from: now, length: Math.max(Math.min(length, most), toKeep(lease, now)) }
  return most > 0 ? term : undefined
}

/** What is left of the minimum hold. A holder that dies must not free the lock before. */
export const toKeep = (lease: Lease, now: number): number => Math.max(0, lease.keepUntil - now)

/** While a call for a term is under way: if it ends sooner, the server may have it. */
export const asked = (lease: Lease, term: Term): Lease =>
  deadlineOf(term) < deadlineOf(lease.term) ? { ...lease, term } : lease

/** After the server has begun a term. */
export function confirmed(lease: Lease, term: Term): Lease {
  const most = Math.min(lease.doubt, Math.max(0, left(lease, term.from)))
  return { ...lease, unconfirmed: false, term: atMost(term, most) }
}

/** After a call that may still arrive. */
export const unanswered = (lease: Lease, term: Term, length: number): Lease => ({
  ...lease,
  doubt: Math.min(lease.doubt, term.length),
  length: Math.min(lease.length, length),
})

/** Which limit it was that ended the lease. */
export const ending = (lease: Lease): string =>
  isLast(lease)
    ? `the maximum hold of ${lease.maxHold} ms is over`
    : `the lease of ${Math.round(lease.term.length)} ms is over, and was not renewed`
