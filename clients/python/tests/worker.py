"""25 threads or tasks that take one lock in turns until the key `stop` is there: see test_many.py.

Some give up, some are cancelled. Each turn looks whether somebody else is inside.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading

import redis

from redislock import AsyncLock, Lock, LockError, Unavailable

kind, port, name, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
client = redis.Redis(port=port, socket_timeout=30)
chance = random.Random(seed)

ENTER = """
if tonumber(ARGV[1]) < tonumber(redis.call('GET', 'newest') or 0) then redis.call('INCR', 'violations') end
redis.call('SET', 'newest', ARGV[1])
redis.call('RPUSH', 'fences', ARGV[1])
if redis.call('GET', 'inside') then redis.call('INCR', 'violations') end
-- What a dead holder leaves behind ends with its lease, at the latest.
redis.call('SET', 'inside', ARGV[1], 'PX', math.max(1, redis.call('PTTL', ARGV[2]) - 50))
redis.call('INCR', 'served')
return redis.call('EXISTS', 'stop')
"""
LEAVE = "if redis.call('GET', 'inside') == ARGV[1] then redis.call('DEL', 'inside') end"
LEASE = 5


over = False


def turn(lock):
    global over
    over = client.eval(ENTER, 0, lock.fence, "lock:{" + name + "}") == 1 or over
    client.eval(LEAVE, 0, lock.fence)


def thread():
    while not over:
        lock = Lock(client, name, lease=LEASE)
        try:
            if not lock.acquire(timeout=chance.choice([0.01, 0.1, 60])):
                continue
        except Unavailable:  # of a hundredth of a second
            continue
        turn(lock)
        lock.release()


async def task():
    while not over:
        lock = AsyncLock(client, name, lease=LEASE)
        waiting = asyncio.ensure_future(lock.acquire())
        if chance.random() < 0.4:
            await asyncio.wait([waiting], timeout=chance.choice([0, 0.001, 0.01, 0.1]))
            waiting.cancel()
        try:
            await waiting
        except asyncio.CancelledError:
            continue
        turn(lock)
        await lock.release()


async def tasks():
    await asyncio.gather(*[task() for _ in range(25)])


try:
    if kind == "tasks":
        asyncio.run(tasks())
    else:
        failed = []
        threading.excepthook = lambda args: failed.append(args.exc_value)
        threads = [threading.Thread(target=thread) for _ in range(25)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if failed:
            raise failed[0]
except LockError as e:
    print("failed", repr(e))
    sys.exit(1)
print("done")
