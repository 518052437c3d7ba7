from __future__ import annotations

import math
import os
import pathlib
import re
import shlex
import signal
import threading
import time
from datetime import timedelta

import pytest
import redis
from servers import SOON, eventually

from redislock import (
    AlreadyAcquired,
    LibraryError,
    Lock,
    LockLost,
    Locks,
    NotAcquired,
    NotHeld,
    ServerError,
    Unavailable,
    reset_all,
)


def test_with(lock):
    with lock() as first:
        assert first.held
        assert first.inspect().holder == first.token
        assert lock().locked()
    assert not first.held
    assert not first.locked()
    with first:
        pass  # a Lock can be used again
    with lock() as second:
        assert second.fence > first.fence
        assert second.token != first.token


def test_an_exception_releases_and_is_what_the_caller_sees(lock):
    with pytest.raises(ZeroDivisionError), lock() as held:
        held.reset()
        1 / 0  # noqa: B018
    assert not held.locked()


def test_try(lock, waiting):
    with lock():
        assert lock().acquire(blocking=False) is False
        assert waiting() == 0
    second = lock()
    assert second.acquire(False) is True
    second.release()


def test_timeout(lock, waiting):
    with lock():
        began = time.monotonic()
        assert lock().acquire(timeout=1) is False
        assert time.monotonic() - began >= 1
        assert waiting() == 0
        assert lock().acquire(timeout=0) is False
        assert lock().acquire(timeout=timedelta(seconds=1)) is False
        with pytest.raises(NotAcquired, match="busy"), lock(timeout=1):
            pass


def test_infinity_waits_for_ever(lock, queued):
    holder, waiter = lock(), lock()
    holder.acquire()
    result = queued(waiter, timeout=math.inf)
    holder.release()
    assert result() is True
    waiter.release()


def test_first_come_first_served(lock, in_thread, waiting):
    holder, waiters, order = lock(), [lock() for _ in range(4)], []
    holder.acquire()

    def turn(i):
        with waiters[i]:
            order.append(i)

    results = []
    for i in range(4):
        results.append(in_thread(turn, i))
        eventually(lambda i=i: waiting() == i + 1)
    holder.release()
    for result in results:
        result()
    assert order == [0, 1, 2, 3]
    fences = [holder.fence] + [w.fence for w in waiters]
    assert fences == sorted(set(fences))


def test_a_handed_over_lock_is_confirmed_for_its_whole_lease(lock, queued, ttl):
    holder, waiter = lock(), lock(lease=60)
    holder.acquire()
    result = queued(waiter)
    holder.release()
    assert result()
    eventually(lambda: ttl() > 2000)
    eventually(lambda: waiter.deadline - time.monotonic() > 50)
    waiter.release()


def test_a_hand_over_needs_no_further_round_trip(shared_server, name, client, in_thread, proxies):
    proxy = proxies(shared_server.port)
    waiter = Lock(redis.Redis(port=proxy.port), name)
    with Lock(client, name):
        result = in_thread(waiter.acquire)
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 1)
        eventually(lambda: client.info("clients")["blocked_clients"] > 0)
        proxy.swallow_up = True  # nothing that it sends arrives from now on
    assert result() is True
    assert waiter.fence == waiter.fence
    proxy.swallow_up = False
    proxy.cut()  # what vanished does not come back
    waiter.release()


def test_a_release_before_the_claim_saves_it(shared_server, name, client, in_thread, proxies):
    proxy = proxies(shared_server.port)
    waiter = Lock(redis.Redis(port=proxy.port), name, lease=60)
    with Lock(client, name):
        result = in_thread(lambda: (waiter.acquire(), waiter._hold.lease.next(0), waiter.release()))
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 1)
    acquired, claim, _ = result()
    assert acquired
    assert claim is not None  # it would have been claimed
    assert proxy.seen.count(b"lock_release") == 1
    assert b"lock_extend" not in proxy.seen


