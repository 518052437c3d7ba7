"""The rules of a client, without I/O: how a wait and a lease react to events.

Every method takes the time as an argument, and calls nothing. All times are milliseconds: local ones by
the monotonic clock, the server's as integers by its own clock. The shared vectors (clients/vectors)
check this file and the Go client.
"""

from __future__ import annotations

import math
import os
import random
import re
import secrets
import socket
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ._errors import Fault, LockError, LockLost, NotAcquired, Unavailable

NEVER = math.inf  # a lease that never expires, a limit that is not set

NOTICE_MAX = 500.0  # how long the notice comes ahead of the deadline, or
NOTICE_SHARE = 10.0  # a tenth of the lease, if that is less
HANDED = 2000.0  # a handed-over lease, until it is confirmed: CLAIM_MS of lock.lua
CLAIM_AFTER = 500.0  # when to confirm it: a holder that releases sooner saves this call
FOREMOST = 1000.0  # how often the first waiter of a process for a lock calls at least
CROWD = 1500.0  # the same, if the process waits for more than
MANY_LOCKS = 100
PLACE = 30_000.0  # how long a place in the queue is kept after the last call; or, if that is more,
PLACE_PER_WAITER = 75.0  # this for each waiter: together they call 40 times a second
MAX_PLACE = 86_400_000.0
LAST_MS = 1.0  # a lease counts from so long before its call: Redis 8 may remove a key in its last millisecond
TRY_CALLS = 3  # how often a try is sent while Redis is in trouble
MAX_LATE = 3  # how many grants may arrive too late before the wait fails

MAX_NAME = 4096  # bytes
MAX_TOKEN = 16384
MAX_PREFIX = 64
MAX_OWNER = 64
MAX_LEASE = 9_999_999_999_999
MAX_HOLDERS = 9_999_999_999_999


class Keys(NamedTuple):
    """The keys of one lock. They share a hash tag, and so a slot of a cluster."""

    name: str
    lock: bytes
    queue: bytes
    state: bytes
    tagged: bytes


def keys_of(prefix: str, name: str) -> Keys:
    if not isinstance(name, str):
        raise TypeError(f"the name of a lock must be a str, not {name!r}")
    if not name or name.startswith("}"):
        raise ValueError(f"the name of a lock must not be empty or begin with '}}': {name!r}")
    tagged = (name if re.match(r"[^{]*\{[^}]+\}", name, re.DOTALL) else "{" + name + "}").encode()
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"the name of a lock must have {MAX_NAME} bytes at most")
    head = prefix.encode()
    return Keys(name, head + b":" + tagged, head + b"-queue:" + tagged, head + b"-state:" + tagged, tagged)


def keys_from(prefix: str, key: bytes) -> Keys | None:
    """The inverse of keys_of, for the locks that SCAN finds. None: not the key of a lock."""
    head = prefix.encode() + b":"
    if not key.startswith(head):
        return None
    try:
        keys = keys_of(prefix, key[len(head):].decode())
    except ValueError:
        return None
    return keys if keys.lock == key else None


def order(prefix: str, names: Iterable[str]) -> list[Keys]:
    """The order in which to take several names, the same in every language. `x` and `{x}` are one."""
    found: dict[bytes, Keys] = {}
    for name in names:
        keys = keys_of(prefix, name)
        found.setdefault(keys.lock, keys)
    return [found[key] for key in sorted(found)]


def check_prefix(prefix: str) -> str:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {prefix!r}")
    if not prefix or re.search("[{}:]", prefix) or prefix.endswith(("-queue", "-state", "-signal")) \
            or len(prefix.encode()) > MAX_PREFIX:
        raise ValueError(f"prefix must have 1 to {MAX_PREFIX} bytes, no braces and no colon, and not end "
                         f"like the keys beside a lock (-queue, -state, -signal): {prefix!r}")
    return prefix


class Signal(NamedTuple):
    """One element of a signal list: TOKEN has the lock until DEADLINE of the server's clock."""

    fence: int  # 0: it grants nothing, and asks for a call
    deadline: int
    token: bytes


def parse_signal(element: bytes) -> Signal | None:
    match = re.fullmatch(rb"(\d{1,16}) (\d{1,16}) (.+)", element, re.DOTALL)
    return Signal(int(match[1]), int(match[2]), match[3]) if match else None


@dataclass(frozen=True)
class Request:
    """The arguments of one call, checked and completed."""

    keys: Keys
    token: bytes
    own_token: bool = False  # the caller's: another process may use it
    lease: float = 10_000.0
    renew: bool = True
    max_hold: float = NEVER
    min_hold: float = 0.0
    holders: int | None = None  # None: alone; 0: any number
    limit: float = NEVER  # of the wait; 0: only try
    place: float = PLACE

    @property
    def first_lease(self) -> float:
        """The lease to ask for. It does not outlast the maximum hold."""
        return min(max(self.lease, self.min_hold), self.max_hold)

    @property
    def handed(self) -> float:
        """The lease with which a lock is handed over."""
        return min(self.first_lease, HANDED)

    @property
    def is_try(self) -> bool:
        return self.limit == 0


