"""Several users of several locks, see several_test.go: half of them are threads, half of them are tasks."""
import asyncio
import concurrent.futures
import contextlib
import json
import os
import random

import redis
import redis.asyncio

from redislock import AsyncLocks, LockLost, Locks

env = os.environ
host, port = env["ADDR"].split(":")
names, rounds, users = json.loads(env["NAMES"]), int(env["ROUNDS"]), int(env["USERS"])
options = {"timeout": int(env["PATIENCE"]) / 1000}


def some():
    return random.sample(names, random.randint(2, 3))


def thread():
    done = 0
    client = redis.Redis(host=host, port=int(port))
    while client.incr("rounds") <= rounds:
        done += 1
        with contextlib.suppress(LockLost):  # the machine was too busy
            with Locks(client, some(), **options):
                pass
    return done


async def task():
    done = 0
    client = redis.asyncio.Redis(host=host, port=int(port))
    while await client.incr("rounds") <= rounds:
        done += 1
        with contextlib.suppress(LockLost):
            async with AsyncLocks(client, some(), **options):
                pass
    await client.close()
    return done


async def tasks():
    return sum(await asyncio.gather(*[task() for _ in range(users - users // 2)]))


with concurrent.futures.ThreadPoolExecutor(users) as pool:
    threads = [pool.submit(thread) for _ in range(users // 2)]
    done = asyncio.run(tasks())
    done += sum(thread.result() for thread in threads)
print("done", done)
