// The replies of the functions of lock.lua, and the signals.

/** A reply to lock_acquire, and when its call was sent, by our clock. */
export interface Acquired {
  readonly sent: number
  readonly held: boolean
  /** Held: the fencing token. Queued: the place, 1 is next. 0: not queued. */
  readonly value: number
  /** Held: the rest of the lease, or Infinity. Queued: when to call again, at the latest. */
  readonly ms: number
  /** The server's clock. */
  readonly now: number
}

export interface Signal {
  /** 0: it only asks for a call. */
  readonly fence: number
  readonly deadline: number
  readonly token: string
}

/** The reply of lock_release. */
export const WAS_HELD = 1

/** FENCE DEADLINE_MS TOKEN. undefined: the library did not write it. */
export function parseSignal(element: unknown): Signal | undefined {
  const parts = /^(\d{1,16}) (\d{1,16}) (.+)$/s.exec(String(element))
  if (!parts) return undefined
  return { fence: Number(parts[1]), deadline: Number(parts[2]), token: parts[3] as string }
}

export function parseAcquired(reply: unknown, sent: number, lease: number): Acquired {
  const [held, value, ms, now] = numbers(reply)
  if (held === undefined || value === undefined || ms === undefined || now === undefined) {
    throw unexpected('lock_acquire', reply)
  }
  if (held !== 1) return { sent, held: false, value, ms: ms < 0 ? Infinity : ms, now }
  // A lease of 0 must not become one that never ends.
  if (ms < 0 ? lease !== Infinity : ms === 0) throw unexpected('lock_acquire', reply)
  return { sent, held: true, value, ms: ms < 0 ? Infinity : ms, now }
}

export function parseNumber(call: string, reply: unknown): number {
  const number = Number(reply)
  if (reply === null || Array.isArray(reply) || !Number.isSafeInteger(number)) {
    throw unexpected(call, reply)
  }
  return number
}

function numbers(reply: unknown): number[] {
  if (!Array.isArray(reply)) return []
  const all = reply.slice(0, 4).map(Number)
  return all.every(Number.isSafeInteger) ? all : []
}

function unexpected(call: string, reply: unknown): Error {
  return new Error(
    `unexpected reply from the function library to ${call}: ${JSON.stringify(reply)}`,
  )
}

/** The field-value list of lock_inspect. Some client libraries return it as a map. */
export function parseFields(reply: unknown): Map<string, unknown> {
  if (reply instanceof Map) return new Map([...reply].map(([key, value]) => [String(key), value]))
  if (Array.isArray(reply)) {
    const fields = new Map<string, unknown>()
    for (let i = 0; i + 1 < reply.length; i += 2) fields.set(String(reply[i]), reply[i + 1])
    return fields
  }
  if (typeof reply === 'object' && reply !== null) return new Map(Object.entries(reply))
  throw unexpected('lock_inspect', reply)
}

/** A time as the library's argument: whole milliseconds, and 0 for a lease that never ends. */
export function millis(ms: number): string {
  return ms === Infinity ? '0' : String(Math.max(1, Math.ceil(ms)))
}
