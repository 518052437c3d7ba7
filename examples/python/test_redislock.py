"""REDIS_URL=redis://127.0.0.1:7001 REDIS_CLUSTER=127.0.0.1:7101 python3 -m unittest

Needs servers of its own: their function library is deleted and their clients are disconnected.
"""
import logging
import os
import pathlib
import signal
import threading
import time
import unittest
import uuid

import redis
from redis.cluster import RedisCluster

from redislock import AlreadyAcquired, Lock, NotAcquired, NotLoaded

LIBRARY = pathlib.Path(__file__).resolve().parents[2] / "lua" / "lock.lua"
SOON = 60  # seconds; generous, nothing is proved by being fast

logging.getLogger("redis").setLevel(logging.CRITICAL)  # it logs each error that it also raises


def connect(kind=redis.Redis, **options):
    return kind.from_url(os.environ["REDIS_URL"], **{"socket_timeout": 3, **options})


class Meddler(redis.Redis):
    """meddle, if there is one, decides what becomes of each call of the function: it is given the call."""
    function, meddle = "lock_extend", None

    def execute_command(self, *command, **options):
        def call():
            return super(Meddler, self).execute_command(*command, **options)
        return self.meddle(call) if self.meddle and self.function in command else call()


def eventually(condition):
    end = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come true")
        time.sleep(0.005)


class TestCase(unittest.TestCase):
    def setUp(self):
        self.client = connect()
        self.addCleanup(self.client.close)
        self.name = "python-" + uuid.uuid4().hex

    def lock(self, **options):
        return Lock(self.client, self.name, library=LIBRARY, **options)

    def waiting(self):
        return self.client.zcard("lock-queue:{" + self.name + "}")

    def left(self):
        return self.client.pttl("lock:{" + self.name + "}")

    def in_thread(self, function):
        """Starts it, and returns what waits for its end and returns its result."""
        results = []

        def run():
            try:
                results.append(function())
            except Exception as e:
                results.append(e)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def result():
            thread.join(SOON)
            return results.pop()
        return result

    def queued(self, lock, **options):
        """Has the lock wait in a thread, and returns when it is in the queue."""
        before = self.waiting()
        result = self.in_thread(lambda: lock.acquire(**options))
        eventually(lambda: self.waiting() > before)
        return result