def label(owner: str | None) -> bytes:
    """The label at the beginning of a token, for operators: HOST:PID by default."""
    if owner is not None:
        return _cut(owner.encode(), MAX_OWNER)
    pid = f":{os.getpid()}".encode()
    return _cut(socket.gethostname().encode(), MAX_OWNER - len(pid)) + pid


def new_token(owner: str | None) -> bytes:
    """The label and 128 random bits."""
    random_part = secrets.token_urlsafe(16).encode()
    start = label(owner)
    return start + b":" + random_part if start else random_part


def _cut(text: bytes, most: int) -> bytes:
    """Shortens UTF-8 between two characters."""
    return text[:most].decode(errors="ignore").encode()


@dataclass(frozen=True)
class ServerClock:
    """One reading of the server's clock, from a reply: it showed `now` at some moment between `at` and `by`."""

    now: int = 0  # 0: nothing is known
    at: float = 0.0  # when the call was sent, by our clock
    by: float = 0.0  # when the reply arrived, by our clock
    high: int = 0  # the clock was put back and may have shown this before; 0: it was not, as far as we know

    def earliest(self, ms: int, today: float) -> float:
        """The earliest moment, by our clock, at which the server's clock shows `ms`.

        One millisecond is for rounding, a tenth of the time since `at` for clocks of different speed.
        """
        return self.at + (ms - self.now) - 1 - (today - self.at) / 10

    def newer(self, other: ServerClock) -> ServerClock:
        """The later reading of two. It notes in `high` whether the clock was put back.

        `other` may have been sent first, and taken longer.
        """
        high = self.high
        if self.now and other.now < self.now + math.floor(other.at - self.by):
            high = max(high, self.now + math.floor(other.by - self.at) + 1)
        earlier = other.at < self.at and other.now <= max(self.now, self.high)
        return replace(self if earlier else other, high=high)


class Term(NamedTuple):
    """A promise of the server: the lock is held for `length` after `start`."""

    start: float  # by our clock, and no later than the moment from which the server counts
    length: float

    @property
    def deadline(self) -> float:
        return self.start + self.length

    @property
    def notice(self) -> float:
        """When to tell the holder: ahead of the deadline, so it can stop in time."""
        return self.deadline - min(self.length / NOTICE_SHARE, NOTICE_MAX)

    def is_usable(self, now: float) -> bool:
        return now < self.notice

    def at_most(self, length: float) -> Term:
        return Term(self.start, min(self.length, length))


@dataclass(frozen=True)
class Grant:
    """A lock that this wait has just got."""

    fence: int
    term: Term
    by: float  # the server had granted it by then, at the latest
    unconfirmed: bool = False  # handed over with a short lease: confirm it
    queued: bool = False
    ours: bool = True  # given to this wait, not to an earlier one with the same token
    doubt: float = NEVER  # the lease of a call without an answer, which may still arrive


