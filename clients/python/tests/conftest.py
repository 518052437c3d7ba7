from __future__ import annotations

import os
import signal
import threading
import uuid

import pytest
from servers import SOON, Proxy, Server, eventually, start_cluster

from redislock import Lock


@pytest.fixture(autouse=True)
def bounded():
    """No test hangs for ever."""
    def late(*_):
        raise AssertionError("the test took too long")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(5 * SOON + int(os.environ.get("CYCLES", "0")))
    yield
    signal.alarm(0)


@pytest.fixture(scope="session")
def shared_server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server():
    """A server of the test's own, for what is global to one: stopping it, killing its connections."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(shared_server):
    with shared_server.client() as client:
        yield client


@pytest.fixture
def name():
    return "python-" + uuid.uuid4().hex


@pytest.fixture
def proxies():
    made = []

    def make(port):
        made.append(Proxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture(scope="session")
def cluster():
    servers = start_cluster(3)
    yield servers
    for server in servers:
        server.close()


class Threads:
    """Runs functions in threads. What they return, or raise, is had by result()."""

    def __call__(self, function, *args):
        results = []

        def run():
            try:
                results.append((function(*args), None))
            except BaseException as e:
                results.append((None, e))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def result():
            thread.join(SOON)
            assert results, "the thread did not end"
            value, error = results[0]
            if error is not None:
                raise error
            return value

        return result


@pytest.fixture
def in_thread():
    return Threads()


@pytest.fixture
def queued(client, name, in_thread):
    """Has a lock wait in a thread, and returns when it is in the queue."""
    def queue(lock, *args, **options):
        before = client.zcard("lock-queue:{" + name + "}")
        result = in_thread(lambda: lock.acquire(*args, **options))
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") > before)
        return result
    return queue


@pytest.fixture
def lock(client, name):
    def make(**options):
        return Lock(client, name, **options)
    return make


@pytest.fixture
def ttl(client, name):
    return lambda: client.pttl("lock:{" + name + "}")


@pytest.fixture
def waiting(client, name):
    return lambda: client.zcard("lock-queue:{" + name + "}")
