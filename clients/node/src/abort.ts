const listeners = new WeakMap<AbortSignal, { runs: Set<() => void>; listener: () => void }>()

/**
 * Runs `run` when the signal aborts, unless the function that this returns is called before. All who share a signal
 * have one listener: Node.js warns of a leak at the eleventh.
 */
export function onAbort(signal: AbortSignal, run: () => void): () => void {
  let shared = listeners.get(signal)
  if (!shared) {
    const runs = new Set<() => void>()
    const listener = () => {
      for (const each of [...runs]) if (runs.has(each)) each()
    }
    shared = { runs, listener }
    listeners.set(signal, shared)
    signal.addEventListener('abort', listener)
  }
  const { runs, listener } = shared
  runs.add(run)
  return () => {
    if (!runs.delete(run) || runs.size > 0) return
    listeners.delete(signal)
    signal.removeEventListener('abort', listener)
  }
}
