"""Calls of the function library: the right node, the library loaded, each call with a limit."""

from __future__ import annotations

import asyncio
import functools
import importlib.resources
import re
import secrets
from collections.abc import Awaitable
from typing import Any, Callable

from ._config import Address, Config
from ._errors import Fault, LibraryError, ServerError, refused, unanswered
from ._protocol import LAST_MS, NEVER, Acquired, Keys, Request, Signal, parse_acquired, parse_signal
from ._wire import Connection, ErrorReply, Word, ask, dial, encode, place

PATIENCE = 2.0  # s; a connection with a slower answer is replaced
BLOCK = 2.0  # s; how long one BLPOP blocks: it may be blocked on a demoted server
BLOCK_GRACE = 2.0  # s; how late its reply may be
POP_MAX = 1000
IDLE = 60.0  # s; an unused connection is closed after this


def source() -> str:
    """The text of the function library lua/lock.lua."""
    return (importlib.resources.files("redislock") / "lock.lua").read_text(encoding="utf-8")


def version() -> str:
    """The version of the function library in this package."""
    return re.search(r"^local VERSION = '([\d.]+)'", source(), re.MULTILINE)[1]  # type: ignore[index]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("."))


class Node:
    """One server, or the primary behind a Sentinel, with one connection for all calls."""

    def __init__(self, config: Config, address: Address | None) -> None:
        self.config = config
        self.address = address
        self.connection: Connection | None = None
        self._dialing: asyncio.Task[Connection] | None = None
        self.verified = False
        self._verifying: dict[bool, asyncio.Task[None]] = {}  # by whether it may load
        self.used = 0.0

    def __str__(self) -> str:
        if self.address is not None:
            return place(self.address)
        return self.config.path or f"the master {self.config.service!r}"

    async def dial(self) -> Connection:
        login = self.config.login
        if self.config.path is not None:
            return await dial(self.config.path, login, PATIENCE)
        return await dial(self.address or await self._master(), login, PATIENCE)

    async def _master(self) -> Address:
        """Asks all Sentinels at once, and believes the first answer."""
        async def one(address: Address, login: Any) -> Address:
            connection = await dial(address, login, PATIENCE / 2)
            try:
                reply = await asyncio.wait_for(
                    ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.config.service or ""), PATIENCE / 2)
            except asyncio.TimeoutError:
                raise unanswered("no answer of a Sentinel", sent=False) from None
            finally:
                connection.close("done")
            if not isinstance(reply, list):
                raise unanswered(f"a Sentinel does not know a master {self.config.service!r}", sent=False)
            return reply[0].decode(), int(reply[1])

        address: Address = await first([one(a, s) for a, s in zip(self.config.addresses, self.config.sentinels)])
        return address

    async def connected(self) -> Connection:
        """The connection for calls. All callers that ask meanwhile share a new one."""
        if self.connection is not None and self.connection.why is None:
            return self.connection
        if self._dialing is None:
            self._dialing = asyncio.ensure_future(self.dial())
            self._dialing.add_done_callback(self._dialed)
        return await asyncio.shield(self._dialing)

    def _dialed(self, task: asyncio.Task[Connection]) -> None:
        self._dialing = None
        if not task.cancelled() and task.exception() is None:
            self.connection = task.result()

    async def ask(self, *words: Word, patience: float = PATIENCE, sending: Callable[[Connection], None] | None = None,
                  asking: bool = False) -> object:
        """One request. A connection without an answer is closed.

        It calls sending just before it writes the request; sending may raise.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        try:
            connection = await asyncio.wait_for(self.connected(), patience)
        except asyncio.TimeoutError:
            raise unanswered(f"no connection to {self} within {patience:.3g} s", sent=False) from None
        if sending:
            sending(connection)
        sent = self.used = loop.time()
        request = encode(*words)
        reply = connection.send(encode("ASKING"), request)[1] if asking else connection.send(request)[0]
        try:
            return await asyncio.wait_for(reply, max(0.001, end - loop.time()))
        except asyncio.TimeoutError:
            # A call for a short lease is less patient. If the connection answered others meanwhile, they go on.
            if patience > PATIENCE / 2 or connection.received < sent:
                connection.close(f"no answer from {self} within {patience:.3g} s")
            raise unanswered(f"no answer from {self} within {patience:.3g} s", sent=True) from None
        except ErrorReply as e:
            fault = refused(str(e))
            if str(e).startswith(("READONLY", "MASTERDOWN")):
                # The server was demoted. A new connection may lead to the new primary.
                connection.close(str(e))
            raise fault from None

    async def verify(self, load: bool) -> None:
        """Loads or checks the library, once for all callers that ask meanwhile."""
        while not self.verified:
            if load not in self._verifying:
                self._verifying[load] = asyncio.ensure_future(self._verify(load))
                self._verifying[load].add_done_callback(functools.partial(self._verified, load))
            await asyncio.shield(self._verifying[load])

    def _verified(self, load: bool, task: asyncio.Task[None]) -> None:
        del self._verifying[load]
        self.verified = self.verified or not task.cancelled() and task.exception() is None

    async def _verify(self, load: bool) -> None:
        have, want = "", version()
        try:
            reply = await self.ask("FCALL_RO", "lock_version", 0)
            have = reply.decode() if isinstance(reply, bytes) else ""
        except Fault as f:
            if "unknown command" in str(f):
                raise self.wrong("Functions need Redis 7 or newer, or Valkey", have) from None
            if "Function not found" not in str(f):
                raise
        if have and re.fullmatch(r"\d+\.\d+\.\d+", have):
            if numbers(have)[0] != numbers(want)[0]:
                raise self.wrong("another major version of the function library", have)
            if numbers(have) >= numbers(want):
                return
        elif have:
            raise self.wrong("somebody else's library has the name", have)
        if not load:
            if have:
                return  # an older library works, but refuses calls that need more
            raise self.wrong("the function library is missing", have)
        try:
            await self.ask("FUNCTION", "LOAD", *(["REPLACE"] if have else []), source())
        except Fault as f:
            if "already exists" in str(f):  # somebody else was faster
                return
            if f.passes:
                raise
            raise self.wrong(f"the function library could not be loaded: {f}", have) from None

    def wrong(self, reason: str, have: str) -> Fault:
        has = f"has version {have}" if have else "has none"
        return Fault(LibraryError(
            f"{self}: {reason} ({has}, need {version()} of the function library \"lock\"; to load it: "
            "python -m redislock | redis-cli -x FUNCTION LOAD REPLACE, on each primary)"), passes=False, answered=True)

    def close(self, why: str) -> None:
        if self.connection is not None:
            self.connection.close(why)


async def first(calls: list[Awaitable[Any]]) -> Any:
    """The first result, or the last error. It ends the others."""
    pending = {asyncio.ensure_future(call) for call in calls}
    for task in pending:
        task.add_done_callback(_retrieve)
    trouble: BaseException = unanswered("no server is known", sent=False)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is None:
                    return task.result()
                trouble = error
        raise trouble
    finally:
        for task in pending:
            task.cancel()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Marks the exception as seen."""
    if not task.cancelled():
        task.exception()


