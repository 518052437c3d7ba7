"""One contender with a lock of a Python library. Usage: peer.py KIND URL. See README.md."""

import importlib.metadata
import os
import queue
import sys
import threading
import time

import redis

LEASE = 10  # seconds, for all peers
lines: queue.SimpleQueue = queue.SimpleQueue()
stopped = threading.Event()


def read():
    for line in sys.stdin:
        if line.strip() == "stop":
            stopped.set()
        else:
            stopped.clear()
            lines.put(line.split())
    os._exit(0)


def opener(kind, client):
    """What makes a lock of that name, with acquire() and release()."""
    if kind == "redislock":
        import redislock

        return lambda name: redislock.Lock(client, name)
    if kind == "python-redis-lock":
        import redis_lock

        return lambda name: redis_lock.Lock(client, name, expire=LEASE, auto_renewal=True)
    sleep = 0.001 if kind == "redis-py-1ms" else 0.1
    return lambda name: client.lock(name, timeout=LEASE, sleep=sleep)


def cycle(new, name, hold):
    records = []
    last = False
    while not last:
        lock = new(name)
        asked = time.monotonic_ns()
        lock.acquire()
        granted = time.monotonic_ns()
        last = stopped.is_set()
        if hold and not last:
            time.sleep(hold)
        left = time.monotonic_ns()
        lock.release()
        records.append(f"{asked} {granted} {left}\n")
    return "".join(records) + "done"


def main():
    kind, url = sys.argv[1:]
    # Its BLPOP takes as long as the lease, and redis-py gives up a silent socket after 5 s.
    options = {"socket_timeout": None} if kind == "python-redis-lock" else {}
    client = redis.Redis.from_url(url, **options)
    client.ping()
    new = opener(kind, client)
    threading.Thread(target=read, daemon=True).start()
    versions = f"redis-py {redis.__version__}, Python {sys.version.split()[0]}"
    if kind == "python-redis-lock":
        versions = f"{kind} {importlib.metadata.version(kind)}, {versions}"
    print("ready", versions, flush=True)
    held = None
    while True:
        words = lines.get()
        try:
            if words[0] == "cycle":
                print(cycle(new, words[1], int(words[2]) / 1e6), flush=True)
            elif words[0] == "acquire":
                held = new(words[1])
                held.acquire()
                print("granted", time.monotonic_ns(), flush=True)
            else:
                held.release()
                print("released", time.monotonic_ns(), flush=True)
        except Exception as e:
            print("error", *repr(e).split(), flush=True)


main()
