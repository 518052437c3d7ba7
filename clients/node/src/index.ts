/** A distributed lock for Redis and Valkey. See README.md. */
export {
  ArgumentError,
  BusyError,
  ClosedError,
  LibraryError,
  LockError,
  type LockErrorCode,
  LostError,
  NotHeldError,
  QueueFullError,
  ReplyError,
  UnavailableError,
  UnsupportedClientError,
} from './errors'
export { source, version } from './library'
export { Lock, Locks } from './lock'
export { Locker, type LockState, type LockWaiter } from './locker'
export type { LockEvent, LockerOptions, LockOptions } from './options'
export type { IoredisClient, NodeRedisClient, RedisClient } from './redis'
