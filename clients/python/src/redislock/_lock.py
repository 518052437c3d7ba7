"""Lock for threads, and the common part of Lock and AsyncLock. The engine does the work."""

from __future__ import annotations

import concurrent.futures
import logging
import math
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Callable, TypeVar, Union

from . import _protocol as protocol
from ._config import config_of
from ._engine import Engine, Hold, engine_of, reset_all
from ._errors import AlreadyAcquired, LockError, LockLost, NotAcquired, NotHeld
from ._protocol import NEVER, Keys, Request

log = logging.getLogger("redislock")

Seconds = Union[float, timedelta]
T = TypeVar("T")
L = TypeVar("L", bound="Lock")


@dataclass(frozen=True)
class Waiter:
    """One place in the queue. Times are seconds."""

    token: str
    waited: float
    lapses_in: float  # it loses its place then, unless it calls before
    lease: float | None  # that it asked for; None: never expires
    holders: int | None  # how many may share the lock; None: alone; 0: any number


@dataclass(frozen=True)
class State:
    """The result of inspect. Times are seconds."""

    name: str
    holder: str | None  # the token with the longest lease; None: nobody holds the lock
    fence: int  # the last fencing token given out; 0: none is known
    ttl: float | None  # the rest of the lease; None: nobody holds the lock, or it never expires
    held: int  # how many hold it
    holders: dict[str, float | None]  # the first 1,000 tokens with their ttl
    waiting: int  # how many wait
    waiters: list[Waiter]  # the first 1,000, in order


