import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { ArgumentError } from './errors'

/** The options of one call. All times are milliseconds. */
export interface LockOptions {
  /**
   * How long the lock outlives its holder's last sign of life. At least 100. Infinity: it never expires, and
   * somebody must reset it if its holder dies. Default 10,000.
   */
  lease?: number | undefined
  /** Limits the wait, not the time that the lock is held. 0: only try. Default Infinity. */
  wait?: number | undefined
  /** Ends the wait: the call rejects with its reason. */
  signal?: AbortSignal | undefined
  /** Renew the lease every third of it. Default true. */
  renew?: boolean | undefined
  /** Renewal ends this long after the grant, and with it the lock. Default Infinity. */
  maxHold?: number | undefined
  /**
   * Nobody else gets the lock before this long after the grant, even if it is released or its confirmed holder dies.
   * Default 0.
   */
  minHold?: number | undefined
  /** A readable label at the beginning of the token; '' for none. Cut to 64 bytes. Default HOST:PID. */
  owner?: string | undefined
  /**
   * Your own token, hard to guess, for one wait at a time. Another process with the token can go on with the
   * lock. A hand-over then costs one more round trip.
   */
  token?: string | undefined
  /** A QueueFullError if this many wait already, or more. Default Infinity. */
  queueLimit?: number | undefined
  /** How many may hold the lock together, this one included. Default 1. */
  holders?: number | undefined
  /** Any number may hold it together: like holders without a limit. Default false. */
  shared?: boolean | undefined
}

/** The settings of a Locker, and the defaults of its calls. */
export interface LockerOptions extends Omit<LockOptions, 'signal' | 'token'> {
  /** The beginning of the keys: all apps that share a lock need the same. Default 'lock'. */
  prefix?: string | undefined
  /** How long Redis keeps a waiter's place after its last sign of life. 100 to 86,400,000. Default 30,000. */
  waitTtl?: number | undefined
  /**
   * 'load' loads the function library where it is missing or older. 'verify' only checks it. 'never' does not
   * check either. Default 'load'.
   */
  library?: 'load' | 'verify' | 'never' | undefined
  /** Gets the events of locks, and trouble with Redis. It must not block. */
  onEvent?: ((event: LockEvent) => void) | undefined
}

/** The argument of `onEvent`. */
export type LockEvent =
  | {
      readonly type: 'acquired'
      readonly name: string
      readonly token: string
      readonly fence: number
      /** How long the call took, ms. */
      readonly waited: number
      /** The lock came out of the queue: it was not free. */
      readonly handedOver: boolean
    }
  | {
      readonly type: 'notAcquired'
      readonly name: string
      readonly waited: number
      readonly error: unknown
    }
  | {
      /** With an error: Redis did not take the lock back, so it ends with its lease. */
      readonly type: 'released' | 'lost'
      readonly name: string
      readonly token: string
      readonly fence: number
      /** ms */
      readonly held: number
      readonly error?: unknown
    }
  | {
      /** A wait goes on although Redis is in trouble. At once, then at most once a minute. */
      readonly type: 'trouble'
      readonly name: string
      /** How many wait. */
      readonly waiting: number
      readonly error: unknown
    }

const MAX_LEASE = 9_999_999_999_999 // 317 years, the limit of lock.lua
const MAX_TOKEN = 16_384 // bytes
const MAX_OWNER = 64 // bytes
const MAX_HOLDERS = 1_000_000

const CALL_KEYS = [
  'lease',
  'wait',
  'signal',
  'renew',
  'maxHold',
  'minHold',
  'queueLimit',
  'owner',
  'token',
  'holders',
  'shared',
]
const LOCKER_KEYS = [
  ...CALL_KEYS.filter((key) => key !== 'signal' && key !== 'token'),
  'prefix',
  'waitTtl',
  'library',
  'onEvent',
]

/** The options of one call, checked and completed. */
export interface Request {
  readonly lease: number
  readonly wait: number
  readonly signal: AbortSignal | undefined
  readonly renew: boolean
  readonly maxHold: number
  readonly minHold: number
  readonly queueLimit: number
  readonly token: string
  readonly ownToken: boolean
  /** The argument of lock_acquire; 1: alone. */
  readonly holders: number
  /** The lease to ask for: at least the minimum hold, at most the maximum hold. */
  readonly firstLease: number
}

export interface Settings extends Request {
  readonly owner: string
  readonly prefix: string
  readonly waitTtl: number
  readonly library: 'load' | 'verify' | 'never'
  readonly onEvent: ((event: LockEvent) => void) | undefined
}

function fail(text: string): never {
  throw new ArgumentError(`redislock: ${text}`)
}

function known(options: object, keys: string[]): void {
  if (typeof options !== 'object' || options === null)
    fail(`options must be an object, not ${options}`)
  for (const key of Object.keys(options)) {
    if (!keys.includes(key)) fail(`unknown option "${key}": there are ${keys.join(', ')}`)
  }
}

function number(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !(value >= least) || !(value <= most)) {
    const range = most === Infinity ? `at least ${least}, or Infinity` : `${least} to ${most}`
    fail(`${name} must be a number of milliseconds, ${range}: ${value}`)
  }
  return value
}

