"""What can go wrong, and how to tell it apart."""

from __future__ import annotations

from redis import exceptions as _redis


class LockError(RuntimeError):
    """All errors of this package. threading.Lock raises RuntimeErrors, too."""


class NotAcquired(LockError):
    """Redis said, in this wait, that somebody holds the lock or waits for it."""


class Unavailable(LockError, _redis.ConnectionError):
    """Nobody answered, or with an error that passes. So nothing is known of the lock."""


class AlreadyAcquired(LockError):
    """This object holds the lock, or waits for it. Each holder needs an object of its own."""


class NotHeld(LockError):
    """The lock was not held any more, or never."""


class LockLost(NotHeld):
    """The lock was held and is lost, or may be. Somebody else may hold it."""


class ServerError(LockError, _redis.ResponseError):
    """Redis refused the call, and would do so again: rights, wrong types, memory."""


class LibraryError(ServerError):
    """The server lacks the function library, or has one that this package cannot work with."""


class Fault(Exception):
    """How one call failed. Internal: callers get one of the classes above."""

    def __init__(self, error: LockError, *, passes: bool, answered: bool) -> None:
        super().__init__(str(error))
        self.error = error
        # passes: the same call may succeed later without anybody's doing.
        self.passes = passes
        # answered: the call was not carried out, and will not be.
        self.answered = answered


_PASSES = ("LOADING", "BUSY", "READONLY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
           "UNBLOCKED", "MASTERDOWN")


def refused(text: str) -> Fault:
    """The Fault of an error reply."""
    passes = text.split(" ", 1)[0] in _PASSES
    return Fault(Unavailable(text) if passes else ServerError(text), passes=passes, answered=True)


def unanswered(text: str, *, sent: bool) -> Fault:
    """The Fault of a call without a reply. If it was sent, it may still be carried out."""
    return Fault(Unavailable(text), passes=True, answered=not sent)
