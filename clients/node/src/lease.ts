/** The notice comes ahead of the deadline, by a tenth of the lease and at most this. */
const NOTICE_MS = 500
/** A handed-over lease lasts this long until it is confirmed: CLAIM_MS of lock.lua. */
export const HANDED_MS = 2000
/** A lease counts from so long before its call is sent: Redis 8 may remove a key in its last millisecond. */
export const LAST_MS = 1
/** When to confirm a handed-over lock. A holder that releases sooner saves this call. */
const CLAIM_AFTER_MS = 500

/** A promise of the server: the lock is held for `length` after `from`, by our clock. Infinity: for ever. */
export interface Term {
  readonly from: number
  readonly length: number
}

export const deadlineOf = (term: Term): number => term.from + term.length

/** When to tell the holder. After that it must not act. */
export function noticeOf(term: Term): number {
  if (term.length === Infinity) return Infinity
  return deadlineOf(term) - Math.min(term.length / 10, NOTICE_MS)
}

const atMost = (term: Term, length: number): Term => ({
  from: term.from,
  length: Math.min(term.length, length),
})

/** A lock that this wait has just got. */
export interface Grant {
  readonly fence: number
  readonly term: Term
  /** The lease of an unanswered call, which may still arrive; Infinity: none. */
  readonly doubt: number
  /** Handed over with a short lease: confirm it. */
  readonly unconfirmed: boolean
  /** The lock was not free. */
  readonly queued: boolean
}

export interface Holding {
  /** The length of each renewal, ms; Infinity: never expires. */
  readonly lease: number
  /** From the grant on; Infinity: no limit. */
  readonly maxHold: number
  /** Nobody else gets the lock before this; 0: no such time. */
  readonly minHold: number
  readonly renew: boolean
}

/**
 * Until when a lock is held, and when to call the server for it. It is a value; its functions take the time.
 *
 * No term ends later than the server's:
 *
 * - A term that the server has confirmed counts from the moment when the call was sent. There is one call at a time,
 *   so the server has seen no later one.
 * - A call without an answer may still arrive and set its own length. So doubt, the shortest of these lengths,
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
  /** Nobody else may have the lock before this. */
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

/** The rest of the maximum hold, in whole milliseconds. */
const left = (lease: Lease, now: number): number =>
  lease.maxHold === Infinity ? Infinity : Math.trunc(lease.begin + lease.maxHold - now)

/** Whether the term ends with the maximum hold, give or take the rounding. */
export const isLast = (lease: Lease): boolean => left(lease, deadlineOf(lease.term)) <= 1

/** When to confirm or to renew. Infinity: never again. */
export function nextCall(lease: Lease, now: number): number {
  if (lease.unconfirmed) return now + Math.min(CLAIM_AFTER_MS, (deadlineOf(lease.term) - now) / 4)
  if (!lease.renew || lease.term.length === Infinity || isLast(lease)) return Infinity
  return lease.term.from + Math.min(lease.term.length, lease.length) / 3
}

/** The term to ask for. undefined: the maximum hold is over. */
export function ask(lease: Lease, now: number, length: number): Term | undefined {
  const most = left(lease, now)
  const term = { from: now, length: Math.max(Math.min(length, most), toKeep(lease, now)) }
  return most > 0 ? term : undefined
}

/** The rest of the minimum hold. A holder that dies must not free the lock before. */
export const toKeep = (lease: Lease, now: number): number => Math.max(0, lease.keepUntil - now)

/** The lease while a call for a term is under way. A sooner end counts at once: the server may have it. */
export const asked = (lease: Lease, term: Term): Lease =>
  deadlineOf(term) < deadlineOf(lease.term) ? { ...lease, term } : lease

/** The lease after the server has set a term. */
export function confirmed(lease: Lease, term: Term): Lease {
  const most = Math.min(lease.doubt, Math.max(0, left(lease, term.from)))
  return { ...lease, unconfirmed: false, term: atMost(term, most) }
}

/** The lease after a call that may still arrive. */
export const unanswered = (lease: Lease, term: Term, length: number): Lease => ({
  ...lease,
  doubt: Math.min(lease.doubt, term.length),
  length: Math.min(lease.length, length),
})

/** The text that names the limit which ended the lock. */
export const ending = (lease: Lease): string =>
  isLast(lease)
    ? `the maximum hold of ${lease.maxHold} ms is over`
    : `the lease of ${Math.round(lease.term.length)} ms is over, and was not renewed`
