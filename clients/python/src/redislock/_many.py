"""Several names at once, without deadlock."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Generic, TypedDict, TypeVar

from ._async import AsyncLock, _answer
from ._errors import LockError, LockLost, NotAcquired
from ._lock import Lock, Seconds
from ._protocol import order

if TYPE_CHECKING:
    from typing_extensions import Unpack

L = TypeVar("L", Lock, AsyncLock)


class Options(TypedDict, total=False):
    """The options of Lock."""

    lease: Seconds | None
    timeout: Seconds | None
    renew: bool
    token: str | None
    owner: str | None
    holders: int | None
    shared: bool
    min_hold: Seconds | None
    max_hold: Seconds | None
    on_lost: Callable[[Any], Any] | None
    prefix: str
    load: bool


class _Many(Generic[L]):
    def __init__(self, kind: type[L], client: Any, names: Iterable[str], **options: Unpack[Options]) -> None:
        if isinstance(names, (str, bytes)):
            raise TypeError("names must be several names, not a text")
        # The same order everywhere, so nobody waits in a circle.
        self.locks: list[L] = [kind(client, keys.name, **options)
                               for keys in order(options.get("prefix", "lock"), names)]
        if not self.locks:
            raise ValueError("names must not be empty")
        self._limit = self.locks[0]._timeout

    def __iter__(self) -> Iterator[L]:
        return iter(self.locks)

    def __len__(self) -> int:
        return len(self.locks)

    def __getitem__(self, name: str) -> L:
        for lock in self.locks:
            if lock.name == name or lock._keys.tagged == name.encode():
                return lock
        raise KeyError(name)

    @property
    def held(self) -> bool:
        """Whether all locks are held, as far as this machine knows."""
        return all(lock.held for lock in self.locks)

    def _lost(self) -> LockLost:
        names = ", ".join(repr(lock.name) for lock in self.locks if not lock.held)
        return LockLost(f"lost while the others were waited for: {names}")

    def _deadline(self, limit: float) -> float:
        return time.monotonic() * 1000 + limit


def _left(deadline: float) -> float:
    """The rest in ms, at least 1: 0 would be a try."""
    return max(1.0, deadline - time.monotonic() * 1000)


class Locks(_Many[Lock]):
    """Several locks, taken one after the other in bytewise order of their keys. Options are those of Lock.

        with Locks(client, ["from", "to"], timeout=5) as locks:
            pay(fence=locks["from"].fence)

    If it cannot get a lock, or loses one meanwhile, it releases all.
    """

    def __init__(self, client: Any, names: Iterable[str], **options: Unpack[Options]) -> None:
        super().__init__(Lock, client, names, **options)

    def acquire(self, blocking: bool = True, timeout: Seconds | None = -1) -> bool:
        """True: all are held. False: one of them was busy until now. timeout is for all of them together."""
        return self._acquire(self.locks[0]._request(blocking, timeout).limit)

    def _acquire(self, limit: float) -> bool:
        deadline, taken = self._deadline(limit), []
        try:
            for lock in self.locks:
                if not lock._acquire(lock._completed(_left(deadline) if limit else 0)):
                    return False
                taken.append(lock)
            if not self.held:
                raise self._lost()
            taken.clear()
            return True
        finally:
            for lock in reversed(taken):
                try:
                    lock._release(keep=False).result()
                except LockError:
                    pass  # the lease ends it

    def release(self) -> None:
        """Releases all, in reverse, and raises the first error."""
        errors: list[LockError] = []
        for lock in reversed(self.locks):
            try:
                lock.release()
            except LockError as e:
                errors.append(e)
        if errors:
            raise errors[0]

    def __enter__(self) -> Locks:
        if not self._acquire(self._limit):
            raise NotAcquired(f"one of {[lock.name for lock in self.locks]} is busy")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 _: TracebackType | None) -> None:
        lost = next((cause for lock in self.locks if (cause := lock._verdict())), None)
        try:
            self.release()
        except LockError:
            if kind is None:
                raise
        if kind is None and lost is not None:
            raise lost


class AsyncLocks(_Many[AsyncLock]):
    """Several locks for asyncio, see Locks."""

    def __init__(self, client: Any, names: Iterable[str], **options: Unpack[Options]) -> None:
        super().__init__(AsyncLock, client, names, **options)

    async def acquire(self, blocking: bool = True, timeout: Seconds | None = -1) -> bool:
        """True: all are held. False: one of them was busy until now. timeout is for all of them together."""
        return await self._acquire(self.locks[0]._request(blocking, timeout).limit)

    async def _acquire(self, limit: float) -> bool:
        deadline, taken = self._deadline(limit), []
        try:
            for lock in self.locks:
                if not await lock._acquire(lock._completed(_left(deadline) if limit else 0)):
                    return False
                taken.append(lock)
            if not self.held:
                raise self._lost()
            taken.clear()
            return True
        finally:
            await self._release(taken, keep=False)  # leases end the rest

    async def release(self) -> None:
        """Releases all, in reverse, and raises the first error."""
        errors = await self._release(self.locks, keep=True)
        if errors:
            raise errors[0]

    async def _release(self, locks: list[AsyncLock], *, keep: bool) -> list[LockError]:
        # Start all at once, so a cancel ends this wait, but no release.
        errors: list[LockError] = []
        begun = []
        for lock in reversed(locks):
            try:
                begun.append(lock._release(keep=keep))
            except LockError as e:
                errors.append(e)
        for release in begun:
            try:
                await _answer(release)
            except LockError as e:
                errors.append(e)
        return errors

    async def __aenter__(self) -> AsyncLocks:
        if not await self._acquire(self._limit):
            raise NotAcquired(f"one of {[lock.name for lock in self.locks]} is busy")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        _: TracebackType | None) -> None:
        lost = next((cause for lock in self.locks if (cause := lock._verdict())), None)
        try:
            await self.release()
        except LockError:
            if kind is None:
                raise
        if kind is None and lost is not None:
            raise lost
