"""Many waiters, and what they cost: threads, tasks, processes, and what is left of those that die."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import redis
import redis.asyncio
from servers import SOON, eventually

from redislock import AsyncLock, Lock

CYCLES = int(os.environ.get("CYCLES", "10000"))  # of the run with kills and cancels
HERE = os.path.dirname(__file__)
ENV = {**os.environ, "PYTHONPATH": os.path.join(HERE, "..", "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_thousand_threads_wait_on_one_connection(server, name):
    direct = server.client()
    client = redis.Redis(port=server.port, max_connections=1)  # its pool is not used
    served = []

    def work(i):
        with Lock(client, name):
            served.append(i)

    stack = threading.stack_size(256 * 1024)
    try:
        with Lock(client, name, lease=6) as holder:
            threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(1000)]
            for thread in threads:
                thread.start()
            eventually(lambda: holder.inspect().waiting == 1000)
            connections = [c for c in direct.client_list() if int(c["fd"]) and c["id"] != str(direct.client_id())]
            assert len(connections) <= 2
            assert direct.info("clients")["blocked_clients"] <= 1
            # Renewals do not wait behind the waiters.
            left = direct.pttl("lock:{" + name + "}")
            eventually(lambda: direct.pttl("lock:{" + name + "}") > left)
    finally:
        threading.stack_size(stack)
    for thread in threads:
        thread.join(SOON)
    assert sorted(served) == list(range(1000))
    assert direct.zcard("lock-queue:{" + name + "}") == 0


async def test_a_thousand_tasks_wait_on_one_connection(server, name):
    direct = server.client()
    served = []

    async def work(i):
        async with AsyncLock(client, name):
            served.append(i)

    async with redis.asyncio.Redis(port=server.port, max_connections=1) as client:
        async with AsyncLock(client, name, lease=6) as holder:
            tasks = []
            for i in range(1000):
                tasks.append(asyncio.ensure_future(work(i)))
            while (await holder.inspect()).waiting < 1000:
                await asyncio.sleep(0.01)
            assert len(direct.client_list()) <= 3  # with our own
            left = direct.pttl("lock:{" + name + "}")

            async def renewed():  # renewals do not wait behind the waiters
                while direct.pttl("lock:{" + name + "}") <= left:
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(renewed(), SOON)
        await asyncio.wait_for(asyncio.gather(*tasks), SOON)
    assert served == list(range(1000))


FORGETS = {
    "threads": """
import sys, threading, redis
from redislock import Lock
client = redis.Redis(port=int(sys.argv[1]))
Lock(client, sys.argv[2]).acquire()
threading.Thread(target=Lock(client, sys.argv[2]).acquire, daemon=True).start()
""",
    "tasks": """
import asyncio, sys, redis
from redislock import AsyncLock
async def main():
    client = redis.Redis(port=int(sys.argv[1]))
    await AsyncLock(client, sys.argv[2]).acquire()
    asyncio.ensure_future(AsyncLock(client, sys.argv[2]).acquire())
    await asyncio.sleep(0)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("kind", list(FORGETS))