def _seconds(name: str, value: Seconds, least: float = 0.001) -> float:
    """A length of time in whole milliseconds, rounded up."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds or a timedelta, not {value!r}")
    if not least <= value <= protocol.MAX_LEASE / 1000:
        raise ValueError(f"{name} must be at least {least:g} seconds, and at most 317 years, not {value!r}")
    return math.ceil(value * 1000 - 1e-6)


def _lease(value: Seconds | None) -> float:
    return NEVER if value is None else _seconds("lease", value)


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


class _Base:
    """The options, and the methods that do not wait."""

    def __init__(
        self,
        client: Any,
        name: str,
        *,
        lease: Seconds | None = 10,
        timeout: Seconds | None = None,
        renew: bool = True,
        token: str | None = None,
        owner: str | None = None,
        holders: int | None = None,
        shared: bool = False,
        min_hold: Seconds | None = None,
        max_hold: Seconds | None = None,
        on_lost: Callable[[Any], Any] | None = None,
        prefix: str = "lock",
        load: bool = True,
    ) -> None:
        """client: any client of redis-py. The lock uses its address and login, but not its connections.

        lease     how long the lock outlives its holder's last sign of life. None: it never expires
        timeout   how long `with` waits at most. None: for ever
        renew     False: the lock ends after `lease`, unless extend() is called
        token     one of your own, so that another process can go on with the same lock
        owner     a label that tells an operator who holds the lock. Default HOST:PID
        holders   how many may hold the lock together
        shared    any number of callers with shared may hold it together
        min_hold  nobody else gets the lock before that, even if it is released
        max_hold  renewal ends then, and with it the lock
        on_lost   called with this object when the lock may be lost, ahead of the end of its lease
        prefix    begins the keys. All processes that share a lock need the same
        load      False: raise LibraryError if the function library is missing
        """
        self._keys: Keys = protocol.keys_of(protocol.check_prefix(prefix), name)
        self._config = config_of(client)
        self.name = name
        self._prefix, self._load = prefix, bool(load)
        self._lease = _lease(lease)
        self._timeout = NEVER if timeout is None else _seconds("timeout", timeout, 0)
        self._renew = bool(renew)
        self._min_hold = 0.0 if min_hold is None else _seconds("min_hold", min_hold)
        self._max_hold = NEVER if max_hold is None else _seconds("max_hold", max_hold)
        if self._min_hold > self._max_hold:
            raise ValueError("min_hold must not be longer than max_hold")
        if token is not None and not isinstance(token, str):
            raise TypeError(f"token must be a str, not {token!r}")
        if owner is not None and not isinstance(owner, str):
            raise TypeError(f"owner must be a str, not {owner!r}")
        self._given = None if token is None else token.encode("utf-8", "surrogateescape")
        if self._given is not None and not 0 < len(self._given) <= protocol.MAX_TOKEN:
            raise ValueError(f"token must have 1 to {protocol.MAX_TOKEN} bytes")
        self._owner = owner
        if holders is not None and (isinstance(holders, bool) or not isinstance(holders, int)):
            raise TypeError(f"holders must be an int, not {holders!r}")
        if holders is not None and not 1 <= holders <= protocol.MAX_HOLDERS:
            raise ValueError(f"holders must be at least 1, not {holders!r}")
        if shared and holders is not None:
            raise ValueError("holders and shared exclude each other")
        self._holders = 0 if shared else None if holders == 1 else holders
        self._on_lost = on_lost
        self._mutex = threading.Lock()
        self._taking: int | None = None  # the process that waits with this object
        self._hold: Hold | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Makes a new `lost`, for a new hold."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {'held' if self.held else 'not held'}>"

    @property
    def _engine(self) -> Engine:
        return engine_of(self._config)

    @property
    def _mine(self) -> Hold | None:
        """The Hold. The child of a fork does not hold its parent's locks."""
        hold = self._hold
        return hold if hold is not None and hold.pid == os.getpid() else None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as this machine knows. It makes no call."""
        hold = self._mine
        return hold is not None and hold.stage == "held" and not hold.is_lost()

    @property
    def fence(self) -> int:
        """A number that grows with each grant of this name. Send it with every write, and have the storage
        refuse a lower one than it has seen. Then a holder that lost the lock without noticing does no harm."""
        return self._last.fence

    @property
    def token(self) -> str:
        """The token by which Redis knows this holder."""
        return _text(self._last.token)

    @property
    def deadline(self) -> float | None:
        """Until when the lock is surely held, by time.monotonic(). None: it never expires."""
        deadline = self._last.deadline
        return None if deadline == NEVER else deadline

    @property
    def _last(self) -> Hold:
        if self._hold is None:
            raise NotHeld(f"lock {self.name!r} was not acquired")
        return self._hold

    def _request(self, blocking: bool, timeout: Seconds | None) -> Request:
        if isinstance(timeout, timedelta):
            timeout = timeout.total_seconds()
        if not blocking:
            if timeout is not None and timeout != -1:
                raise ValueError("can't specify a timeout for a non-blocking call")
            limit = 0.0
        elif timeout is None or timeout == -1 or timeout == math.inf:
            limit = NEVER
        elif isinstance(timeout, (int, float)) and timeout >= 0:
            limit = min(timeout, threading.TIMEOUT_MAX) * 1000
        else:
            raise ValueError(f"timeout must be a non-negative number of seconds, not {timeout!r}")
        return self._completed(limit)

    def _completed(self, limit: float) -> Request:
        return Request(
            self._keys, self._given or protocol.new_token(self._owner), own_token=self._given is not None,
            lease=self._lease, renew=self._renew, max_hold=self._max_hold, min_hold=self._min_hold,
            holders=self._holders, limit=limit)

    def _claim(self) -> None:
        """Refuses a second caller: an object waits or holds for one at a time."""
        with self._mutex:
            if self._taking == os.getpid() or self._mine is not None and self._mine.stage == "held":
                raise AlreadyAcquired(f"lock {self.name!r}: this object holds it or waits for it; "
                                      "each holder needs an object of its own")
            self._taking = os.getpid()
            self._hold = None

    def _took(self, hold: Hold) -> None:
        self._hold = hold

    def _to_release(self) -> Hold:
        if self._hold is None:
            raise NotHeld(f"lock {self.name!r}: release of a lock that was not acquired")
        if self._mine is None:
            raise NotHeld(f"lock {self.name!r}: it is the parent process that holds it")
        return self._hold

    def _release(self, *, keep: bool = True) -> concurrent.futures.Future[None]:
        hold = self._to_release()
        return hold.engine.run(hold.release(keep=keep))

    def _verdict(self) -> LockLost | None:
        """The error of a lock that was lost under its holder."""
        hold = self._mine
        if hold is None or hold.stage == "releasing" or not hold.is_lost():
            return None
        return LockLost(f"lock {self.name!r}: {hold.cause or hold.lease.ending()}")

    async def _extend(self, lease: Seconds | None) -> None:
        hold = self._to_release()
        await hold.extend(self._lease if lease is None else _seconds("lease", lease))

    async def _inspect(self) -> State:
        return _state(self.name, await self._engine.server.inspect(self._keys, load=self._load))

    async def _reset(self) -> bool:
        return await self._engine.server.reset(self._keys, load=self._load)


def _state(name: str, fields: dict[str, Any]) -> State:
    def ttl(ms: int) -> float | None:
        return None if ms < 0 else ms / 1000

    holder = _text(fields["holder"]) or None
    left = ttl(fields["ttl_ms"]) if holder else None
    holders = {holder: left} if holder else {}
    if fields.get("holders"):  # they hold it together
        holders = {_text(token): ttl(ms) for token, ms in fields["holders"]}
    waiters = []
    for token, waited, lapses_in, lease, _, *more in fields["waiters"]:
        n = int(more[0]) if more else 1
        waiters.append(Waiter(_text(token), waited / 1000, lapses_in / 1000, lease / 1000 if lease else None,
                              None if n == 1 else n))
    return State(name, holder, fields["fence"], left, fields.get("held", 1 if holder else 0), holders,
                 fields["waiting"], waiters)


class Lost(threading.Event):
    """Set when the lock may be lost: ahead of the end of the lease, by a tenth of it and at most half a
    second. Stop in that time."""

    def __init__(self) -> None:
        super().__init__()
        self._due: Callable[[], bool] | None = None

    def is_set(self) -> bool:
        """Makes no call. It checks the time itself, so a late timer does no harm."""
        return super().is_set() or self._due is not None and self._due()


class Lock(_Base):
    """A lock for threads. Use it like threading.Lock.

    An object is for one holder at a time: make a new object for each thread, they cost nothing. It talks to
    Redis only from acquire() or `with` on.
    """

    def _prepare(self) -> None:
        self.lost = Lost()

    def acquire(self, blocking: bool = True, timeout: Seconds | None = -1) -> bool:
        """True: the lock is held. False: it was busy until now.

        timeout is in seconds; -1 or None: wait for ever. The wait survives network trouble and failovers. If
        the time is over before Redis has answered, acquire raises Unavailable: an outage never looks like a
        busy lock. A try (blocking=False) waits a second for the answer.
        """
        return self._acquire(self._request(blocking, timeout))

    def _acquire(self, request: Request) -> bool:
        self._claim()
        try:
            self._prepare()
            engine = self._engine
            waiting = engine.obtain(request, self._prefix, self._load)
            try:
                hold = waiting.result.result()
                self._took(hold)
            except LockError as e:
                self._hold = None
                if isinstance(e, NotAcquired):
                    return False
                raise _named(e, self.name) from None
            except BaseException:  # KeyboardInterrupt, say: leave the queue or give the lock back
                self._hold = None
                concurrent.futures.wait([engine.abandon(waiting)], 2)
                raise
            lost = self.lost

            def tell() -> None:
                lost.set()
                if self._on_lost is not None:
                    threading.Thread(target=_guarded, args=(self._on_lost, self), name="redislock on_lost",
                                     daemon=True).start()

            lost._due = hold.is_lost
            hold.told(tell)
            return True
        finally:
            self._taking = None

    def release(self) -> None:
        """Gives the lock back, and hands it to the next waiter.

        It raises NotHeld if the lock had been lost before, and Unavailable if Redis did not answer for 5
        seconds. Then the lock ends with its lease; release() can be called again.
        """
        self._release().result()

    def extend(self, lease: Seconds | None = None) -> None:
        """Makes the lease end this many seconds from now (default: as in the constructor). Renewal goes on with it.

        After Unavailable, Redis may have carried the call out, or may still do so: the shorter lease counts.
        After another error that Redis answered, nothing has changed.
        """
        self._engine.run(self._extend(lease)).result()

    def locked(self) -> bool:
        """Whether anybody holds the lock."""
        return self.inspect().held > 0

    def inspect(self) -> State:
        """Shows the lock and its queue. It changes nothing."""
        return self._engine.run(self._inspect()).result()

    def reset(self) -> bool:
        """Takes the lock away from all its holders, and hands it on. False: nobody held it."""
        return self._engine.run(self._reset()).result()

    @staticmethod
    def reset_all(client: Any, *, prefix: str = "lock") -> int:
        """Resets every held lock with this prefix, and returns their number. It uses SCAN, on every primary of
        a cluster. It may miss a lock that somebody takes meanwhile."""
        engine = engine_of(config_of(client))
        return engine.run(reset_all(engine.server, protocol.check_prefix(prefix))).result()

    @staticmethod
    def load(client: Any) -> None:
        """Loads the function library on every primary where it is missing or older. Locks do so by themselves,
        if the user has the right."""
        engine = engine_of(config_of(client))
        engine.run(engine.server.load()).result()

    def __enter__(self: L) -> L:
        if not self._acquire(self._completed(self._timeout)):
            raise NotAcquired(f"lock {self.name!r} is busy")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 _: TracebackType | None) -> None:
        lost = self._verdict()
        try:
            self.release()
        except LockError:
            if kind is None:  # otherwise the caller sees the error of the block
                raise
        if kind is None and lost is not None:
            raise lost  # the block worked on after the notice


def _guarded(call: Callable[[Any], Any], lock: Any) -> None:
    try:
        call(lock)
    except Exception:
        log.exception("lock %r: on_lost failed", lock.name)


def _named(error: LockError, name: str) -> LockError:
    """The same error, with the name of the lock in its text."""
    return type(error)(f"lock {name!r}: {error}")