@dataclass(frozen=True)
class Lease:
    """Until when a lock is held, and when to call the server for it. It is a value, so nothing gets out of step.

    No term ends later than the server's:

    - A term that the server confirmed counts from the moment when the call was sent. There is one call at a
      time, so the server has seen no later one.
    - A call without an answer may still arrive and set its own length. So doubt, the shortest of these
      lengths, limits all later terms.
    - A term that ends sooner counts from before its call is sent. Only a refusal takes it back.
    """

    term: Term
    length: float  # of each renewal
    begin: float  # of the first term
    granted_by: float
    max_hold: float
    min_hold: float
    renew: bool
    unconfirmed: bool
    doubt: float

    @classmethod
    def of(cls, r: Request, g: Grant) -> Lease:
        return cls(term=g.term.at_most(r.max_hold), length=r.lease, begin=g.term.start, granted_by=g.by,
                   max_hold=r.max_hold, min_hold=r.min_hold, renew=r.renew, unconfirmed=g.unconfirmed,
                   doubt=g.doubt)

    def left(self, now: float) -> float:
        """The rest of the maximum hold, in whole milliseconds."""
        left = self.begin + self.max_hold - now
        return left if math.isinf(left) else math.trunc(left)

    def least(self, now: float) -> float:
        """The rest of the minimum hold. It counts from the latest possible moment of the grant."""
        return max(0, math.ceil(self.granted_by + self.min_hold - now)) if self.min_hold else 0

    def next(self, now: float) -> float | None:
        """When to call lock_extend, to confirm or to renew. None: never again."""
        if self.unconfirmed:
            return now + min(CLAIM_AFTER, (self.term.deadline - now) / 4)
        if not self.renew or self.term.length == NEVER or self.is_last:
            return None
        # A minimum hold may make the term longer. That does not change how often to renew.
        return self.term.start + min(self.term.length, self.length) / 3

    @property
    def is_last(self) -> bool:
        """Whether the term ends with the maximum hold, give or take the rounding."""
        return self.left(self.term.deadline) <= 1 if self.max_hold != NEVER else False

    def ask(self, now: float, length: float) -> Term | None:
        """The term to ask for. None: the maximum hold is over."""
        left = self.left(now)
        return Term(now, min(max(length, self.least(now)), left)) if left > 0 else None

    def asked(self, term: Term) -> Lease:
        """The lease while a call for a term is under way. A sooner end counts at once: the server may have it."""
        return replace(self, term=term) if term.deadline < self.term.deadline else self

    def confirmed(self, term: Term, length: float) -> Lease:
        """The lease after the server has set a term. `length` is that of each renewal."""
        term = term.at_most(self.doubt).at_most(max(0, self.left(term.start)))
        return replace(self, unconfirmed=False, term=term, length=length)

    def unanswered(self, term: Term, length: float) -> Lease:
        """The lease after a call that may still arrive."""
        return replace(self, doubt=min(self.doubt, term.length), length=min(self.length, length))

    def ending(self) -> LockLost:
        """The text that names the limit which ended the lock."""
        if self.is_last:
            return LockLost(f"the maximum hold of {self.max_hold / 1000:g} s is over")
        return LockLost(f"the lease of {self.term.length / 1000:g} s is over, and was not renewed")


class Acquired(NamedTuple):
    """The reply to lock_acquire."""

    held: bool
    value: int  # held: the fencing token; otherwise the position, 0: not queued
    span: float  # held: the rest of the lease; queued: call again within this
    now: int  # server time


def parse_acquired(reply: object, lease: float) -> Acquired:
    """Raises ValueError for an unexpected shape. A later library may add elements."""
    if not isinstance(reply, list) or len(reply) < 4 or not all(isinstance(n, int) for n in reply[:4]):
        raise ValueError(f"an unexpected reply to lock_acquire: {reply!r}")
    held, value, span, now = reply[:4]
    if held == 1 and span <= 0:
        if span != -1 or lease != NEVER:  # a lease of 0 must not become one that never expires
            raise ValueError(f"a lease of {span} ms")
        span = NEVER
    return Acquired(held == 1, value, span, now)


@dataclass
class Line:
    """The waits of this process for one lock, in order."""

    waits: OrderedDict[int, Wait] = field(default_factory=OrderedDict)
    clock: ServerClock = ServerClock()

    def foremost(self) -> Wait | None:
        return next(iter(self.waits.values()), None)


class Backoff:
    """The pause after calls that failed: 10 ms, doubled up to 1 s, with a random half."""

    def __init__(self) -> None:
        self._n = 0

    def next(self) -> float:
        pause = min(10.0 * (1 << min(self._n, 7)), 1000.0)
        self._n += 1
        return pause * random.uniform(0.5, 1)