def test_a_process_with_a_forgotten_release_ends_by_itself(server, name, kind):
    done = subprocess.run([sys.executable, "-W", "error", "-c", FORGETS[kind], str(server.port), name], env=ENV,
                          timeout=SOON, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Lock(server.client(), name).locked()


def start(server, name, kind, seed):
    return subprocess.Popen([sys.executable, os.path.join(HERE, "worker.py"), kind, str(server.port), name, str(seed)],
                            env=ENV, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_fifty_in_two_processes_with_kills_and_cancels(server, name, kind):
    """Never two holders, nobody stuck, nothing left in Redis."""
    client, seed = server.client(), random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    processes = []
    try:
        for i in range(2):
            processes.append(start(server, name, kind, seed + i))
        for round_ in range(3):  # one of them is killed, and another one takes its place
            served = int(client.get("served") or 0)
            eventually(lambda served=served: int(client.get("served") or 0) > served + CYCLES / 3,
                       within=max(SOON, CYCLES / 10))
            victim = processes.pop(chance.randrange(2))
            victim.send_signal(signal.SIGKILL)
            victim.wait(SOON)
            victim.stdout.close()
            processes.append(start(server, name, kind, seed + 2 + round_))
        client.set("stop", 1)
        for process in processes:
            out, _ = process.communicate(timeout=SOON)
            assert process.returncode == 0, out
            assert "done" in out
    finally:
        for process in processes:
            process.kill()
            process.wait(SOON)
            process.stdout.close()
    assert client.get("violations") is None
    fences = [int(f) for f in client.lrange("fences", 0, -1)]
    assert fences == sorted(fences)
    assert len(fences) > CYCLES
    # Nothing is left of those that ended, and the dead ones lapse.
    assert Lock(client, name).acquire(timeout=SOON)
    assert client.zcard("lock-queue:{" + name + "}") == 0


def test_the_child_of_a_fork_does_not_keep_the_connections_of_its_dead_parent(server, name):
    """Else the server would go on to tell a dead waiter."""
    code = ("import os, sys, threading, time, redis\n"
            "from redislock import Lock\n"
            "client = redis.Redis(port=int(sys.argv[1]))\n"
            "with Lock(client, sys.argv[2]) as holder:\n"
            "    threading.Thread(target=Lock(client, sys.argv[2]).acquire, daemon=True).start()\n"
            "    while not holder.inspect().waiting: time.sleep(0.01)\n"
            "    if os.fork() == 0:\n"
            "        print('child', os.getpid(), flush=True)\n"
            "        time.sleep(600)\n"
            "    time.sleep(600)\n")
    parent = subprocess.Popen([sys.executable, "-c", code, str(server.port), name], env=ENV, stdout=subprocess.PIPE,
                              text=True)
    direct = server.client()
    child = None
    try:
        child = int(parent.stdout.readline().split()[1])
        eventually(lambda: direct.info("clients")["blocked_clients"] == 1)
        parent.kill()
        parent.wait(SOON)
        eventually(lambda: len(direct.client_list()) == 1)
        os.kill(child, 0)  # it lives
    finally:
        parent.kill()
        parent.wait(SOON)
        parent.stdout.close()
        if child:
            os.kill(child, signal.SIGKILL)


def test_the_default_executor_is_not_needed(server, name):
    """20 tasks wait while all threads of the loop's executor are taken."""
    served = []
    go_on = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        taken = [loop.run_in_executor(None, go_on.wait, SOON) for _ in range(64)]
        client = redis.asyncio.Redis(port=server.port)

        async def work(i):
            async with AsyncLock(client, name):
                served.append(i)

        await asyncio.wait_for(asyncio.gather(*[work(i) for i in range(20)]), SOON)
        go_on.set()
        await asyncio.gather(*taken)
        await (client.aclose() if hasattr(client, "aclose") else client.close())

    asyncio.run(main())
    assert len(served) == 20


def test_threads_that_wait_do_not_keep_the_release_of_a_task_waiting(server, name):
    """Lock in asyncio.to_thread, as people do it: acquire in a thread, release anywhere."""
    client, served = server.client(), []

    async def main():
        async def work(i):
            lock = Lock(client, name)
            assert await asyncio.get_running_loop().run_in_executor(None, lock.acquire)
            served.append(i)
            lock.release()

        await asyncio.wait_for(asyncio.gather(*[work(i) for i in range(20)]), SOON)

    asyncio.run(main())
    assert sorted(served) == list(range(20))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_threads_wait(server, name):
    client = server.client()
    with Lock(client, name) as holder:
        waiter = threading.Thread(target=lambda: Lock(client, name).acquire(timeout=SOON), daemon=True)
        waiter.start()
        eventually(lambda: holder.inspect().waiting == 1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                other = Lock(client, name)
                assert other.acquire(timeout=1) is False
                with Lock(client, name + "-child"):
                    pass
                status = 0
            finally:
                os._exit(status)
        end = time.monotonic() + SOON
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert ended[1] == 0
        assert holder.inspect().waiting == 1
    waiter.join(SOON)
    assert not waiter.is_alive()