class AcquireAndRelease(TestCase):
    def test_with(self):
        with self.lock() as first:
            self.assertEqual(first.get_owner_id(), first.id)
            self.assertTrue(self.lock().locked())
        self.assertFalse(first.locked())
        self.assertIsNone(first.get_owner_id())
        with first:
            pass  # a Lock can be used again
        with self.lock() as second:
            self.assertGreater(second.fence, first.fence)
            self.assertNotEqual(second.id, first.id)

    def test_an_exception_releases_and_is_what_the_caller_sees(self):
        with self.assertRaises(ZeroDivisionError), self.lock() as lock:
            lock.reset()
            1 / 0
        self.assertFalse(lock.locked())

    def test_try(self):
        with self.lock():
            self.assertFalse(self.lock().acquire(blocking=False))
            self.assertEqual(self.waiting(), 0)
        lock = self.lock()
        self.assertTrue(lock.acquire(False))
        lock.release()

    def test_timeout(self):
        with self.lock():
            began = time.monotonic()
            self.assertFalse(self.lock().acquire(timeout=0.3))
            self.assertGreaterEqual(time.monotonic() - began, 0.3)
            self.assertEqual(self.waiting(), 0)
            self.assertFalse(self.lock().acquire(timeout=0))

    def test_infinity_waits_for_ever(self):
        holder, waiter = self.lock(), self.lock()
        holder.acquire()
        result = self.queued(waiter, timeout=float("inf"))
        holder.release()
        self.assertTrue(result())
        waiter.release()

    def test_first_come_first_served(self):
        holder, waiters, order = self.lock(), [self.lock() for _ in range(4)], []
        holder.acquire()

        def turn(i):
            with waiters[i]:
                order.append(i)

        results = []
        for i in range(4):
            results.append(self.in_thread(lambda i=i: turn(i)))
            eventually(lambda: self.waiting() == i + 1)
        holder.release()
        self.assertEqual([result() for result in results], [None] * 4)
        self.assertEqual(order, [0, 1, 2, 3])
        fences = [holder.fence] + [lock.fence for lock in waiters]
        self.assertEqual(fences, sorted(set(fences)))

    def test_whoever_was_handed_the_lock_confirms_it_for_the_whole_lease(self):
        holder, waiter = self.lock(), self.lock(expire=60)
        holder.acquire()
        result = self.queued(waiter)
        holder.release()
        self.assertTrue(result())
        self.assertGreater(self.left(), 2000)
        waiter.release()

    def test_an_interrupted_wait_leaves_the_queue(self):
        class Interrupt(BaseException):
            pass

        def alarm(*_):
            raise Interrupt

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, alarm))

        def interrupt():
            eventually(lambda: self.waiting() == 1)
            os.kill(os.getpid(), signal.SIGALRM)

        with self.lock():
            done = self.in_thread(interrupt)
            with self.assertRaises(Interrupt):
                self.lock().acquire()
            self.assertIsNone(done())
            self.assertEqual(self.waiting(), 0)

    def test_a_waiter_survives_that_its_connections_are_cut(self):
        holder, waiter = self.lock(), self.lock()
        holder.acquire()
        result = self.queued(waiter)
        with self.assertLogs("redislock", "WARNING"):
            eventually(lambda: connect().execute_command("CLIENT KILL", "TYPE", "normal") > 0)
            holder.release()
            self.assertTrue(result())
        waiter.release()

    def test_a_waiter_survives_that_the_library_is_flushed(self):
        holder, waiter = self.lock(), self.lock()
        holder.acquire()
        result = self.queued(waiter)
        self.client.function_delete("lock")
        holder.release()
        self.assertTrue(result())
        waiter.release()

    def test_one_object_is_for_one_holder(self):
        with self.lock() as lock, self.assertRaises(AlreadyAcquired):
            lock.acquire()

    def test_id_is_for_a_lock_that_another_process_goes_on_with(self):
        here, there = self.lock(id="job-7"), self.lock(id="job-7")
        here.acquire()
        there.extend(60)
        self.assertGreater(self.left(), 20_000)
        there.release()
        with self.assertRaises(NotAcquired):
            here.release()


    def test_the_child_of_a_fork_does_not_hold_it(self):
        with self.lock() as lock:
            pid = os.fork()
            if pid == 0:  # what it finds is its exit status
                try:
                    with self.assertRaises(NotAcquired):
                        lock.extend()
                    with self.assertRaises(NotAcquired):
                        lock.release()
                    with self.assertRaises(AlreadyAcquired):
                        lock.acquire()
                    os._exit(0)
                finally:
                    os._exit(1)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
            self.assertEqual(lock.get_owner_id(), lock.id)

    def test_a_client_that_decodes_replies(self):
        self.client = connect(decode_responses=True)
        with self.lock() as lock:
            self.assertEqual(lock.get_owner_id(), lock.id)
            self.assertFalse(self.lock().acquire(timeout=0.01))