class Wait:
    """One call of acquire, until it is over. Then there is a grant or an error.

    After each event: if `over`, give the caller the grant or the error, and if `undo`, also leave the queue
    and release a possible grant. Otherwise call lock_acquire at `due`; None: a call is under way.
    """

    def __init__(self, request: Request, line: Line) -> None:
        self.request = request
        self.line = line
        self.over = False
        self.undo = False
        self.grant: Grant | None = None
        self.error: LockError | None = None
        self.due: float | None = None
        self.calling = False
        self.sent = -math.inf  # just before the last call
        self.kept = 0.0  # how long the server keeps the place after a call
        self.busy = False  # the server has said that somebody holds the lock or waits for it
        self.trouble: LockError | None = None  # why the last call was not answered
        self.clock = ServerClock()
        self.listens = False  # it is queued, so a signal may come
        self._asked = 0
        self._told: Signal | None = None  # arrived during a call; the reply counts first
        self._unanswered = False
        self._retry = Backoff()
        self._slow = 0.0  # how long the last answer took
        self._late = 0

    def call(self, now: float) -> None:
        """lock_acquire is sent now, with a place of `kept`."""
        self.calling, self.due, self.sent = True, None, now
        self._asked += 1
        if not self.request.is_try:
            self.kept = min(max(self.request.place, len(self.line.waits) * PLACE_PER_WAITER), MAX_PLACE)

    def answered(self, now: float, sent: float, reply: Acquired, *, crowd: bool = False) -> bool:
        """lock_acquire was answered. Returns whether a grant in it is this wait's."""
        self.calling = False
        self.busy = self.busy or not reply.held
        ours = self._is_ours(reply)
        if self.over:
            return ours
        told, self._told = self._told, None
        self._slow = now - sent
        if reply.held:
            # A signal that came meanwhile was for this grant, or an older one. The lease counts from before
            # the call was sent, so the server's lease ends later. If the grant came too late, the signals
            # that follow need the clock.
            self.line.clock = self.line.clock.newer(ServerClock(reply.now, sent, now))
            self._take(now, Grant(reply.value, Term(sent, reply.span), by=now, ours=ours,
                                  queued=self._asked > 1 and not self.request.is_try))
            return ours
        if self.request.is_try:
            self._end(NotAcquired("somebody holds the lock or waits for it"))
            return ours
        self.clock = ServerClock(reply.now, sent, now)
        self.line.clock = self.line.clock.newer(self.clock)
        self.trouble, self._retry, self.listens = None, Backoff(), True
        self._call_at(now + pace(reply.span, crowd))
        if told:
            self.told(now, told)
        return ours

    def failed(self, now: float, fault: Fault) -> None:
        """lock_acquire got no answer, or an error."""
        self.calling = False
        self._unanswered = self._unanswered or not fault.answered
        if self.over:
            return
        told, self._told = self._told, None
        if not fault.passes or self.request.is_try and self._asked == TRY_CALLS:
            self._undo(fault.error)
            return
        self.trouble = fault.error
        self._call_at(now + self._retry.next())
        if told:
            self.told(now, told)

    def told(self, now: float, signal: Signal) -> None:
        """A signal with our token came. Believe it only if it is unambiguous."""
        if self.over:
            return
        if self.calling:
            self._told = signal
            return
        handed = self.request.handed
        granted = signal.deadline - math.ceil(handed)  # by the server's clock
        grant = self._handed_over(now, signal)
        if (
            signal.fence == 0 or self.clock.now == 0 or self.request.own_token
            or self.request.min_hold > 0  # the server must know it before the work begins
            or grant.term.start > now  # in the future: the server's clock has jumped
            or granted < self.clock.now  # the server has queued us since: the grant was taken back
            or granted <= self.line.clock.high  # perhaps taken back: the server's clock was put back
        ):
            self._call_at(now)
        else:
            self._take(now, grant)

    def quit(self, error: LockError | None = None) -> None:
        """The caller waits no longer."""
        if not self.over:
            self._undo(error or self.unserved())

    def unserved(self) -> LockError:
        """The error when the limit of the wait is over."""
        trouble = f"; the last call failed: {self.trouble}" if self.trouble else ""
        if self.busy:
            return NotAcquired("the lock was busy until the time was over" + trouble)
        return Unavailable("the time was over before Redis answered" + trouble)

    @property
    def may_be_queued(self) -> bool:
        return self._asked > 0

    @property
    def ours(self) -> bool:
        """Whether a lock held with the token surely belongs to this wait."""
        return not self.request.own_token or self.clock.now != 0

    def due_with(self, crowd: bool) -> float | None:
        """due, or sooner if this is the foremost wait of its line."""
        if self.due is None or self.line.foremost() is not self:
            return self.due
        return min(self.due, self.sent + pace(FOREMOST, crowd))

    def _is_ours(self, reply: Acquired) -> bool:
        # With the caller's own token, another process may have held the lock before. A fencing token is
        # the time of its grant in microseconds.
        return self.ours or reply.value // 1000 == reply.now

    def _handed_over(self, now: float, signal: Signal) -> Grant:
        handed = self.request.handed
        deadline = self.line.clock.earliest(signal.deadline, now)
        return Grant(signal.fence, Term(deadline - handed, handed), by=now, queued=True,
                     unconfirmed=handed != self.request.first_lease)

    def _take(self, now: float, grant: Grant) -> None:
        """Ends the wait with a grant, unless the grant came too late."""
        if grant.term.is_usable(now):
            self.grant = replace(grant, doubt=self.request.first_lease if self._unanswered else NEVER)
            self._end(None)
            return
        if self._slow > self.request.handed / 2:
            self._late += 1
        if self.request.is_try or self._late >= MAX_LATE:
            self._undo(LockLost(f"a lease of {grant.term.length / 1000:g} s had run out when the grant arrived "
                                f"(round trip {self._slow / 1000:.3g} s): use a longer one"))
        else:
            self._call_at(now)

    def _call_at(self, due: float) -> None:
        self.due = due

    def _undo(self, error: LockError) -> None:
        self.undo = self.may_be_queued
        self._end(error)

    def _end(self, error: LockError | None) -> None:
        self.over, self.error, self.due = True, error, None


def pace(pause: float, crowd: bool) -> float:
    """Slows down a check-in after `pause` if this process waits for many locks."""
    return max(pause, CROWD) if crowd and pause >= FOREMOST else pause