export function settingsOf(options: LockerOptions = {}): Settings {
  known(options, LOCKER_KEYS)
  const prefix = options.prefix ?? 'lock'
  if (typeof prefix !== 'string' || prefix === '' || Buffer.byteLength(prefix) > 64) {
    fail('prefix must be a string of 1 to 64 bytes')
  }
  // Two prefixes could name one lock.
  if (/[{}:]/.test(prefix)) fail(`prefix "${prefix}" must not contain braces nor a colon`)
  if (/-(queue|state|signal)$/.test(prefix)) {
    fail(`prefix "${prefix}" must not end like the keys beside a lock: -queue, -state, -signal`)
  }
  const library = options.library ?? 'load'
  if (!['load', 'verify', 'never'].includes(library)) {
    fail(`library must be 'load', 'verify' or 'never': ${library}`)
  }
  const onEvent = options.onEvent
  if (onEvent !== undefined && typeof onEvent !== 'function') fail('onEvent must be a function')
  const defaults = { owner: options.owner ?? ownLabel() }
  return {
    ...complete({ ...options, ...defaults }),
    ...defaults,
    prefix,
    waitTtl: number('waitTtl', options.waitTtl ?? 30_000, 100, 86_400_000),
    library,
    onEvent,
  }
}

export function requestOf(settings: Settings, options: LockOptions = {}): Request {
  known(options, CALL_KEYS)
  const given = Object.fromEntries(
    Object.entries(options).filter(([, value]) => value !== undefined),
  )
  // A call can turn sharing on or off, whatever the Locker's settings say.
  const own = 'holders' in given || 'shared' in given
  const shared = settings.holders === 0 ? { shared: true } : { holders: settings.holders }
  const mode = own ? {} : shared
  const { lease, wait, renew, maxHold, minHold, queueLimit, owner } = settings
  return complete({ lease, wait, renew, maxHold, minHold, queueLimit, owner, ...mode, ...given })
}

function complete(options: LockOptions): Request {
  const lease = number('lease', options.lease ?? 10_000, 100, Infinity)
  if (lease !== Infinity && lease > MAX_LEASE)
    fail(`lease must be at most ${MAX_LEASE}, or Infinity: ${lease}`)
  const maxHold = number('maxHold', options.maxHold ?? Infinity, 1, Infinity)
  const minHold = number('minHold', options.minHold ?? 0, 0, MAX_LEASE)
  if (minHold > maxHold) fail(`minHold ${minHold} must not be more than maxHold ${maxHold}`)
  const queueLimit = options.queueLimit ?? Infinity
  if (typeof queueLimit !== 'number' || !(queueLimit >= 0)) {
    fail(`queueLimit must be a number, not negative: ${queueLimit}`)
  }
  const renew = options.renew ?? true
  if (typeof renew !== 'boolean') fail(`renew must be true or false: ${renew}`)
  const { signal, token } = options
  if (signal !== undefined && typeof signal.addEventListener !== 'function') {
    fail('signal must be an AbortSignal')
  }
  if (token !== undefined && (typeof token !== 'string' || token === '')) {
    fail('token must be a string, not empty')
  }
  if (token !== undefined && Buffer.byteLength(token) > MAX_TOKEN) {
    fail(`token must have at most ${MAX_TOKEN} bytes`)
  }
  const owner = options.owner ?? ''
  if (typeof owner !== 'string') fail('owner must be a string')
  return {
    lease,
    wait: number('wait', options.wait ?? Infinity, 0, Infinity),
    signal,
    renew,
    maxHold,
    minHold,
    queueLimit,
    token: token ?? newToken(owner),
    ownToken: token !== undefined,
    holders: holdersOf(options),
    firstLease: Math.min(Math.max(lease, minHold), maxHold),
  }
}

function holdersOf({ holders, shared }: LockOptions): number {
  if (shared !== undefined && typeof shared !== 'boolean')
    fail(`shared must be true or false: ${shared}`)
  if (holders === undefined) return shared ? 0 : 1
  if (shared) fail('use either holders or shared')
  if (!Number.isSafeInteger(holders) || holders < 1 || holders > MAX_HOLDERS) {
    fail(`holders must be a whole number, 1 to ${MAX_HOLDERS}: ${holders}`)
  }
  return holders
}

function ownLabel(): string {
  const pid = `:${process.pid}`
  return cut(hostname(), MAX_OWNER - pid.length) + pid
}

/** 128 random bits are safe against guessing. */
function newToken(owner: string): string {
  const random = randomBytes(16).toString('base64url')
  return owner === '' ? random : `${cut(owner, MAX_OWNER)}:${random}`
}

/** The text, cut to at most this many bytes of UTF-8, between two characters. */
function cut(text: string, most: number): string {
  const bytes = Buffer.from(text)
  if (bytes.length <= most) return text
  let end = most
  while (end > 0 && ((bytes[end] as number) & 0xc0) === 0x80) end--
  return bytes.subarray(0, end).toString()
}