def test_an_interrupted_wait_leaves_the_queue(lock, waiting, in_thread):
    class Interrupt(BaseException):
        pass

    def alarm(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, alarm)

    def interrupt():
        eventually(lambda: waiting() == 1)
        os.kill(os.getpid(), signal.SIGALRM)

    try:
        with lock():
            done = in_thread(interrupt)
            waiter = lock()
            with pytest.raises(Interrupt):
                waiter.acquire()
            done()
            assert waiting() == 0
        assert waiter.acquire(timeout=SOON)  # it can be used again
        waiter.release()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_waiter_survives_that_its_connections_are_cut(lock, queued, shared_server, name, client, proxies, in_thread):
    proxy = proxies(shared_server.port)
    waiter = Lock(redis.Redis(port=proxy.port), name)
    with lock():
        result = in_thread(waiter.acquire)
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 1)
        place = client.zrange("lock-queue:{" + name + "}", 0, -1, withscores=True)
        accepted = proxy.accepted
        proxy.cut()
        eventually(lambda: proxy.accepted > accepted)
        assert client.zrange("lock-queue:{" + name + "}", 0, -1, withscores=True) == place
    assert result() is True
    waiter.release()


def test_a_waiter_and_a_holder_survive_that_the_library_is_flushed(server, in_thread, name):
    client = server.client()
    holder, waiter = Lock(client, name), Lock(client, name)
    holder.acquire()
    result = in_thread(waiter.acquire)
    eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 1)
    client.function_flush()
    holder.extend()
    client.function_flush()
    holder.release()
    assert result() is True
    waiter.release()


def test_one_object_is_for_one_holder(lock, queued):
    with lock() as held:
        with pytest.raises(AlreadyAcquired):
            held.acquire()
        assert held.held
        waiter = lock()
        result = queued(waiter)
        with pytest.raises(AlreadyAcquired):
            waiter.acquire()
    assert result()
    waiter.release()


def test_a_token_of_your_own_is_for_a_lock_that_another_process_goes_on_with(lock, ttl):
    here, there = lock(token="job-7"), lock(token="job-7", lease=60)
    here.acquire()
    assert there.acquire(blocking=False)
    assert ttl() > 20_000
    assert there.fence == here.fence
    there.release()
    with pytest.raises(LockLost):
        here.release()


def test_a_wait_with_a_token_of_your_own_does_not_release_what_another_process_holds(lock, client, name):
    here = lock(token="job-8")
    here.acquire()
    other = lock(token="job-9")
    assert other.acquire(timeout=1) is False
    # A wait with the same token that is abandoned while nothing is known of it.
    engine = here._engine
    waiting = engine.obtain(here._request(True, None))
    engine.abandon(waiting).result(SOON)
    assert here.inspect().holder == "job-8"
    here.release()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_child_of_a_fork_does_not_hold_it(lock, client):
    with lock() as held:
        pid = os.fork()
        if pid == 0:  # what it finds is its exit status
            status = 1
            try:
                for call in (held.extend, held.release):
                    with pytest.raises(NotHeld):
                        call()
                assert not held.held
                assert held.acquire(blocking=False) is False
                with Lock(client, "of the child"):
                    pass
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        held.extend()
        assert held.inspect().holder == held.token


def test_a_client_that_decodes_replies(shared_server, name):
    with shared_server.client(decode_responses=True) as client, Lock(client, name) as held:
        assert held.inspect().holder == held.token
        assert Lock(client, name).acquire(timeout=1) is False


def test_the_owner_is_in_the_token(lock, client, name):
    import socket

    with lock() as held:
        assert held.token.startswith(f"{socket.gethostname()}:{os.getpid()}:")
    with lock(owner="nightly import") as held:
        assert held.token.startswith("nightly import:")
        assert client.get("lock:{" + name + "}").decode() == held.token


def test_renewal(lock, ttl):
    with lock(lease=6) as held:
        fence = held.fence
        eventually(lambda: ttl() < 5000)
        eventually(lambda: ttl() > 5000)
        assert not held.lost.is_set()
        assert held.fence == fence


def test_without_renewal_it_is_lost(lock):
    told = []
    held = lock(lease=1, renew=False, on_lost=told.append)
    held.acquire()
    assert held.lost.wait(SOON)
    assert not held.held
    eventually(lambda: told == [held])
    eventually(lambda: not held.locked())
    for call in (held.extend, held.release):
        with pytest.raises(NotHeld):
            call()
    with pytest.raises(LockLost, match="lease of 0.1 s is over"), lock(lease=0.1, renew=False) as short:
        assert short.lost.wait(SOON)


