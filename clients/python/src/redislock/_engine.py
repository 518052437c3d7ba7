"""The engine: all waits and held locks of a process, in one daemon thread.

The thread runs an asyncio loop of its own. Lock and AsyncLock only ask it and wait for its answer.
So a waiting thread costs no connection, and a busy event loop of the caller does not stop renewals.
A cancelled call goes on in the engine until it is undone. All state belongs to this thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Callable, TypeVar

from ._config import Config
from ._errors import Fault, LockError, LockLost, NotHeld, unanswered
from ._protocol import (
    MANY_LOCKS,
    NEVER,
    Backoff,
    Keys,
    Lease,
    Line,
    Request,
    Signal,
    Term,
    Wait,
    keys_from,
)
from ._server import PATIENCE, Server
from ._wire import Connection

log = logging.getLogger("redislock")

T = TypeVar("T")

TRY = 1000.0  # how long a try waits for an answer
UNDO_WAIT = 1000.0  # how long acquire waits for its place to be given up, while Redis answers
GIVE_UP = 5000.0  # how long a release is tried; then the lock is left to its lease
LATE_SIGNAL = 1000.0  # how long after the end of a wait a signal may come that was sent before
PAST = 8192  # how many past waits the engine remembers
REPORT_EVERY = 60_000.0  # the shortest time between two reports of trouble


class Waiting:
    """A Wait in progress. `result` gets the Hold, or the error of acquire."""

    def __init__(self, core: Wait, prefix: str, load: bool) -> None:
        self.core = core
        self.prefix = prefix
        self.load = load
        self.result: concurrent.futures.Future[Hold] = concurrent.futures.Future()
        self.connection: Connection | None = None  # of the call under way
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.limit: asyncio.TimerHandle | None = None
        self.until = NEVER  # when the limit is over
        self.heard: bytes | None = None
        self.added = False
        self.through = False
        self.unserved = False  # the limit is over, but a late answer may say more
        self.leaver: Leaver | None = None

    def sending(self, connection: Connection) -> None:
        if self.core.over:
            raise unanswered("the wait is over", sent=False)
        self.connection = connection


class Leaver:
    """A wait that is over: it may still have a place or the lock."""

    def __init__(self, keys: Keys, token: bytes, request: Request | None, prefix: str, ours: bool, until: float,
                 done: asyncio.Future[None]) -> None:
        self.keys, self.token, self.request, self.prefix, self.ours = keys, token, request, prefix, ours
        self.until = until  # after this, nothing is left to give up
        self.done = done


class Popper:
    """Pops one signal list on a connection of its own."""

    def __init__(self) -> None:
        self.count = 0
        self.task: asyncio.Task[None] | None = None


class Engine:
    """All waits and locks of one server or cluster. Methods need the loop's thread unless they say otherwise."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self._waits: dict[bytes, list[Waiting]] = {}  # by token
        self._lines: dict[bytes, Line] = {}  # by the lock's key
        self._poppers: dict[bytes, Popper] = {}  # by signal list
        self._leavers: dict[bytes, Leaver] = {}  # by token
        self._past: OrderedDict[bytes, tuple[Keys, str, float]] = OrderedDict()
        self._reported = -math.inf
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def now(self) -> float:
        return self.loop.time() * 1000

    @property
    def crowd(self) -> bool:
        return len(self._lines) > MANY_LOCKS

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)  # a loop keeps only weak references
        task.add_done_callback(self._tasks.discard)
        return task

    def at(self, when: float, call: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self.loop.call_at(when / 1000, call, *args)

    # From any thread

    def obtain(self, request: Request, prefix: str = "lock", load: bool = True) -> Waiting:
        """Begins a wait."""
        waiting = Waiting(Wait(request, Line()), prefix, load)
        self.loop.call_soon_threadsafe(self._begin, waiting)
        return waiting

    def abandon(self, waiting: Waiting) -> concurrent.futures.Future[None]:
        """Ends a wait that has no caller. The future is done when nothing is left of the wait."""
        return self.run(self._abandon(waiting))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Runs a coroutine in the engine's thread. A Fault becomes the caller's error."""
        return asyncio.run_coroutine_threadsafe(_plain(coroutine), self.loop)

    # Waits

    def _begin(self, w: Waiting) -> None:
        r = w.core.request
        earlier = self._leavers.get(r.token)
        if earlier is not None and r.own_token and not w.core.over:
            # An earlier wait with this token must not give up the place of this one.
            earlier.done.add_done_callback(lambda _: self._begin(w))
            self._limit(w)
            return
        if w.core.over:
            return
        self._limit(w)
        self._waits.setdefault(r.token, []).append(w)
        if not r.is_try:
            w.core.line = self._lines.setdefault(r.keys.lock, Line())
            w.core.line.waits[id(w.core)] = w.core
        w.added = True
        self._call(w)

    def _limit(self, w: Waiting) -> None:
        r = w.core.request
        if w.limit is not None or r.limit == NEVER:
            return
        over = self.now + (TRY if r.is_try else r.limit)
        w.until = self.now + r.limit
        w.limit = self.at(over, self._quit, w)

    def _call(self, w: Waiting) -> None:
        if w.core.over or w.core.calling:
            return
        w.core.call(self.now)
        w.task = self.spawn(self._make_call(w))

    async def _make_call(self, w: Waiting) -> None:
        core = w.core
        try:
            reply, sent, signals = await self.server.acquire(
                core.request, w.prefix, core.kept, load=w.load, sending=w.sending)
        except Exception as e:
            core.failed(self.now, _fault(e))
            if core.trouble is not None and not core.over:
                self._report(core)
        else:
            ours = core.answered(self.now, sent, reply, crowd=self.crowd)
            if w.leaver is not None:
                w.leaver.ours = w.leaver.ours or ours
            if core.listens and not core.over:
                self._listen(w, signals)
        w.connection = None
        self._next(w)

    def _next(self, w: Waiting) -> None:
        """Acts on the new state of the wait."""
        if w.core.over:
            self._end(w)
            return
        due = w.core.due_with(self.crowd)
        if due is not None:
            if w.timer is not None:
                w.timer.cancel()
            w.timer = self.at(due, self._call, w)

    def _quit(self, w: Waiting) -> None:
        """The limit of the wait is over."""
        if not w.core.over:
            w.unserved = True
            w.core.quit()
            self._end(w)

    async def _abandon(self, w: Waiting) -> None:
        if not w.core.over:
            w.core.quit()
            self._end(w)
        try:
            hold = await asyncio.wrap_future(w.result)
        except LockError:
            return
        if hold.stage == "held":
            try:
                await hold.release(keep=False)
            except LockError as e:
                log.info("lock %r: not given back, so it lapses: %s", hold.keys.name, e)

    def _end(self, w: Waiting) -> None:
        """Ends a wait. Nothing else does."""
        if w.through:
            return
        w.through = True
        for timer in (w.timer, w.limit):
            if timer is not None:
                timer.cancel()
        self._remove(w)
        if w.core.grant is not None:
            hold = Hold(self, w)
            hold.start()
            w.result.set_result(hold)
            return
        if w.core.undo:
            self._leave(w)
        if w.leaver is not None and self._is_answered(w):
            patience = min(UNDO_WAIT, w.until + UNDO_WAIT - self.now)
            if patience > 0:
                self.spawn(self._end_later(w, patience))
                return
        self._fail(w)

    async def _end_later(self, w: Waiting, patience: float) -> None:
        assert w.leaver is not None
        await asyncio.wait([w.leaver.done], timeout=patience / 1000)
        self._fail(w)

    def _fail(self, w: Waiting) -> None:
        error = w.core.unserved() if w.unserved else w.core.error
        assert error is not None
        w.result.set_exception(error)

    def _is_answered(self, w: Waiting) -> bool:
        """Whether this wait's last call was answered, or is younger than UNDO_WAIT."""
        return w.core.trouble is None and (not w.core.calling or self.now - w.core.sent < UNDO_WAIT)

    def _remove(self, w: Waiting) -> None:
        if not w.added:
            return
        core, r = w.core, w.core.request
        same = self._waits[r.token]
        same.remove(w)
        if not same:
            del self._waits[r.token]
        self._unlisten(w)
        line = core.line
        if line.waits.pop(id(core), None) is None:
            return
        foremost = line.foremost()
        if foremost is None:
            self._lines.pop(r.keys.lock, None)
            return
        for other in self._waits.get(foremost.request.token, ()):
            if other.core is foremost and not foremost.calling:
                self._next(other)  # the foremost calls sooner

    def _report(self, core: Wait) -> None:
        if core.request.is_try or self.now - self._reported < REPORT_EVERY:
            return
        self._reported = self.now
        log.warning("lock %r: a wait goes on although Redis is in trouble: %s", core.request.keys.name, core.trouble)

    # Signals

    def _listen(self, w: Waiting, signals: bytes) -> None:
        if w.heard == signals:
            return
        self._unlisten(w)
        w.heard = signals
        popper = self._poppers.get(signals)
        if popper is None:
            popper = self._poppers[signals] = Popper()
            popper.task = self.spawn(self._pop(signals, popper, w.core.request.keys))
        popper.count += 1

    def _unlisten(self, w: Waiting) -> None:
        signals, w.heard = w.heard, None
        popper = self._poppers.get(signals) if signals is not None else None
        if signals is None or popper is None:
            return
        popper.count -= 1
        if popper.count == 0 and len(self._poppers) > 1 and popper.task is not None:
            # Free the connection at once. A new waiter must not use this popper.
            del self._poppers[signals]
            popper.task.cancel()

    async def _pop(self, signals: bytes, popper: Popper, keys: Keys) -> None:
        connection: Connection | None = None
        retry = Backoff()
        try:
            while popper.count > 0:
                try:
                    if connection is None or connection.why is not None:
                        node = await self.server.node_of(keys.lock)
                        connection = await node.dial()
                    popped = await self.server.pop(connection, signals, len(self._lines))
                except Exception as e:
                    fault = _fault(e)
                    if connection is not None:
                        connection.close(str(fault))
                    if not fault.passes:
                        self._end_listeners(signals, fault.error)
                    if self.server.config.cluster:
                        self._refresh_soon()
                    await asyncio.sleep(retry.next() / 1000)
                else:
                    retry = Backoff()
                    self._deliver(popped)
        finally:
            if self._poppers.get(signals) is popper:
                del self._poppers[signals]
            if connection is not None:
                connection.close("nobody waits")

    def _refresh_soon(self) -> None:
        async def refresh() -> None:
            try:
                await self.server.refresh()
            except Fault:
                pass
        self.spawn(refresh())

    def _end_listeners(self, signals: bytes, error: LockError) -> None:
        for waits in list(self._waits.values()):
            for w in list(waits):
                if w.heard == signals and not w.core.over:
                    w.core.quit(error)
                    self._end(w)

    def _deliver(self, signals: list[Signal]) -> None:
        """Brings signals to the waits with their tokens.

        A signal for a past wait is usually just late. But after a failover that lost the last writes, the
        queue has past waits again. Each would keep the lock for the 2 s of a dead waiter. So all past waits
        for that lock are given up.
        """
        for signal in signals:
            waits = list(self._waits.get(signal.token, ()))
            for w in waits:
                w.core.told(self.now, signal)
                self._next(w)
            over = self._past.get(signal.token)
            if over is not None and not waits and self.now >= over[2]:
                self._leave_again(signal.token)
                if self.now - over[2] > LATE_SIGNAL:
                    for token, (keys, _, ended) in list(self._past.items()):
                        if keys.lock == over[0].lock and self.now - ended > LATE_SIGNAL:
                            self._leave_again(token)

    def remember(self, keys: Keys, token: bytes, prefix: str, ended: float) -> None:
        """Notes the end of a wait: it was given up, or its lock was released or lost."""
        self._past.setdefault(token, (keys, prefix, ended))
        if len(self._past) > PAST:
            self._past.popitem(last=False)

    # Leaving

    def _leave(self, w: Waiting) -> None:
        """Gives up the place of a wait, or the lock that it got meanwhile."""
        core, r = w.core, w.core.request
        lives = max(core.kept, min(r.first_lease, 3_600_000.0)) + 2 * PATIENCE * 1000
        w.leaver = leaver = Leaver(r.keys, r.token, r, w.prefix, core.ours, self.now + lives, self.loop.create_future())
        self._leavers[r.token] = leaver
        behind: asyncio.Future[object] | None = None
        if w.connection is not None and leaver.ours:
            # Behind the unanswered call, on the same connection: a stopped server or a silent network
            # carries out both or none.
            behind = w.connection.send(self.server.release_command(r.keys, r.token))[0]
        self.spawn(self._leaving(leaver, w.task if core.calling else None, behind))

    def _leave_again(self, token: bytes) -> None:
        if token in self._leavers:
            return
        keys, prefix, _ = self._past[token]
        self._past[token] = (keys, prefix, self.now)
        leaver = Leaver(keys, token, None, prefix, True, self.now + GIVE_UP, self.loop.create_future())
        self._leavers[token] = leaver
        self.spawn(self._leaving(leaver, None, None))

    async def _leaving(self, leaver: Leaver, call: asyncio.Task[None] | None,
                       behind: asyncio.Future[object] | None) -> None:
        try:
            if call is not None:
                # On another connection the release could overtake the call that it undoes.
                await asyncio.wait([call])
            if behind is not None:
                try:
                    await asyncio.wait_for(behind, PATIENCE)
                    return
                except Exception:
                    pass  # refused, or no answer
            retry = Backoff()
            while self.now < leaver.until:
                try:
                    await asyncio.wait_for(self._leave_once(leaver), GIVE_UP / 1000)
                    return
                except Exception as e:
                    if not _fault(e).passes:
                        return
                    await asyncio.sleep(retry.next() / 1000)
        finally:
            if self._leavers.get(leaver.token) is leaver:
                del self._leavers[leaver.token]
            if leaver.request is not None and not leaver.request.own_token:
                self.remember(leaver.keys, leaver.token, leaver.prefix, self.now)
            if not leaver.done.done():
                leaver.done.set_result(None)

    async def _leave_once(self, leaver: Leaver) -> None:
        if not leaver.ours and leaver.request is not None:
            # Another process may hold the lock with this token. A try only leaves the queue.
            reply, _, _ = await self.server.acquire(leaver.request, leaver.prefix, 0)
            if not reply.held or reply.value // 1000 != reply.now:
                return
            leaver.ours = True  # granted by this very call
        await self.server.release(leaver.keys, leaver.token)


class Hold:
    """A held lock. `stage` leaves "held" once, in leave.

    The notice of a loss comes from a timer that makes no call and waits for nothing.
    """

    def __init__(self, engine: Engine, w: Waiting) -> None:
        r, grant = w.core.request, w.core.grant
        assert grant is not None
        self.engine = engine
        self.request = r
        self.keys = r.keys
        self.token = r.token
        self.prefix = w.prefix
        self.fence = grant.fence
        self.queued = grant.queued
        self.pid = os.getpid()
        self.stage = "held"  # or releasing, released, lost
        self.cause: LockLost | None = None
        self.lease = Lease.of(r, grant)
        self._tell: Callable[[], None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._extends = asyncio.Lock()
        self._reply_lost = False

    # From any thread

    @property
    def deadline(self) -> float:
        return self.lease.term.deadline / 1000

    def is_lost(self) -> bool:
        """Also true if the notice is due and its timer is late."""
        return self.stage == "lost" or self.stage == "held" and not self.lease.term.is_usable(self.engine.now)

    def told(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once when the lock is lost, in the loop's thread. It must return at once."""
        self.engine.loop.call_soon_threadsafe(self._told, tell)

    # In the loop's thread

    def _told(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        if self.stage == "lost":
            tell()

    def start(self) -> None:
        self._set_lease(self.lease)
        self._schedule()

    def _set_lease(self, lease: Lease) -> None:
        """Changes until when the lock is held, and moves the notice. Nothing else does."""
        self.lease = lease
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.stage == "held" and lease.term.length != NEVER:
            self._alarm = self.engine.at(lease.term.notice, self._ring)

    def _ring(self) -> None:
        if not self.lease.term.is_usable(self.engine.now):
            self._lose(self.lease.ending())
        else:  # the loop's clock is coarser
            self._set_lease(self.lease)

    def _lose(self, cause: LockLost) -> None:
        if self._leave("lost"):
            self.cause = cause
            log.warning("lock %r (fence %d) may be lost: %s", self.keys.name, self.fence, cause)
            # A holder that was told of the loss has until the deadline to stop.
            self._left(self.lease.term.deadline)
            if self._tell is not None:
                self._tell()

    def _leave(self, stage: str) -> bool:
        if self.stage != "held":
            return False
        self.stage = stage
        for timer in (self._alarm, self._renewal):
            if timer is not None:
                timer.cancel()
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        return True

    def _left(self, ended: float) -> None:
        if self.queued and not self.request.own_token:
            # A failover could put it into the queue again.
            self.engine.remember(self.keys, self.token, self.prefix, min(ended, self.engine.now + 3_600_000))

    def _schedule(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        at = self.lease.next(self.engine.now)
        if self.stage == "held" and self._keeper is None and at is not None:
            self._renewal = self.engine.at(at, self._keep)

    def _keep(self) -> None:
        self._renewal = None
        if self.stage == "held" and self._keeper is None:
            self._keeper = self.engine.spawn(self._keeping())

    async def _keeping(self) -> None:
        """Confirms or renews the lease. It retries until that succeeds or the lock is lost."""
        retry, pause = Backoff(), self.lease.term.length / 10 + 1
        try:
            while self.stage == "held":
                try:
                    await self.extend(None)
                    break
                except NotHeld:
                    break
                except Exception as e:
                    log.info("lock %r: not renewed: %s", self.keys.name, e)
                    await asyncio.sleep(min(retry.next(), pause) / 1000)
        finally:
            self._keeper = None
            if self.stage == "held":
                self._schedule()

    async def extend(self, length: float | None) -> None:
        """Makes the server begin a new term. None: the length of the last. Raises NotHeld or the call's error."""
        async with self._extends:
            before = self.lease
            length = before.length if length is None else length
            term = before.ask(self.engine.now, length) if self.stage == "held" else None
            if term is None:
                raise self._gone()
            self._set_lease(before.asked(term))
            try:
                held, sent = await self.engine.server.extend(
                    self.keys, self.token, term.length, patience=min(PATIENCE, term.length / 3000))
            except BaseException as e:
                fault = _fault(e)
                if self.stage == "held":
                    # Refused: nothing has changed. Unanswered: the call may still arrive.
                    self._set_lease(before if fault.answered else self.lease.unanswered(term, length))
                    self._schedule()
                if isinstance(e, Exception):
                    if self.stage != "held":
                        raise self._gone() from None
                    raise fault.error from None
                raise
            if self.stage == "held":
                if not held:
                    self._lose(LockLost("it was taken away, or its key is gone"))
                else:
                    self._set_lease(self.lease.confirmed(Term(sent, term.length), length))
                    if not self.lease.term.is_usable(self.engine.now):  # the reply came too late
                        self._lose(self.lease.ending())
            if self.stage != "held":
                raise self._gone()
            self._schedule()

    def _gone(self) -> NotHeld:
        if self.cause is not None:
            return LockLost(f"lock {self.keys.name!r}: {self.cause}")
        return NotHeld(f"lock {self.keys.name!r} is not held any more")

    async def release(self, *, keep: bool = True) -> None:
        """NotHeld: the lock had been lost before. Unavailable: its lease ends it; release it again if you like.

        keep=False ignores the minimum hold: nobody has worked under this lock.
        """
        if self.stage == "released":
            raise NotHeld(f"lock {self.keys.name!r} was released before")
        first = self._leave("releasing")
        try:
            held = await self._released(keep)
        except Fault as f:
            if first:
                self._left(self.engine.now)
            raise type(f.error)(f"lock {self.keys.name!r}: {f.error} (it ends by itself with its lease)") from None
        self.stage = "released"
        if first:
            self._left(self.engine.now)
        if not held:
            raise LockLost(f"lock {self.keys.name!r}: {self.cause or 'it had been lost before it was released'}")

    async def _released(self, keep: bool) -> bool:
        retry, end = Backoff(), self.engine.now + GIVE_UP
        while True:
            now = self.engine.now
            in_time = now < self.lease.term.deadline
            least = self.lease.least(now) if keep else 0
            patience = min(PATIENCE, max(0.001, (end - now) / 1000))
            try:
                # The minimum hold: its end is the end of the lease, and nobody gets the lock before.
                call = self._leave_it(least, patience) if least > 0 else self._give_it_back(patience)
                reply = await asyncio.wait_for(call, (end - now) / 1000)
            except Exception as e:
                fault = _fault(e)
                # Redis may have carried the call out, and only the reply is lost.
                self._reply_lost = self._reply_lost or in_time and not fault.answered
                pause = retry.next()
                if not fault.passes or self.engine.now + pause >= end:
                    raise fault from None
                await asyncio.sleep(pause / 1000)
            else:
                return reply or self._reply_lost

    async def _leave_it(self, least: float, patience: float) -> bool:
        return (await self.engine.server.extend(self.keys, self.token, least, patience=patience))[0]

    async def _give_it_back(self, patience: float) -> bool:
        return await self.engine.server.release(self.keys, self.token, patience=patience) == 1


def _fault(e: BaseException) -> Fault:
    if isinstance(e, Fault):
        return e
    if isinstance(e, (asyncio.TimeoutError, asyncio.CancelledError)):
        return unanswered("no answer", sent=True)
    log.error("an internal error of redislock", exc_info=e)
    return Fault(LockError(f"an internal error: {e!r}"), passes=False, answered=False)


async def reset_all(server: Server, prefix: str) -> int:
    """Resets every held lock with this prefix. It leaves alone a key without a fencing token beside it, as this
    library did not write it."""
    count = 0
    for key in await server.held(prefix):
        keys = keys_from(prefix, key)
        if keys is None:
            continue
        try:
            if (await server.inspect(keys))["fence"] > 0 and await server.reset(keys):
                count += 1
        except Fault as f:
            if not str(f).startswith("WRONGTYPE"):
                raise
    return count


async def _plain(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        return await coroutine
    except Fault as f:
        raise f.error from None


# One loop and one thread for each process, and one engine for each server in it.
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_engines: dict[Config, Engine] = {}
_inherited: list[object] = []  # of a parent process: collecting them would disturb the parent's


def engine_of(config: Config) -> Engine:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(_loop,), name="redislock", daemon=True).start()
        engine = _engines.get(config)
        if engine is None:
            engine = _engines[config] = Engine(Server(config), _loop)
        return engine


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda _, context: log.error("redislock: %s", context.get("message"),
                                                            exc_info=context.get("exception")))
    loop.call_later(30, _tidy, loop)
    loop.run_forever()


def _tidy(loop: asyncio.AbstractEventLoop) -> None:
    for engine in list(_engines.values()):
        engine.server.close_idle(loop.time())
    loop.call_later(30, _tidy, loop)


def _after_fork() -> None:
    global _lock, _loop, _engines
    _inherited.append((_loop, _engines))
    _lock, _loop, _engines = threading.Lock(), None, {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
