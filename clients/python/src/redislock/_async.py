"""AsyncLock: the lock for asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from types import TracebackType
from typing import Any, Callable, TypeVar

from . import _protocol as protocol
from ._config import config_of
from ._engine import engine_of, reset_all
from ._errors import LockError, NotAcquired
from ._lock import Seconds, State, _Base, _guarded, _named
from ._protocol import Request

_tasks: set[asyncio.Task[Any]] = set()  # a loop keeps only weak references

T = TypeVar("T")
L = TypeVar("L", bound="AsyncLock")


class AsyncLost:
    """Set when the lock may be lost, see Lost."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._due: Callable[[], bool] | None = None

    def is_set(self) -> bool:
        """Makes no call. It checks the time itself, so a busy event loop does no harm."""
        return self._event.is_set() or self._due is not None and self._due()

    async def wait(self) -> bool:
        return await self._event.wait()


class AsyncLock(_Base):
    """A lock for asyncio, used like asyncio.Lock. It takes any client of redis-py.

    An object is for one holder at a time: make a new object for each task, they cost nothing. A cancelled
    task leaves nothing behind. Renewal goes on while the event loop is busy.
    """

    def _prepare(self) -> None:
        self._lost: AsyncLost | None = None

    @property
    def lost(self) -> AsyncLost:
        if self._lost is None:  # not in the constructor: an Event of Python 3.9 belongs to one loop
            self._lost = AsyncLost()
        return self._lost

    async def acquire(self, blocking: bool = True, timeout: Seconds | None = -1) -> bool:
        """True: the lock is held. False: it was busy until now. See Lock.acquire."""
        return await self._acquire(self._request(blocking, timeout))

    async def _acquire(self, request: Request) -> bool:
        self._claim()
        try:
            lost = self._lost = AsyncLost()
            engine = self._engine
            waiting = engine.obtain(request, self._prefix, self._load)
            try:
                hold = await _answer(waiting.result)
                self._took(hold)
            except LockError as e:
                self._hold = None
                if isinstance(e, NotAcquired):
                    return False
                raise _named(e, self.name) from None
            except BaseException:  # cancelled: the engine leaves the queue, or gives the lock back
                self._hold = None
                left = engine.abandon(waiting)
                try:
                    await asyncio.wait_for(_answer(left), 2)
                except Exception:
                    pass  # the cleaning up goes on without us
                raise
            lost._due = hold.is_lost
            loop = asyncio.get_running_loop()

            def notice() -> None:
                lost._event.set()
                if self._on_lost is None:
                    return
                if inspect.iscoroutinefunction(self._on_lost):
                    task = loop.create_task(self._on_lost(self))
                    _tasks.add(task)
                    task.add_done_callback(_tasks.discard)
                else:
                    _guarded(self._on_lost, self)

            def tell() -> None:
                try:
                    loop.call_soon_threadsafe(notice)
                except RuntimeError:  # the caller's loop is closed
                    pass

            hold.told(tell)
            return True
        finally:
            self._taking = None

    async def release(self) -> None:
        """Gives the lock back, and hands it to the next waiter. See Lock.release.

        The release goes on even if the task is cancelled.
        """
        await _answer(self._release())

    async def extend(self, lease: Seconds | None = None) -> None:
        """Makes the lease end this many seconds from now. See Lock.extend."""
        await _answer(self._engine.run(self._extend(lease)))

    async def locked(self) -> bool:
        """Whether anybody holds the lock."""
        return (await self.inspect()).held > 0

    async def inspect(self) -> State:
        """Shows the lock and its queue. It changes nothing."""
        return await _answer(self._engine.run(self._inspect()))

    async def reset(self) -> bool:
        """Takes the lock away from all its holders, and hands it on. False: nobody held it."""
        return await _answer(self._engine.run(self._reset()))

    @staticmethod
    async def reset_all(client: Any, *, prefix: str = "lock") -> int:
        """See Lock.reset_all."""
        engine = engine_of(config_of(client))
        return await _answer(engine.run(reset_all(engine.server, protocol.check_prefix(prefix))))

    @staticmethod
    async def load(client: Any) -> None:
        """See Lock.load."""
        engine = engine_of(config_of(client))
        await _answer(engine.run(engine.server.load()))

    async def __aenter__(self: L) -> L:
        if not await self._acquire(self._completed(self._timeout)):
            raise NotAcquired(f"lock {self.name!r} is busy")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        _: TracebackType | None) -> None:
        lost = self._verdict()
        try:
            await self.release()
        except LockError:
            if kind is None:  # otherwise the caller sees the error of the block
                raise
        if kind is None and lost is not None:
            raise lost  # the block worked on after the notice


async def _answer(asked: concurrent.futures.Future[T]) -> T:
    """Waits for the engine. A cancelled task stops waiting, but its request goes on."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def copy() -> None:
        if answer.done():
            return
        error = asked.exception()
        if error is None:
            answer.set_result(asked.result())
        else:
            answer.set_exception(error)

    def done(_: object) -> None:
        try:
            loop.call_soon_threadsafe(copy)
        except RuntimeError:  # the caller's loop is closed
            pass

    asked.add_done_callback(done)
    return await answer