def test_the_notice_comes_ahead_of_the_end_while_calls_hang(shared_server, name, ttl, proxies):
    proxy = proxies(shared_server.port)
    held = Lock(redis.Redis(port=proxy.port), name, lease=5)
    held.acquire()
    proxy.hole()
    # Its timer is set half a second ahead, and the deadline is no later than the server's. That a call
    # which hangs does not hold the timer up, in time, is what the vectors show: a machine can be slow.
    deadline, alarm = held.deadline, held._hold._alarm.when()
    assert alarm == pytest.approx(deadline - 0.5)
    left = ttl()
    assert deadline <= time.monotonic() + (left + 1) / 1000
    assert held.lost.wait(SOON)
    assert held.deadline == deadline


def test_a_late_timer_does_no_harm(lock):
    with pytest.raises(LockLost), lock(lease=0.3, renew=False) as held:
        go_on = threading.Event()
        held._engine.loop.call_soon_threadsafe(go_on.wait, SOON)  # the thread stands still
        eventually(held.lost.is_set)
        assert not held.held
        assert held._hold.stage == "held"  # the timer has not run
        go_on.set()


def test_a_reset_is_noticed_at_the_next_renewal(lock):
    held = lock(lease=3)
    held.acquire()
    assert lock().reset()
    assert held.lost.wait(SOON)
    with pytest.raises(LockLost):
        held.release()
    with pytest.raises(LockLost, match="taken away"), lock(lease=60) as held:
        held.reset()
        with pytest.raises(LockLost):
            held.extend()


def test_without_expiry(lock, ttl):
    with lock(lease=None) as held:
        assert held.deadline is None
        assert ttl() == -1
        assert held.inspect().ttl is None
        held.extend(6)  # from here on it has a lease, and renewal keeps it
        eventually(lambda: 0 < ttl() < 5000)
        eventually(lambda: ttl() > 5000)


def test_max_hold(lock, ttl):
    with pytest.raises(LockLost, match="maximum hold of 1 s"), lock(lease=60, max_hold=1) as held:
        assert ttl() <= 1000
        assert held.lost.wait(SOON)


def test_min_hold(lock, queued, ttl, waiting):
    first = lock(lease=1, min_hold=60)
    first.acquire()
    assert ttl() > 50_000  # also if the holder dies
    first.release()
    assert first.inspect().held == 1
    assert ttl() > 50_000
    assert lock().acquire(blocking=False) is False
    lock().reset()
    with lock(min_hold=0.2):
        pass
    assert lock().acquire(timeout=SOON)
    lock().reset()


def test_min_hold_of_a_lock_that_was_handed_over(lock, queued, ttl):
    waiter = lock(min_hold=60)
    with lock():
        result = queued(waiter)
    assert result()
    waiter.release()
    assert ttl() > 50_000
    assert lock().reset()


def test_release_of_what_was_never_acquired(lock):
    assert issubclass(NotHeld, RuntimeError)  # which threading.Lock raises
    for call in (lock().release, lock().extend):
        with pytest.raises(NotHeld):
            call()
    with lock() as held:
        pass
    with pytest.raises(NotHeld, match="released before"):
        held.release()


@pytest.mark.parametrize(("text", "options"), [
    ("must not be empty", {"name": ""}),
    ("begin with '}'", {"name": "}x"}),
    ("lease", {"lease": 0}),
    ("lease", {"lease": math.nan}),
    ("lease", {"lease": math.inf}),
    ("lease", {"lease": -1}),
    ("timeout", {"timeout": -1}),
    ("token", {"token": ""}),
    ("token", {"token": "x" * 16_385}),
    ("holders", {"holders": 0}),
    ("exclude", {"holders": 2, "shared": True}),
    ("min_hold", {"min_hold": 2, "max_hold": 1}),
    ("prefix", {"prefix": "a:b"}),
])
def test_bad_values(client, text, options):
    with pytest.raises(ValueError, match=text):
        Lock(**{"client": client, "name": "x", **options})


@pytest.mark.parametrize("options", [{"leese": 3}, {"lease": "3"}, {"name": b"x"}, {"token": b"x"}, {"holders": 1.5},
                                     {"client": None}, {"client": "redis://x"}, {"owner": 7}])
def test_wrong_types_and_unknown_options(client, options):
    with pytest.raises(TypeError):
        Lock(**{"client": client, "name": "x", **options})


