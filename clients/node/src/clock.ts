/**
 * One reading of the server's clock, from a reply. It showed `now` at some moment between `at`, when the call was
 * sent, and `by`, when the reply arrived, both by our clock.
 */
export interface ServerClock {
  readonly now: number
  readonly at: number
  readonly by: number
  /** The clock was put back and may have shown this before. 0: it was not, as far as we know. */
  readonly high: number
}

const FAR = 7 * 24 * 3_600_000 // longer than any wait or handed-over lease

/**
 * The earliest moment, by our clock, at which the server's clock shows ms, if that runs less than a tenth faster
 * than ours. One millisecond is for rounding.
 */
export function earliest(clock: ServerClock, ms: number, today: number): number {
  const ahead = Math.min(Math.max(ms - clock.now, -FAR), FAR)
  return clock.at + ahead - 1 - (today - clock.at) / 10
}

/**
 * The later reading of two. It notes in `high` whether the server's clock was put back: `next` had to show
 * more, also if its call was sent first and took longer.
 */
export function newer(known: ServerClock | undefined, next: ServerClock): ServerClock {
  if (!known) return next
  const high =
    next.now < known.now + Math.trunc(next.at - known.by)
      ? Math.max(known.high, known.now + Math.trunc(next.by - known.at) + 1)
      : known.high
  return {
    ...(next.at < known.at && next.now <= Math.max(known.now, known.high) ? known : next),
    high,
  }
}
