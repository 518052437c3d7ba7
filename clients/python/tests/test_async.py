from __future__ import annotations

import asyncio
import random
import time

import pytest
import redis.asyncio
from servers import SOON, eventually

from redislock import (
    AlreadyAcquired,
    AsyncLock,
    AsyncLocks,
    Lock,
    LockLost,
    NotAcquired,
    NotHeld,
    Unavailable,
    reset_all,
)


@pytest.fixture
def lock(shared_server, name):
    client = redis.asyncio.Redis(port=shared_server.port)  # it never connects

    def make(**options):
        return AsyncLock(client, name, **options)
    return make


async def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def test_with(lock):
    async with lock() as first:
        assert first.held
        assert (await first.inspect()).holder == first.token
        assert await lock().locked()
        assert await lock().acquire(blocking=False) is False
        assert await lock().acquire(timeout=1) is False
        with pytest.raises(NotAcquired, match="busy"):
            async with lock(timeout=1):
                pass
        with pytest.raises(AlreadyAcquired):
            await first.acquire()
        await first.extend(20)
        assert 15 < first.deadline - time.monotonic() <= 20
    assert not await first.locked()
    async with lock() as second:
        assert second.fence > first.fence
    with pytest.raises(NotHeld):
        await second.release()
    with pytest.raises(ZeroDivisionError):
        async with lock() as third:
            await third.reset()
            1 / 0  # noqa: B018


async def test_first_come_first_served(lock, waiting):
    order, tasks = [], []

    async def turn(i):
        async with lock():
            order.append(i)

    async with lock():
        for i in range(5):
            tasks.append(asyncio.ensure_future(turn(i)))
            await until(lambda i=i: waiting() == i + 1)
    await asyncio.wait_for(asyncio.gather(*tasks), SOON)
    assert order == [0, 1, 2, 3, 4]


async def test_a_client_of_either_kind(client, shared_server, name):
    async with AsyncLock(client, name) as held:
        assert held.held
    with Lock(redis.asyncio.Redis(port=shared_server.port), name) as held:
        assert held.held


async def test_lost(lock):
    told = []

    async def on_lost(which):
        told.append(which)

    held = lock(lease=0.5, renew=False, on_lost=on_lost)
    await held.acquire()
    assert not held.lost.is_set()
    assert await asyncio.wait_for(held.lost.wait(), SOON)
    assert held.lost.is_set()
    assert not held.held
    await until(lambda: told == [held])
    with pytest.raises(LockLost, match="lease of 0.5 s is over"):
        await held.extend()
    with pytest.raises(LockLost):
        async with lock(lease=0.2, renew=False, on_lost=told.append) as other:
            await other.lost.wait()
    assert told[1] is other


async def test_the_flag_is_right_while_the_loop_is_busy(lock):
    held = lock(lease=0.3, renew=False)
    await held.acquire()
    eventually(held.lost.is_set)  # no await: the loop stands still
    assert not held.held


async def test_renewal_goes_on_while_the_loop_is_busy(lock, ttl):
    async with lock(lease=6) as held:
        eventually(lambda: ttl() < 5000)
        eventually(lambda: ttl() > 5000)
        assert held.held


async def test_a_cancelled_wait_leaves_the_queue_before_it_ends(lock, waiting):
    async with lock():
        waiter = lock()
        task = asyncio.ensure_future(waiter.acquire())
        await until(lambda: waiting() == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting() == 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiter.acquire(), 0.05)
        assert waiting() == 0
    assert await asyncio.wait_for(waiter.acquire(), SOON)
    await waiter.release()


async def test_cancels_at_any_point_leave_nothing_behind(lock, waiting, client, name):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    inside = 0

    async def work():
        nonlocal inside
        async with lock(lease=30):
            inside += 1
            try:
                assert inside == 1
                await asyncio.sleep(0)
            finally:
                inside -= 1

    for _ in range(40):
        tasks = [asyncio.ensure_future(work()) for _ in range(8)]
        for task in tasks:
            if chance.random() < 0.7:
                asyncio.get_running_loop().call_later(chance.choice([0, 0.0005, 0.002, 0.005, 0.01]), task.cancel)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
        for result in results:
            assert result is None or isinstance(result, asyncio.CancelledError), result
    # A lease of 30 s is not waited for.
    await until(lambda: waiting() == 0 and client.exists("lock:{" + name + "}") == 0)
    assert (await lock().inspect()).fence > 0


async def test_the_end_of_asyncio_run_leaves_nothing_behind(lock, waiting, client, name, shared_server):
    async def main():
        other = redis.asyncio.Redis(port=shared_server.port)
        asyncio.ensure_future(AsyncLock(other, name).acquire())
        while waiting() == 0:
            await asyncio.sleep(0.001)

    async with lock():
        await asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(main()))
        await until(lambda: waiting() == 0)


async def test_several_names(client, name):
    a, b = name + "a", name + "b"
    async with AsyncLocks(client, [b, a, a]) as locks:
        assert [lock.name for lock in locks] == [a, b]
        assert len(locks) == 2
        assert not await AsyncLocks(client, [a, name]).acquire(timeout=1)
        assert not await AsyncLocks(client, [name, b]).acquire(blocking=False)
        assert not await AsyncLock(client, name).locked()
        task = asyncio.ensure_future(AsyncLocks(client, [name, b]).acquire())
        await until(lambda: client.zcard("lock-queue:{" + b + "}") + client.zcard("lock-queue:{" + name + "}") == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.zcard("lock-queue:{" + b + "}") == 0
        await until(lambda: client.exists("lock:{" + name + "}") == 0)
    assert not await AsyncLock(client, a).locked()
    with pytest.raises(NotAcquired):
        async with AsyncLock(client, b), AsyncLocks(client, [a, b], timeout=1):
            pass
    assert not await AsyncLock(client, a).locked()


async def test_unavailable(server, name):
    server.stop()
    with pytest.raises(Unavailable):
        await AsyncLock(server.client(), name).acquire(blocking=False)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(AsyncLock(server.client(), name).acquire(), 0.05)
    server.go_on()
    assert await AsyncLock(server.client(), name).acquire(timeout=SOON)


async def test_reset_all_and_load(server):
    client = server.client()
    await AsyncLock.load(client)
    held = AsyncLock(client, "a", load=False)
    await held.acquire()
    assert await AsyncLock.reset_all(client) == 1
    assert reset_all(client) == 0
    with pytest.raises(LockLost):
        await held.release()