def test_bad_timeouts(lock):
    for options in ({"blocking": False, "timeout": 1}, {"timeout": -2}, {"timeout": math.nan}):
        with pytest.raises(ValueError, match="timeout"):
            lock().acquire(**options)


def test_load(server, name):
    client = server.client()
    with pytest.raises(LibraryError, match="redis-cli -x FUNCTION LOAD"):
        Lock(client, name, load=False).acquire()
    Lock.load(client)
    with Lock(client, name, load=False):
        pass
    client.function_flush()
    client.function_load("#!lua name=lock\nredis.register_function{function_name='lock_version', "
                         "callback=function() return '0.9.9' end, flags={'no-writes'}}")
    with pytest.raises(LibraryError, match=r"another major version.*has version 0\.9\.9"):
        Lock.load(client)


def test_an_older_library_is_replaced(server, name):
    client = server.client()
    client.function_load("#!lua name=lock\nredis.register_function{function_name='lock_version', "
                         "callback=function() return '1.0.0-' end, flags={'no-writes'}}".replace("1.0.0-", "1.0.0"))
    # It claims to be as new, so it is left alone, and the functions that it lacks are an error.
    with pytest.raises((LibraryError, ServerError)):
        Lock(client, name).acquire()


def test_rights_are_an_error_at_once(server, name):
    admin = server.client()
    with Lock(admin, name):
        pass
    admin.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+fcall_ro", "+time")
    weak = server.client(username="weak", password="pw")
    with pytest.raises(ServerError, match="NOPERM"):
        Lock(weak, name).acquire()
    wrong = server.client(username="weak", password="wrong")
    with pytest.raises(ServerError, match="WRONGPASS"):
        Lock(wrong, name).acquire()


def test_the_rights_of_the_documented_user_are_enough(server, name, in_thread):
    text = (pathlib.Path(__file__).parents[3] / "SECURITY.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^redis-cli (ACL SETUSER lock-app (?:.*\\\n)*.*)$", text, re.MULTILINE)
    admin = server.client()
    admin.execute_command(*shlex.split(line.replace("\\\n", " ")))
    Lock.load(admin)
    client = server.client(username="lock-app", password="app-password")
    with Lock(client, name, load=False) as holder:
        waiter = Lock(client, name, lease=60)
        result = in_thread(waiter.acquire)
        eventually(lambda: holder.inspect().waiting == 1)
        holder.extend()
    assert result()
    assert waiter.reset()
    with Locks(client, [name, name + "2"], shared=True):
        pass
    assert admin.execute_command("ACL", "LOG") == []  # nothing was refused


def test_errors_that_do_not_pass_are_raised_at_once(lock, client, name):
    client.lpush("lock:{" + name + "}", "not a lock")
    with pytest.raises(ServerError, match="WRONGTYPE") as raised:
        lock().acquire()
    assert isinstance(raised.value, redis.ResponseError)
    assert name in str(raised.value)


def test_an_outage_is_not_a_busy_lock(name):
    from servers import free_port

    with pytest.raises(Unavailable) as raised:
        Lock(redis.Redis(port=free_port()), name).acquire(blocking=False)
    assert isinstance(raised.value, redis.ConnectionError)


def test_inspect(lock, queued, name):
    with lock(lease=60) as holder:
        waiter = lock(lease=None, owner="me")
        result = queued(waiter)
        state = holder.inspect()
        assert (state.name, state.holder, state.fence, state.held) == (name, holder.token, holder.fence, 1)
        assert 50 < state.ttl <= 60
        assert state.holders == {holder.token: state.ttl}
        assert state.waiting == 1
        [place] = state.waiters
        assert place.token.startswith("me:")
        assert place.lease is None
        assert 0 < place.lapses_in <= 30
    assert result()
    waiter.release()
    state = lock().inspect()
    assert (state.holder, state.ttl, state.held, state.holders, state.waiters) == (None, None, 0, {}, [])


