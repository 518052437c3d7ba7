"""A lock for many machines: redislock's functions called with redis-py. Copy this file.

    import redis
    from redislock import Lock

    client = redis.Redis(socket_timeout=3)   # or RedisCluster(...), Sentinel(...).master_for(...)

    with Lock(client, "orders") as lock:     # waits its turn, first come, first served
        pay(order, fence=lock.fence)         # storage refuses a fence lower than the last it saw

    lock = Lock(client, "orders")
    if lock.acquire(timeout=5):              # or acquire(blocking=False)
        try: ...
        finally: lock.release()

A Lock is for one holder at a time: each thread makes its own, they cost nothing. Until release(), or
the end of the process, a thread renews its lease. `lock.lost` (a threading.Event) is set when the lock
may be lost: stop then. It is set ahead of the end of the lease, by a tenth of the lease and 0.5 s at
most. A thread that calls nothing sets it, so a renewal that hangs cannot hold it up. It comes too late
only if the process stands still, or if the server's clock is put forward.

A process made by os.fork() does not hold what its parent does. Whoever waits uses a connection of the
client's pool: one with a max_connections needs more of them than threads wait at once, or the lock is
lost because the renewal finds none. The server must have lua/lock.lua (`redis-cli -x FUNCTION LOAD <
lua/lock.lua`), or give its path as `library` and it is loaded when it is missing. Log messages go to
the logger "redislock".
"""
import logging
import math
import os
import random
import re
import secrets
import threading
import time
import typing

from redis import exceptions as redis_errors
from redis.cluster import RedisCluster

WAIT_MS = 30_000  # our place in the queue is kept so long after our last call
CHECK_IN = 2  # call at least so often (s): then a dead waiter in front costs about two seconds
GIVE_UP = 5  # how long a release is tried (s) before it is left to the end of the lease
NOTICE = 0.5  # `lost` is set so long before the lease ends (s), or a tenth of the lease if that is less

REDIS_ERRORS = (redis_errors.RedisError, redis_errors.RedisClusterException)

log = logging.getLogger("redislock")

# redis-py 4.3, which is Debian's, loses a cluster for good when one of its nodes dies: to ask the others it
# makes a deep copy of its arguments, and one of them refers to itself (redis-py issue 2480).
if not hasattr(RedisCluster, "__deepcopy__"):
    RedisCluster.__deepcopy__ = lambda self, memo: self


class LockError(RuntimeError):
    """What the exceptions of this file have in common; threading.Lock raises RuntimeErrors, too."""


class NotAcquired(LockError):
    """The lock is not held, or not any more."""


class AlreadyAcquired(LockError):
    """This object holds the lock, or waits for it."""


class NotLoaded(LockError):
    """The server does not have the function library."""


