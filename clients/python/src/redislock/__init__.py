"""A lock for many machines: first come, first served, by redislock's functions in Redis.

    import redis
    from redislock import Lock

    client = redis.Redis()
    with Lock(client, "orders", timeout=5) as lock:
        pay(order, fence=lock.fence)

See README.md for the errors, the options and asyncio.
"""

from ._async import AsyncLock, AsyncLost
from ._errors import AlreadyAcquired, LibraryError, LockError, LockLost, NotAcquired, NotHeld, ServerError, Unavailable
from ._lock import Lock, Lost, State, Waiter
from ._many import AsyncLocks, Locks

reset_all = Lock.reset_all

__version__ = "1.0.0"

__all__ = [
    "AlreadyAcquired", "AsyncLock", "AsyncLocks", "AsyncLost", "LibraryError", "Lock", "LockError", "LockLost", "Locks",
    "Lost", "NotAcquired", "NotHeld", "ServerError", "State", "Unavailable", "Waiter", "reset_all",
]
