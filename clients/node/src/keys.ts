import { ArgumentError } from './errors'

/** The keys of one lock. They share a hash tag, so they are in one slot of a cluster. */
export interface Keys {
  readonly name: string
  readonly lock: string
  readonly queue: string
  readonly state: string
  /** The name with its braces. */
  readonly tagged: string
}

const MAX_NAME = 4096 // bytes

export function keysOf(prefix: string, name: string): Keys {
  if (typeof name !== 'string') {
    throw new ArgumentError(`redislock: the name of a lock must be a string, not ${typeof name}`)
  }
  if (name === '') throw new ArgumentError('redislock: the name of a lock must not be empty')
  if (name.startsWith('}')) {
    throw new ArgumentError(
      `redislock: the name "${name}" must not begin with "}", its hash tag would be empty`,
    )
  }
  const bytes = Buffer.byteLength(name)
  if (bytes > MAX_NAME) {
    throw new ArgumentError(`redislock: the name has ${bytes} bytes, more than ${MAX_NAME}`)
  }
  const tagged = hasTag(name) ? name : `{${name}}`
  return {
    name,
    lock: `${prefix}:${tagged}`,
    queue: `${prefix}-queue:${tagged}`,
    state: `${prefix}-state:${tagged}`,
    tagged,
  }
}

/** Whether Redis hashes only a part: the text between the first '{' and the next '}', if that is not empty. */
function hasTag(name: string): boolean {
  const open = name.indexOf('{')
  return open >= 0 && name.indexOf('}', open) > open + 1
}

/** The inverse of keysOf; undefined: not the key of a lock. */
export function keysFrom(prefix: string, key: string): Keys | undefined {
  const tagged = key.slice(prefix.length + 1)
  if (!key.startsWith(`${prefix}:`) || !hasTag(tagged) || tagged.startsWith('}')) return undefined
  return keysOf(prefix, tagged)
}

/**
 * Each lock once, in the order in which every client in every language takes several: by the UTF-8 bytes of the key.
 * JavaScript's own order of strings differs beyond U+FFFF.
 */
export function inOrder(all: Keys[]): Keys[] {
  const once = new Map(all.map((keys) => [keys.lock, keys]))
  return [...once.values()].sort((a, b) => Buffer.compare(Buffer.from(a.lock), Buffer.from(b.lock)))
}

/** The slot of a cluster in which a key lives. */
export function slotOf(key: string): number {
  const open = key.indexOf('{')
  const close = open < 0 ? -1 : key.indexOf('}', open)
  let crc = 0
  for (const byte of Buffer.from(close > open + 1 ? key.slice(open + 1, close) : key)) {
    crc ^= byte << 8
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1
  }
  return crc & 0x3fff
}
