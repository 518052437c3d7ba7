/** This machine's monotonic clock, ms. */
export const now = (): number => performance.now()

const TIMER_MAX = 2 ** 31 - 1 // setTimeout fires at once if it is more

/** A timer that can be set again. If `holds` is false, it does not keep the process alive. */
export class Alarm {
  #run: () => void
  #holds: boolean
  #timer: NodeJS.Timeout | undefined

  constructor(run: () => void, holds: boolean) {
    this.#run = run
    this.#holds = holds
  }

  /** Runs at this time, or sooner: `run` checks the clock. Infinity: never. */
  set(at: number): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (at === Infinity) return
    const ms = Math.min(Math.max(Math.ceil(at - now()), 0), TIMER_MAX)
    this.#timer = setTimeout(this.#run, ms)
    if (!this.#holds) this.#timer.unref()
  }
}

/**
 * The promise, for this long at most; then late() makes the error. A blocked event loop runs its timers before it
 * reads from sockets, so it may read once more before the time is over.
 */
export function within<T>(
  ms: number,
  promise: Promise<T>,
  holds: boolean,
  late: () => Error,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const over = () => setImmediate(() => reject(late()))
    const timer = setTimeout(over, Math.min(Math.max(ms, 0), TIMER_MAX))
    if (!holds) timer.unref()
    promise.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

export const pause = (ms: number, holds: boolean): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    if (!holds) timer.unref()
  })
