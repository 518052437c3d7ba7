/**
 * What replies have told of the server's clock: it showed `now` when the call that asked was sent (`at`, by
 * our clock), or later, and no later than when the reply was here (`by`).
 */
export interface ServerClock {
  readonly now: number
  readonly at: number
  readonly by: number
  /** It was put back, and may have shown this before. 0: not as far as is known. */
  readonly high: number
}

const FAR = 7 * 24 * 3_600_000 // farther than any place or short lease

/**
 * The earliest moment, by our clock, at which the server's shows ms, if that runs less than a tenth faster
 * than ours. A millisecond is for the rounding.
 */
export function earliest(clock: ServerClock, ms: number, today: number): number {
  const ahead = Math.min(Math.max(ms - clock.now, -FAR), FAR)
  return clock.at + ahead - 1 - (today - clock.at) / 10
}

/**
 * The one of two that was asked for last. What the two tell together is kept: the clock was put back if
 * `next` had to show more, also if its call was sent first and took longer.
 */
export function newer(known: ServerClock | undefined, next: ServerClock): ServerClock {
  if (!known) return next
  const high =
    next.now < known.now + Math.trunc(next.at - known.by)
      ? Math.max(known.high, known.now + Math.trunc(next.by - known.at) + 1)
      : known.high
  return { ...(next.at < known.at ? known : next), high }
}
