/** The kind of an error of this package. Test for it with `error.code`, or with `instanceof`. */
export type LockErrorCode =
  | 'LOCK_BUSY'
  | 'LOCK_QUEUE_FULL'
  | 'LOCK_UNAVAILABLE'
  | 'LOCK_LOST'
  | 'LOCK_NOT_HELD'
  | 'LOCK_CLOSED'
  | 'LOCK_CLIENT'
  | 'LOCK_LIBRARY'
  | 'LOCK_REPLY'
  | 'LOCK_ARGUMENT'

/** The base of all errors of this package. */
export class LockError extends Error {
  readonly code: LockErrorCode
  constructor(code: LockErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
  }
}

/** Redis said during this call that somebody holds the lock or waits for it. */
export class BusyError extends LockError {
  constructor(
    message: string,
    cause?: unknown,
    code: 'LOCK_BUSY' | 'LOCK_QUEUE_FULL' = 'LOCK_BUSY',
  ) {
    super(code, message, cause)
  }
}

/** More wait already than `queueLimit` allows. */
export class QueueFullError extends BusyError {
  constructor(message: string) {
    super(message, undefined, 'LOCK_QUEUE_FULL')
  }
}

/** Nobody answered, or Redis answered with an error that passes. Nothing is known of the lock. */
export class UnavailableError extends LockError {
  constructor(message: string, cause?: unknown) {
    super('LOCK_UNAVAILABLE', message, cause)
  }
}

/** The lock is lost, or may be: the reason of `lock.signal`. */
export class LostError extends LockError {
  constructor(message: string, cause?: unknown) {
    super('LOCK_LOST', message, cause)
  }
}

/** Release or extend found that the lock had been lost or released before. */
export class NotHeldError extends LockError {
  constructor(message: string, cause?: unknown) {
    super('LOCK_NOT_HELD', message, cause)
  }
}

/** The Locker is closed. */
export class ClosedError extends LockError {
  constructor(message: string) {
    super('LOCK_CLOSED', message)
  }
}

/** The object is not a client of `redis` or `ioredis` that this package knows. */
export class UnsupportedClientError extends LockError {
  constructor(message: string) {
    super('LOCK_CLIENT', message)
  }
}

/** The function library is missing in Redis, or has another version, and could not be loaded. */
export class LibraryError extends LockError {
  constructor(message: string, cause?: unknown) {
    super('LOCK_LIBRARY', message, cause)
  }
}

/** Redis refused the call. Its own error is the `cause`. */
export class ReplyError extends LockError {
  constructor(message: string, cause?: unknown) {
    super('LOCK_REPLY', message, cause)
  }
}

/** An option or a name is wrong. Nothing was sent. */
export class ArgumentError extends LockError {
  constructor(message: string) {
    super('LOCK_ARGUMENT', message)
  }
}

// On the prototypes, so a minifier that renames classes does not change the names.
const names = {
  LockError,
  BusyError,
  QueueFullError,
  UnavailableError,
  LostError,
  NotHeldError,
  ClosedError,
  UnsupportedClientError,
  LibraryError,
  ReplyError,
  ArgumentError,
}
for (const [name, type] of Object.entries(names)) {
  Object.defineProperty(type.prototype, 'name', { value: name, configurable: true, writable: true })
}

/** The failure of a call to Redis. It does not leave the package. */
export class CallError extends Error {
  /** The same call may succeed later by itself. */
  readonly passes: boolean
  /** Redis may have carried out the call, or may still do so. */
  readonly mayArrive: boolean
  constructor(cause: unknown, { passes, mayArrive }: { passes: boolean; mayArrive: boolean }) {
    super(textOf(cause), { cause })
    this.passes = passes
    this.mayArrive = mayArrive
  }

  /** The error for a user. */
  public(op: string, name: string): LockError {
    if (this.cause instanceof LockError) return this.cause
    const message = `redislock: ${op} "${name}": ${this.message}`
    if (this.passes) return new UnavailableError(message, this.cause)
    return new ReplyError(message, this.cause)
  }
}

export function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** The first word of an error reply; '': not an error reply. */
export function codeOf(error: unknown): string {
  return /^(?:-)?([A-Z][A-Z0-9_]+) /.exec(textOf(error))?.[1] ?? ''
}

const PASSING =
  /^(LOADING|BUSY|READONLY|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|UNBLOCKED|MASTERDOWN) /

/** Whether a call with this error reply may succeed later by itself. */
export const passes = (reply: string): boolean => PASSING.test(reply)
