"""Time limits hold, whatever is wrong with the server, and whatever the caller's client retries by itself."""

from __future__ import annotations

import time

import pytest
import redis
from servers import SOON, Server, eventually, free_port

from redislock import Lock, Unavailable

# A limit may be overrun by a second. The rest is for a busy machine: without limits of our own, redis-py
# would take minutes.
LATE = 1 + 5


@pytest.fixture
def within():
    class Within:
        def __init__(self, seconds):
            self.seconds = seconds

        def __enter__(self):
            self.began = time.monotonic()

        def __exit__(self, *_):
            assert time.monotonic() - self.began < self.seconds + LATE
    return Within


def stopped(server, proxy):
    server.stop()


def refused(server, proxy):
    proxy.close()


def silent(server, proxy):
    proxy.hole()


def demoted(server, proxy):
    server.client().replicaof("127.0.0.1", free_port())


@pytest.fixture(params=[stopped, refused, silent, demoted], ids=lambda f: f.__name__)
def trouble(request):
    return request.param


@pytest.mark.parametrize("connected", [False, True], ids=["at first", "with a connection"])
def test_a_wait_and_a_try(server, proxies, name, trouble, connected, within):
    proxy = proxies(server.port)
    client = redis.Redis(port=proxy.port)
    if connected:
        with Lock(client, name):
            pass
    trouble(server, proxy)
    with within(0), pytest.raises(Unavailable):
        Lock(client, name).acquire(blocking=False)
    with within(0.5), pytest.raises(Unavailable):
        Lock(client, name).acquire(timeout=0.5)
    with within(0.5), pytest.raises(Unavailable), Lock(client, name, timeout=0.5):
        pass
    if trouble is not demoted:  # which still shows what it knows
        with within(2), pytest.raises(Unavailable):
            Lock(client, name).inspect()


def test_a_release_and_an_extend(server, proxies, name, trouble, within):
    proxy = proxies(server.port)
    held = Lock(redis.Redis(port=proxy.port), name, lease=60)
    held.acquire()
    trouble(server, proxy)
    with within(2), pytest.raises(Unavailable):
        held.extend()
    with within(5), pytest.raises(Unavailable, match="ends by itself"):
        held.release()
    assert not held.held


def test_a_wait_that_was_told_busy_says_so(server, name, within, in_thread):
    client = server.client()
    with Lock(client, name, lease=60):
        waiter = Lock(client, name)
        result = in_thread(lambda: waiter.acquire(timeout=1.5))
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 1)
        client.ping()  # by now the waiter's reply has left the server, too
        with within(1.5):
            server.stop()
            assert result() is False
        server.go_on()
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 0)


def test_nothing_is_left_of_waits_that_ended_while_the_server_stood_still(server, name):
    client = server.client(socket_timeout=SOON)
    with Lock(client, name):
        pass
    server.stop()
    for lock in [Lock(client, name, lease=None) for _ in range(3)]:
        with pytest.raises(Unavailable):
            lock.acquire(timeout=0.05)
    server.go_on()
    # Each call was carried out, and so was what undoes it, which came behind it on the same connection.
    assert Lock(client, name).acquire(timeout=SOON)
    assert client.zcard("lock-queue:{" + name + "}") == 0


def test_a_call_that_arrives_late_is_undone_behind_it(server, proxies, name):
    """Its wait ended, its connection was given up, and the release on a new one has overtaken it."""
    proxy, direct = proxies(server.port), server.client()
    client = redis.Redis(port=proxy.port)
    with Lock(client, name + "-other") as other:
        engine = other._engine
    proxy.hold()
    with pytest.raises(Unavailable):
        Lock(client, name, lease=None).acquire(timeout=0.05)
    eventually(lambda: not engine._leavers)
    assert Lock(direct, name).inspect().fence == 0
    proxy.flush()
    eventually(lambda: Lock(direct, name).inspect().fence > 0)  # now it has come
    eventually(lambda: not Lock(direct, name).locked())


def test_a_connection_that_gives_no_answer_is_given_up(server, proxies, name, in_thread):
    proxy = proxies(server.port)
    direct = server.client()
    client = redis.Redis(port=proxy.port)
    holder, waiter = Lock(client, name, lease=8), Lock(client, name)
    holder.acquire()
    result = in_thread(waiter.acquire)
    eventually(lambda: direct.info("clients")["blocked_clients"] == 1)
    proxy.freeze()  # the present connections die silently, new ones work
    eventually(lambda: direct.pttl("lock:{" + name + "}") < 6500)
    eventually(lambda: direct.pttl("lock:{" + name + "}") > 7000)  # renewed
    holder.release()
    assert result() is True
    waiter.release()


def test_a_demoted_server_is_given_up(proxies, name, in_thread):
    """One address whose target was switched, while the old connections live on."""
    primary = Server()
    try:
        replica = Server("--replicaof", "127.0.0.1", str(primary.port))
        try:
            proxy = proxies(primary.port)
            client = redis.Redis(port=proxy.port)
            holder, waiter = Lock(client, name), Lock(client, name)
            holder.acquire()
            result = in_thread(waiter.acquire)
            old, new = primary.client(), replica.client()
            eventually(lambda: new.zcard("lock-queue:{" + name + "}") == 1)
            eventually(lambda: old.info("clients")["blocked_clients"] == 1)
            new.replicaof("NO", "ONE")
            proxy.target = replica.port
            old.replicaof("127.0.0.1", replica.port)
            eventually(lambda: new.info("clients")["blocked_clients"] == 1)
            holder.release()
            assert result() is True
            waiter.release()
        finally:
            replica.close()
    finally:
        primary.close()


def test_a_holder_goes_on_when_the_network_is_back(server, proxies, name):
    proxy = proxies(server.port)
    held = Lock(redis.Redis(port=proxy.port), name, lease=8)
    held.acquire()
    direct = server.client()
    proxy.hole()
    eventually(lambda: direct.pttl("lock:{" + name + "}") < 4500)
    proxy.hole(False)
    proxy.cut()
    eventually(lambda: direct.pttl("lock:{" + name + "}") > 5000)
    assert held.held
    held.release()