class Lease(TestCase):
    def test_renewal(self):
        with self.lock(expire=6) as lock:
            fence = lock.fence
            eventually(lambda: self.left() < 5000)
            eventually(lambda: self.left() > 5000)
            self.assertFalse(lock.lost.is_set())
            self.assertEqual(lock.fence, fence)

    def test_without_renewal_it_is_lost(self):
        lock = self.lock(expire=1, auto_renewal=False)
        lock.acquire()
        self.assertTrue(lock.lost.wait(SOON))
        for call in lock.extend, lock.release, lock.release:
            with self.assertRaises(NotAcquired):
                eventually(lambda: not lock.locked())
                call()

    def test_a_reset_is_noticed_at_the_next_renewal(self):
        lock = self.lock(expire=3)
        lock.acquire()
        self.assertTrue(self.lock().reset())
        self.assertTrue(lock.lost.wait(SOON))
        with self.assertRaises(NotAcquired):
            lock.release()

    def test_a_failed_extend_is_a_notice_too(self):
        lock = self.lock(expire=60)
        lock.acquire()
        lock.reset()
        with self.assertRaises(NotAcquired):
            lock.extend()
        self.assertTrue(lock.lost.is_set())

    def test_the_holder_is_told_before_the_server_gives_the_lock_away(self):
        lock = Lock(connect(socket_timeout=3 * SOON), self.name, library=LIBRARY, expire=1)
        lock.acquire()
        self.client.execute_command("CLIENT PAUSE", 2000 * SOON, "WRITE")  # as a silent network
        try:
            self.assertTrue(lock.lost.wait(SOON))  # while the renewal hangs
        finally:
            self.client.execute_command("CLIENT UNPAUSE")
        with self.lock():
            pass

    def meddled(self, **options):
        """A lock that is held, and the client with which."""
        meddler = connect(Meddler)
        self.addCleanup(meddler.close)
        lock = Lock(meddler, self.name, library=LIBRARY, **options)
        lock.acquire()
        return lock, meddler

    def assert_told_ahead(self, lock):
        self.assertTrue(lock.lost.wait(SOON))
        self.assertGreater(self.left(), 50)  # it was told at about 500

    def test_the_notice_comes_ahead_of_the_end_while_a_renewal_hangs(self):
        lock, meddler = self.meddled(expire=5)
        never = threading.Event()
        self.addCleanup(never.set)
        meddler.meddle = lambda call: never.wait() and 0
        self.assert_told_ahead(lock)

    def test_a_shorter_lease_counts_though_its_reply_is_lost(self):
        lock, meddler = self.meddled(expire=20, auto_renewal=False)

        def lose_reply(call):
            call()
            raise redis.TimeoutError

        meddler.meddle = lose_reply
        with self.assertRaises(redis.TimeoutError):
            lock.extend(5)
        self.assert_told_ahead(lock)

    def test_a_shorter_lease_may_arrive_after_a_longer_one(self):
        lock, meddler = self.meddled(expire=20, auto_renewal=False)

        def lose_call(call):
            raise redis.TimeoutError

        meddler.meddle = lose_call
        with self.assertRaises(redis.TimeoutError):
            lock.extend(5)
        meddler.meddle = None
        lock.extend(30)
        tagged = "{" + self.name + "}"
        late = self.client.fcall("lock_extend", 3, "lock:" + tagged, "lock-queue:" + tagged, "lock-state:" + tagged,
                                 lock.id, 5000)
        self.assertEqual(late, 1)
        self.assert_told_ahead(lock)

    def test_a_call_of_the_wait_may_arrive_after_a_longer_lease(self):
        meddler = connect(Meddler)
        self.addCleanup(meddler.close)
        meddler.function = "lock_acquire"

        def lose_call(call):
            meddler.meddle = None
            raise redis.TimeoutError

        meddler.meddle = lose_call
        with self.assertLogs("redislock", "WARNING"), Lock(meddler, self.name, library=LIBRARY, expire=20) as lock:
            lock.extend(60)
            self.assertLessEqual(lock._hold.deadline, time.monotonic() + 20)

    def test_a_lease_that_redis_refused_does_not_count(self):
        lock, meddler = self.meddled(expire=20)

        def refuse(call):
            raise redis.ResponseError("NOPERM")

        meddler.meddle = refuse
        deadline = lock._hold.deadline
        with self.assertRaises(redis.ResponseError):
            lock.extend(5)
        self.assertEqual(lock._hold.deadline, deadline)
        meddler.meddle = None
        lock.release()

    def test_without_expiry(self):
        with self.lock(expire=None) as lock:
            self.assertEqual(self.left(), -1)
            lock.extend(6)  # from here on it has a lease, and renewal keeps it
            self.assertGreater(self.left(), 0)
            eventually(lambda: self.left() < 5000)
            eventually(lambda: self.left() > 5000)

    def test_release_of_what_was_never_acquired(self):
        self.assertTrue(issubclass(NotAcquired, RuntimeError))  # which threading.Lock raises
        for call in self.lock().release, self.lock().extend:
            with self.assertRaises(NotAcquired):
                call()