class Lock:
    """Nothing happens before acquire() or `with`.

    expire        the lease in seconds: the others wait that long if this process dies. None: for ever
    id            a token of your own, so that another process can go on with the same lock
    auto_renewal  False: the lock is lost after `expire`, unless extend() is called
    library       the path of lock.lua, to load it where it is missing
    """

    def __init__(self, client, name, expire=10, id=None, auto_renewal=True, library=None, prefix="lock"):
        if not name or name.startswith("}"):
            raise ValueError(f"the name of a lock must not be empty or begin with '}}': {name!r}")
        if id is not None and not id:
            raise ValueError("id must not be empty")
        connection = client.get_connection_kwargs()
        self._patience = connection.get("socket_timeout")
        if not self._patience:
            raise ValueError("give the client a socket_timeout of a third of the lease or less, "
                             "redis.Redis(socket_timeout=3): without one, a silent network blocks for ever")
        # Whether the client sends again by itself: then an error may be the answer to the second try alone.
        self._resends = isinstance(client, RedisCluster) or any(
            connection.get(option) for option in ("retry", "retry_on_error", "retry_on_timeout"))
        # All keys of a lock must share a hash tag: the {tag} in the name, or else the whole name.
        tagged = name if re.match(r"[^{]*\{[^}]+\}", name) else "{" + name + "}"
        self._keys = [f"{prefix}:{tagged}", f"{prefix}-queue:{tagged}", f"{prefix}-state:{tagged}"]
        self._signals = f"{prefix}-signal:{tagged}:"
        self._client, self._given_id, self._library = client, id, library
        self._lease, self._auto_renewal = _milliseconds(expire), auto_renewal
        self._one = threading.Lock()  # taken while this object waits or holds
        self._hold = None
        self.name, self.id, self.fence, self.lost = name, id, None, threading.Event()

    def acquire(self, blocking=True, timeout=-1):
        """True: the lock is ours. False: it was busy until now.

        timeout is in seconds; -1 or None: wait for ever. Network trouble is waited out too, it is
        raised only if it was in the way when the time was over.
        """
        timeout = -1 if timeout is None else timeout
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if not timeout >= 0 and timeout != -1:
            raise ValueError("timeout value must be a non-negative number")
        if not self._one.acquire(blocking=False):
            raise AlreadyAcquired(f"lock {self.name!r}: this object holds it or waits for it, "
                                  "each holder needs a Lock of its own")
        self.id = self._given_id or secrets.token_hex(16)
        self.lost.clear()
        end = math.inf if blocking and timeout == -1 else time.monotonic() + max(timeout, 0)
        try:
            self._hold = self._wait(end)
        except BaseException:
            try:  # leave the queue, and hand on what was granted meanwhile
                self._send_release(1)
            except Exception as e:
                log.info("lock %r: not given back, so it lapses: %s", self.name, e)
            raise
        finally:
            if not self._hold:
                self._one.release()
        return self._hold is not None

    def _wait(self, end):
        signal = self._signals + secrets.token_hex(8)  # of this wait alone: no stale signals
        failures, doubt = 0, 0  # see _Hold
        while True:
            sent = time.monotonic()
            last = sent >= end  # WAIT_MS 0: get it now, or leave the queue
            before, doubt = doubt, self._lease  # until it is answered
            try:
                held, value, left_ms = self._call(
                    "lock_acquire", [*self._keys, signal], self.id, self._lease, 0 if last else WAIT_MS)[:3]
                doubt = before
                if held:
                    term = _Term(sent, max(left_ms, 0))
                    if time.monotonic() < term.notice:
                        self.fence = value
                        return _Hold(self, self.id, self._lease, term, doubt)
                elif last:
                    return None
                else:
                    # What it pops is only a hint: the next call tells, and confirms the full lease.
                    pause = min(left_ms / 1000, CHECK_IN, self._patience / 2, end - time.monotonic())
                    self._run("BLPOP", signal, f"{max(pause, 0.01):.3f}")  # 0 would be for ever
                failures = 0
            except REDIS_ERRORS as e:
                failures += 1
                doubt = before if self._refused(e) else doubt
                if not _passes(e) or last and failures > 2:
                    raise
                log.warning("lock %r: waiting on in spite of: %s", self.name, e)
                time.sleep(min(1, 0.02 * 2 ** min(failures, 6)) * random.uniform(0.5, 1))

    def release(self):
        """Hands the lock on. NotAcquired: it was not held any more.

        A client that sends again by itself what got no answer (RedisCluster; redis-py 6, unless told
        otherwise by `retry`) can have released it with a call of which only the reply was lost: that
        is NotAcquired, too.
        """
        hold, self._hold = self._held_here(), None
        if hold:
            hold.end()
        elif not self._given_id:
            raise NotAcquired(f"lock {self.name!r}: release of a lock that was not acquired")
        try:
            held = self._send_release(GIVE_UP, hold)
        finally:
            if hold:
                self._one.release()
        if not held:
            raise NotAcquired(f"lock {self.name!r} had been lost before it was released")

    def _send_release(self, seconds, hold=None):
        end, unsure = time.monotonic() + seconds, False
        while True:
            in_time = hold is not None and time.monotonic() < hold.deadline
            try:
                reply = self._call("lock_release", self._keys, self.id)
                return reply == 1 or reply == 0 and unsure
            except REDIS_ERRORS as e:
                if not _passes(e) or time.monotonic() >= end:
                    raise
                unsure = unsure or in_time  # it may have been carried out, and only its reply be lost
                time.sleep(0.1)

    def extend(self, expire=None):
        """The lease now ends that long from now (default: as in the constructor); renewal goes on with it.

        An error of Redis means that nothing has changed. After any other error the call may have been
        carried out, or may still arrive: then the shorter lease counts, for renewal, for `lost`, and as
        the longest that this lock has from now on, whatever is asked for.

        A client that sends again by itself (see release) hides which calls got no answer. With such a
        client no error takes a shorter lease back, and a longer one after it is not to be relied on.
        """
        lease = self._lease if expire is None else _milliseconds(expire)
        hold = self._held_here()
        if hold is None and not self._given_id or self.lost.is_set():
            raise NotAcquired(f"lock {self.name!r}: extend of a lock that is not held")
        if not (hold.renew(lease) if hold else self._call("lock_extend", self._keys, self.id, lease)):
            raise NotAcquired(f"lock {self.name!r} has been lost")

    def _held_here(self):
        """The _Hold, None if there is none or a parent process has it: its threads are not here."""
        return self._hold if self._hold and self._hold.pid == os.getpid() else None

    def reset(self):
        """Takes the lock away from whoever holds it, and hands it on. False: nobody held it."""
        return self._call("lock_reset", self._keys) == 1

    def get_owner_id(self):
        """The token of the holder, None if nobody holds the lock."""
        reply = self._call("lock_inspect", self._keys, command="FCALL_RO")
        reply = [v.decode(errors="backslashreplace") if isinstance(v, bytes) else v for v in reply]
        return dict(zip(reply[::2], reply[1::2]))["holder"] or None

    def locked(self):
        """Whether anybody holds the lock."""
        return self.get_owner_id() is not None

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, error, *_):
        try:
            self.release()
        except (LockError, *REDIS_ERRORS):
            if error is None:  # else that is what the caller has to see
                raise

    def _call(self, function, keys, *args, command="FCALL"):
        call = (command, function, len(keys), *keys, *args)
        try:
            return self._run(*call)
        except redis_errors.ResponseError as e:
            if "Function not found" not in str(e):
                raise
            if not self._library:
                raise NotLoaded("the server does not have the library: redis-cli -x FUNCTION LOAD < lua/lock.lua "
                                "(on each primary), or Lock(..., library='lua/lock.lua')") from e
        with open(self._library, encoding="utf-8") as file:
            code = file.read()
        try:
            self._run("FUNCTION LOAD", code)
        except redis_errors.ResponseError as e:
            if "already exists" not in str(e):  # somebody else was faster
                raise
        return self._run(*call)

    def _refused(self, e):
        """Whether Redis has answered this call with an error, so that nothing has changed."""
        return isinstance(e, redis_errors.ResponseError) and not self._resends

    def _run(self, *command):
        if not isinstance(self._client, RedisCluster):
            return self._client.execute_command(*command)
        # By itself it would first ask the server which of the arguments are keys.
        node = self._client.get_node_from_key(self._keys[0])
        return self._client.execute_command(*command, target_nodes=node)