def test_held_together(lock, queued, waiting, in_thread):
    two = [lock(holders=2) for _ in range(3)]
    assert two[0].acquire()
    assert two[1].acquire()
    assert two[0].fence == two[1].fence
    assert two[2].acquire(blocking=False) is False
    state = lock().inspect()
    assert state.held == 2
    assert set(state.holders) == {two[0].token, two[1].token}
    assert all(0 < left <= 10 for left in state.holders.values())
    result = queued(two[2], timeout=SOON)
    assert [w.holders for w in lock().inspect().waiters] == [2]
    two[0].extend(60)
    two[0].release()
    assert result()
    alone = lock()
    drained = queued(alone, timeout=SOON)
    assert lock(shared=True).acquire(blocking=False) is False  # nobody overtakes
    two[1].release()
    two[2].release()
    assert drained()
    readers = [lock(shared=True) for _ in range(20)]
    results = [queued(reader, timeout=SOON) for reader in readers]
    assert [w.holders for w in lock().inspect().waiters] == [0] * 20
    alone.release()
    assert all(result() for result in results)
    assert lock().inspect().held == 20
    for reader in readers:
        reader.release()
    assert lock().inspect().held == 0


def test_a_share_that_expires_or_is_reset(lock):
    short, long = lock(shared=True, lease=0.5, renew=False), lock(shared=True)
    assert short.acquire()
    assert long.acquire()
    assert short.lost.wait(SOON)
    eventually(lambda: lock().inspect().held == 1)
    with pytest.raises(LockLost):
        short.release()
    assert lock().reset()
    with pytest.raises(LockLost, match="taken away"):
        long.extend()


@pytest.mark.parametrize("leases", [(1, 60), (60, 1)])
def test_leases_of_1_s_and_60_s_side_by_side_never_change_each_other(lock, leases, ttl):
    locks = {lease: lock(shared=True, renew=False, lease=lease) for lease in leases}
    for one in locks.values():
        assert one.acquire()
    short, long = locks[1], locks[60]
    holders = lock().inspect().holders
    assert holders.get(short.token, 0) <= 1
    assert holders[long.token] > 30
    assert short.lost.wait(SOON)
    eventually(lambda: lock().inspect().held == 1)
    assert long.held
    assert long.deadline - time.monotonic() > 30
    long.extend(1)
    assert ttl() <= 1001  # so nothing is left of 60 s
    long.release()


def test_a_share_without_expiry_that_leaves_gives_the_key_its_ttl_back(lock, ttl):
    endless, other = lock(shared=True, lease=None), lock(shared=True, lease=60)
    assert endless.acquire()
    assert other.acquire()
    assert ttl() == -1
    endless.release()
    assert ttl() > 0
    other.release()


def test_reset_all(server):
    client = server.client()
    held = [Lock(client, name) for name in ("a", "b:{x}", "c")]
    for one in held:
        one.acquire()
    other = Lock(client, "a", prefix="other")
    other.acquire()
    client.set("lock:{theirs}", "no lock of ours")
    client.lpush("lock:{list}", "x")
    assert reset_all(client) == 3
    assert client.get("lock:{theirs}") == b"no lock of ours"
    assert other.inspect().held == 1
    assert Lock.reset_all(client, prefix="other") == 1
    for one in [*held, other]:
        with pytest.raises(LockLost):
            one.release()


def test_several_names(client, name, in_thread):
    a, b = name + "a", name + "b"
    with Locks(client, [b, a, "{" + a + "}"]) as locks:
        assert [lock.name for lock in locks] == [a, b]
        assert len({lock.fence for lock in locks}) == 2
        assert locks["{" + a + "}"] is locks[a]
        assert not Locks(client, [b, name]).acquire(blocking=False)
        assert not Lock(client, name).locked()  # what it had taken was released
        assert not Locks(client, [a, name]).acquire(timeout=1)
        with pytest.raises(NotAcquired), Locks(client, [a], timeout=0):
            pass
    assert not Lock(client, a).locked()
    assert not Lock(client, b).locked()

    def both(names):
        for _ in range(20):
            with Locks(client, names):
                pass
        return True

    results = [in_thread(both, names) for names in ([a, b], [b, a], [b], [a])]
    assert all(result() for result in results)  # no deadlock


def test_several_names_of_which_one_is_lost_meanwhile(client, name, in_thread):
    a, b = name + "a", name + "b"
    with Lock(client, b) as held:
        locks = Locks(client, [a, b], lease=1.5)
        result = in_thread(locks.acquire)
        eventually(lambda: held.inspect().waiting == 1)
        Lock(client, a).reset()
        eventually(lambda: locks[a].lost.is_set())
    with pytest.raises(LockLost, match=a):
        result()
    assert not Lock(client, b).locked()
    for names in ([], "ab"):
        with pytest.raises((ValueError, TypeError)):
            Locks(client, names)