class WrongCalls(TestCase):
    def test_each_says_what_to_do(self):
        for text, options in {
            "must not be empty": {"name": ""},
            "begin with '}'": {"name": "}x"},
            r"redis.Redis\(socket_timeout=3\)": {"client": connect(socket_timeout=None)},
            "at least 1 second": {"expire": 0.5},
            "id must not be empty": {"id": ""},
        }.items():
            with self.assertRaisesRegex(ValueError, text):
                Lock(**{"client": self.client, "name": self.name, **options})
        for expire in 0, -1, float("inf"), float("nan"):
            with self.assertRaisesRegex(ValueError, "or None for never"):
                self.lock(expire=expire)
        with self.assertRaisesRegex(redis.ResponseError, "LEASE_MS must be a whole number of milliseconds, 9999999999999 at most"):
            self.lock(expire=1e11).acquire()
        for options in {"blocking": False, "timeout": 1}, {"timeout": -2}, {"timeout": float("nan")}:
            with self.assertRaisesRegex(ValueError, "timeout"):
                self.lock().acquire(**options)

    def test_the_library_is_loaded_if_its_path_is_given(self):
        self.lock().locked()
        self.client.function_delete("lock")
        with self.assertRaisesRegex(NotLoaded, "redis-cli -x FUNCTION LOAD"):
            Lock(self.client, self.name).acquire()
        with self.lock():
            pass

    def test_errors_that_do_not_pass_are_raised_at_once(self):
        with self.lock():
            pass
        self.client.lpush("lock:{" + self.name + "}", "not a lock")
        with self.assertRaisesRegex(redis.ResponseError, "WRONGTYPE"):
            self.lock().acquire()
        with self.assertRaises(redis.ConnectionError), self.assertLogs("redislock", "WARNING"):
            Lock(redis.Redis(port=1, socket_timeout=1), self.name).acquire(timeout=0.1)

    def test_keys(self):
        for name, key in {"a": "lock:{a}", "a:{b}": "lock:a:{b}", "{}a": "lock:{{}a}", "a{b": "lock:{a{b}", "a}b": "lock:{a}b}"}.items():
            self.client.delete(key)
            with Lock(self.client, name, library=LIBRARY) as lock:
                self.assertEqual(self.client.get(key).decode(), lock.id)


@unittest.skipUnless("REDIS_CLUSTER" in os.environ, "REDIS_CLUSTER=host:port is not set")
class Cluster(unittest.TestCase):
    def test_locks_on_every_primary(self):
        host, port = os.environ["REDIS_CLUSTER"].rsplit(":", 1)
        client = RedisCluster(host=host, port=int(port), socket_timeout=3)
        self.addCleanup(client.close)
        nodes = set()
        client.function_flush()
        for tag in "abc":  # each on another one of three primaries
            name = f"python-{uuid.uuid4().hex}-" + "{" + tag + "}"
            nodes.add(client.get_node_from_key(name).name)
            with Lock(client, name, library=LIBRARY) as holder:
                self.assertFalse(Lock(client, name).acquire(blocking=False))
                waiter = Lock(client, name)
                thread = threading.Thread(target=waiter.acquire, daemon=True)
                thread.start()
                eventually(lambda: client.zcard("lock-queue:" + name) == 1)
            thread.join(SOON)
            self.assertEqual(waiter.get_owner_id(), waiter.id)
            self.assertGreater(waiter.fence, holder.fence)
            waiter.release()
        self.assertEqual(len(nodes), len(client.get_primaries()))


if __name__ == "__main__":
    unittest.main()
