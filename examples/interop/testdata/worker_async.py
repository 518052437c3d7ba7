"""A worker of the mixed fleet with asyncio, see suite_test.go."""
import asyncio
import os
import sys

from redis.asyncio import Redis, RedisCluster

from redislock import AsyncLock, NotHeld

env = os.environ


async def main():
    host, port = env.get("CLUSTER", env["ADDR"]).split()[0].split(":")
    client = (RedisCluster if "CLUSTER" in env else Redis)(host=host, port=int(port), socket_timeout=2)
    min_hold = float(env["MIN_HOLD"]) if "MIN_HOLD" in env else None
    lock = AsyncLock(client, env["NAME"], lease=int(env["LEASE"]), min_hold=min_hold)
    if not await lock.acquire(timeout=float(env.get("WAIT", 120))):
        print("busy")
        sys.exit()
    print("held", lock.fence, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == "write\n":
            took = await client.execute_command("FCALL", "register_write", 1, env["REGISTER"], lock.fence, env["WHO"])
            print("wrote", took, flush=True)
        if line == "cancel\n":
            release = asyncio.ensure_future(lock.release())
            await asyncio.sleep(0)  # it has begun
            release.cancel()
            await asyncio.wait([release])
            print("cancelled", release.cancelled(), flush=True)
    try:
        await lock.release()
        print("released")
    except NotHeld:
        print("lost")
    await client.close()


asyncio.run(main())