def key_slot(key: bytes) -> int:
    from redis.crc import key_slot as slot
    return int(slot(key))


class Server:
    """The calls of a client. In a cluster, each goes to the right node."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.id = secrets.token_urlsafe(8).encode()  # part of the names of our signal lists
        # If the server checks slots, each lock needs a signal list of its own.
        self.per_lock = config.cluster
        self._nodes: dict[Address | None, Node] = {}
        self._slots: dict[int, Address] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Nodes

    def node(self, address: Address | None) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(self.config, address)
        return node

    async def node_of(self, key: bytes) -> Node:
        if not self.config.cluster:
            return self.node(self._single())
        slot = key_slot(key)
        if slot not in self._slots:
            await self.refresh()
        if slot not in self._slots:
            raise unanswered(f"no node of the cluster serves slot {slot}", sent=False)
        return self.node(self._slots[slot])

    def _single(self) -> Address | None:
        if self.config.service is not None or self.config.path is not None:
            return None
        return self.config.addresses[0]

    async def primaries(self) -> list[Node]:
        if not self.config.cluster:
            return [self.node(self._single())]
        await self.refresh()
        return [self.node(address) for address in dict.fromkeys(self._slots.values())]

    async def refresh(self) -> None:
        """Asks all known nodes at once for the slots, once for all callers that ask meanwhile."""
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._refresh())
            self._refreshing.add_done_callback(self._refresh_done)
        await asyncio.shield(self._refreshing)

    def _refresh_done(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        _retrieve(task)

    async def _refresh(self) -> None:
        async def one(node: Node) -> dict[int, Address]:
            slots: dict[int, Address] = {}
            reply = await node.ask("CLUSTER", "SLOTS")
            assert isinstance(reply, list)
            assert node.address is not None
            for low, high, primary, *_ in reply:
                host = (primary[0] or b"").decode() or node.address[0]
                address = (host, int(primary[1]))
                if self.config.remap:
                    address = self.config.remap(address)
                for slot in range(low, high + 1):
                    slots[slot] = address
            if not slots:
                raise unanswered("a node of the cluster knows no slots", sent=False)
            return slots

        known = dict.fromkeys([*self._slots.values(), *self.config.addresses])
        self._slots = await first([one(self.node(address)) for address in known])
        for address in set(self._nodes) - set(self._slots.values()):
            self._nodes.pop(address).close("not a primary of the cluster any more")

    def close_idle(self, now: float) -> None:
        for node in self._nodes.values():
            if node.connection is not None and now - node.used > IDLE:
                node.close("idle")

    # Calls

    async def call(self, keys: Keys, *words: Word, load: bool = True, patience: float = PATIENCE,
                   sending: Callable[[Connection], None] | None = None) -> object:
        """One FCALL. It follows MOVED and ASK, and loads a missing library.

        It raises a Fault. It takes some seconds at most, so nothing hangs.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + max(patience, 0.01)
        moves, loads = 0, 0
        asking = False
        node: Node | None = None
        trouble: Fault | None = None
        while True:
            left = end - loop.time()
            if left <= 0:
                raise trouble or unanswered(f"no answer within {patience:.3g} s", sent=False)
            try:
                if node is None:
                    node = await limited(self.node_of(keys.lock), left)
                if not node.verified:
                    await limited(node.verify(load), left)
                return await node.ask(*words, patience=max(0.01, end - loop.time()), sending=sending, asking=asking)
            except Fault as f:
                trouble = f
                text = str(f)
                if text.startswith(("MOVED ", "ASK ")) and self.config.cluster and moves < 5:
                    moves += 1
                    asking = text.startswith("ASK ")
                    to = self._to(node, text)
                    if not asking:
                        self._slots[key_slot(keys.lock)] = to
                        self._soon(self.refresh())
                    node = self.node(to)
                    continue
                if "Function not found" in text and loads < 2 and node is not None:
                    loads += 1
                    node.verified = False
                    continue
                if self.config.cluster and (not f.answered or text.startswith(
                        ("no connection", "CLUSTERDOWN", "READONLY", "MASTERDOWN"))):
                    self._soon(self.refresh())
                raise

    def _to(self, node: Node | None, text: str) -> Address:
        host, _, port = text.split(" ")[2].rpartition(":")
        address = (host or (node.address[0] if node and node.address else ""), int(port))
        return self.config.remap(address) if self.config.remap else address

    def _soon(self, call: Any) -> None:
        task = asyncio.ensure_future(call)
        self._tasks.add(task)  # a loop keeps only weak references
        task.add_done_callback(_retrieve)
        task.add_done_callback(self._tasks.discard)

    def signal_list(self, prefix: str, keys: Keys) -> bytes:
        head = prefix.encode() + b"-signal:"
        return head + keys.tagged + b":" + self.id if self.per_lock else head + self.id

    async def acquire(self, r: Request, prefix: str, wait: float, *, load: bool = True,
                      sending: Callable[[Connection], None] | None = None) -> tuple[Acquired, float, bytes]:
        """Also returns when the answered request was sent, and the signal list."""
        loop = asyncio.get_running_loop()
        sent = 0.0

        def note(connection: Connection) -> None:
            nonlocal sent
            if sending:
                sending(connection)
            sent = loop.time() * 1000 - LAST_MS

        while True:
            signals = self.signal_list(prefix, r.keys)
            words: list[Word] = ["FCALL", "lock_acquire", 4, *r.keys[1:4], signals, r.token,
                                 wire_ms(r.first_lease), wire_ms(wait)]
            if r.holders is not None:
                words.append(r.holders)
            try:
                reply = await self.call(r.keys, *words, load=load, sending=note)
            except Fault as f:
                if str(f).startswith("CROSSSLOT") and not self.per_lock:
                    self.per_lock = True  # a cluster, although the client is not one
                    continue
                if str(f).startswith("LOCKARG expected 3 arguments") and r.holders is not None:
                    raise Fault(LibraryError(f"the function library is too old for holders and shared: {f}"),
                                passes=False, answered=True) from None
                raise
            try:
                return parse_acquired(reply, r.first_lease), sent, signals
            except ValueError as e:
                raise Fault(ServerError(str(e)), passes=False, answered=False) from None

    async def extend(self, keys: Keys, token: bytes, length: float, *,
                     patience: float = PATIENCE) -> tuple[bool, float]:
        loop = asyncio.get_running_loop()
        sent = 0.0

        def note(_: Connection) -> None:
            nonlocal sent
            sent = loop.time() * 1000 - LAST_MS

        reply = await self.call(keys, "FCALL", "lock_extend", 3, *keys[1:4], token, wire_ms(length),
                                patience=patience, sending=note)
        return reply == 1, sent

    def release_command(self, keys: Keys, token: bytes) -> bytes:
        return encode("FCALL", "lock_release", 3, *keys[1:4], token)

    async def release(self, keys: Keys, token: bytes, *, patience: float = PATIENCE) -> int:
        reply = await self.call(keys, "FCALL", "lock_release", 3, *keys[1:4], token, patience=patience)
        return reply if isinstance(reply, int) else 0

    async def reset(self, keys: Keys, *, load: bool = True) -> bool:
        return await self.call(keys, "FCALL", "lock_reset", 3, *keys[1:4], load=load) == 1

    async def inspect(self, keys: Keys, *, load: bool = True) -> dict[str, Any]:
        reply = await self.call(keys, "FCALL_RO", "lock_inspect", 3, *keys[1:4], load=load)
        if not isinstance(reply, list):
            raise Fault(ServerError(f"an unexpected reply to lock_inspect: {reply!r}"), passes=False, answered=True)
        return {name.decode(): value for name, value in zip(reply[::2], reply[1::2])}

    async def held(self, prefix: str) -> list[bytes]:
        """The keys that begin with the prefix and may be held locks."""
        found: dict[bytes, None] = {}
        for node in await self.primaries():
            cursor: Word = 0
            while True:
                reply = await node.ask("SCAN", cursor, "MATCH", prefix + ":*", "COUNT", 1000)
                assert isinstance(reply, list)
                cursor, keys = reply
                found.update(dict.fromkeys(keys))
                if cursor == b"0":
                    break
        return list(found)

    async def load(self) -> None:
        for node in await self.primaries():
            node.verified = False
            await node.verify(True)

    async def pop(self, connection: Connection, signals: bytes, most: int) -> list[Signal]:
        """Blocks until signals come, and returns them, or none after some seconds."""
        commands = [encode("BLPOP", signals, f"{BLOCK:g}")]
        if most > 1 and not self.per_lock:  # all pending signals in one round trip
            commands.append(encode("LPOP", signals, min(most, POP_MAX)))
        futures = connection.send(*commands)
        try:
            popped = await asyncio.wait_for(futures[0], BLOCK + BLOCK_GRACE)
            elements = popped[1:] if isinstance(popped, list) else []
            if len(futures) > 1:
                more = await asyncio.wait_for(futures[1], PATIENCE)
                elements += more if isinstance(more, list) else []
        except asyncio.TimeoutError:
            connection.close("BLPOP got no answer")
            raise unanswered("BLPOP got no answer", sent=True) from None
        except ErrorReply as e:
            connection.close(str(e))
            raise refused(str(e)) from None
        parsed = [parse_signal(element) for element in elements if isinstance(element, bytes)]
        return [signal for signal in parsed if signal]


def wire_ms(length: float) -> int:
    """A length as the functions' argument: whole milliseconds, and 0 for never."""
    return 0 if length == NEVER else int(-(-length // 1))


async def limited(call: Awaitable[Any], seconds: float) -> Any:
    try:
        return await asyncio.wait_for(call, seconds)
    except asyncio.TimeoutError:
        raise unanswered(f"no answer within {seconds:.3g} s", sent=False) from None
