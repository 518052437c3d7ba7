// The same from CommonJS.
import redislock = require('@redislock/client')

const locker: redislock.Locker = new redislock.Locker({
  sendCommand: async () => undefined,
  duplicate: () => undefined,
})
const wait: Promise<redislock.Lock> = locker.acquire('a', { wait: 5000 })
export = wait
