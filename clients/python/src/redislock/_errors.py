"""The errors of this package."""

from __future__ import annotations

from redis import exceptions as _redis


class LockError(RuntimeError):
    """All errors of this package. threading.Lock raises RuntimeErrors, too."""


class NotAcquired(LockError):
    """Redis said during this call that somebody holds the lock or waits for it."""


class Unavailable(LockError, _redis.ConnectionError):
    """Nobody answered, or Redis answered with an error that passes. Nothing is known of the lock."""


class AlreadyAcquired(LockError):
    """This object holds the lock, or waits for it. Each holder needs an object of its own."""


class NotHeld(LockError):
    """The lock was lost or released before, or never acquired."""


class LockLost(NotHeld):
    """The lock is lost, or may be. Somebody else may hold it now or soon."""


class ServerError(LockError, _redis.ResponseError):
    """Redis refused the call, and will refuse it again: rights, wrong types, memory."""


class LibraryError(ServerError):
    """The server has no function library that this package can work with."""


class Fault(Exception):
    """The failure of one call. Internal: callers get one of the classes above."""

    def __init__(self, error: LockError, *, passes: bool, answered: bool) -> None:
        super().__init__(str(error))
        self.error = error
        # passes: the same call may succeed later by itself.
        self.passes = passes
        # answered: the server did not carry out the call, and will not.
        self.answered = answered


_PASSES = ("LOADING", "BUSY", "READONLY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
           "UNBLOCKED", "MASTERDOWN")


def refused(text: str) -> Fault:
    """The Fault of an error reply."""
    passes = text.split(" ", 1)[0] in _PASSES
    return Fault(Unavailable(text) if passes else ServerError(text), passes=passes, answered=True)


def unanswered(text: str, *, sent: bool) -> Fault:
    """The Fault of a call without a reply. If it was sent, the server may still carry it out."""
    return Fault(Unavailable(text), passes=True, answered=not sent)