class _Term(typing.NamedTuple):
    """What the server has promised: the lock, for one lease from then on."""
    sent: float  # before the call was: so whatever is slow, the lease ends here before it does there
    lease: int  # in ms; 0: it never ends

    @property
    def deadline(self):
        return self.sent + _seconds(self.lease)

    @property
    def notice(self):
        return self.deadline - min(_seconds(self.lease) / 10, NOTICE)


class _Hold:
    """Keeps the lease of one grant with two threads. One never calls, so nothing can hold it up.

    No term of it ends later than the server's. Calls are made one at a time, so the server saw none after
    the last one that it answered; but for those that it did not answer, which may still arrive and shorten
    the lease. `doubt` is the shortest lease of those (0: there is none): no later term is longer.
    """

    def __init__(self, lock, token, lease, term, doubt):
        self._lock, self._token = lock, token
        self._lease, self._term, self._doubt = lease, term, doubt  # _lease: the one to renew for
        self.pid = os.getpid()
        self._changed = threading.Condition()  # guards these, and is never held over a call
        self._calls = threading.Lock()
        self._over = False
        for run in [self._watch, self._keep] if lock._auto_renewal else [self._watch]:
            threading.Thread(target=run, name=f"redislock {lock.name}", daemon=True).start()

    @property
    def deadline(self):
        return self._term.deadline

    def end(self, lost=False):
        with self._changed:
            if lost and not self._over:
                self._lock.lost.set()
            self._over = True
            self._changed.notify_all()

    def renew(self, lease=None):
        """None: as before. False: the lock is lost."""
        with self._calls:
            with self._changed:
                if self._over:
                    return False
                before = self._lease, self._term, self._doubt
                lease = self._lease if lease is None else lease
                asked = _Term(time.monotonic(), lease)
                # Until Redis answers, it may have this lease, or not, or get it at any time: the shorter counts.
                self._set(_shorter(self._lease, lease), min(self._term, asked, key=lambda term: term.deadline),
                          _shorter(self._doubt, lease))
            try:
                held = self._lock._call("lock_extend", self._lock._keys, self._token, lease) == 1
            except redis_errors.ResponseError as e:
                if self._lock._refused(e):
                    self._set(*before)
                raise
            with self._changed:
                if held:
                    doubt = before[2]
                    self._set(lease, _Term(asked.sent, _shorter(lease, doubt)), doubt)
                if not held or time.monotonic() >= self._term.notice:
                    self.end(lost=True)
                return not self._over

    def _set(self, lease, term, doubt):
        with self._changed:
            if not self._over:
                self._lease, self._term, self._doubt = lease, term, doubt
                self._changed.notify_all()

    def _sleep_until(self, due):
        with self._changed:
            while not self._over and (left := due() - time.monotonic()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return not self._over

    def _watch(self):
        with self._changed:  # to look and to tell is one step: no renewal comes in between
            if self._sleep_until(lambda: self._term.notice):
                self.end(lost=True)

    def _keep(self):
        while self._sleep_until(lambda: self._term.sent + _seconds(self._term.lease) / 3):
            try:
                self.renew()
            except Exception as e:  # of any kind: tried until the lease is over
                log.warning("lock %r: not renewed: %s", self._lock.name, e)
                time.sleep(min(0.5, _seconds(self._term.lease) / 20))


def _milliseconds(seconds):
    if seconds is not None and not 1 <= seconds < math.inf:
        raise ValueError(f"expire must be at least 1 second, or None for never, not {seconds!r}")
    return 0 if seconds is None else math.ceil(seconds * 1000)


def _seconds(lease):
    return lease / 1000 if lease else math.inf


def _shorter(*leases):
    return min(leases, key=_seconds)


def _passes(e):
    """Whether the same call may succeed later without anybody's doing."""
    if isinstance(e, (redis_errors.AuthenticationError, redis_errors.AuthorizationError)):
        return False
    return isinstance(e, (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError,
                          redis_errors.TryAgainError, redis_errors.ClusterError, redis_errors.MovedError,
                          redis_errors.RedisClusterException)) or \
        str(e).startswith(("LOADING ", "BUSY ", "NOREPLICAS ", "UNBLOCKED ", "MASTERDOWN ", "CLUSTERDOWN "))
