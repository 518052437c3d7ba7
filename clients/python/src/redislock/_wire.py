"""One connection: it sends requests at once, and gets the answers in the same order.

So the server sees the requests of one connection in order. To undo a call that may still arrive, send a
second request behind it. redis-py's own connections cannot: they take one request at a time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import weakref
from collections import deque
from collections.abc import Generator
from typing import Any, Callable, Union

from ._config import Address, Login
from ._errors import Fault, Unavailable, refused, unanswered

Word = Union[bytes, str, int]


class ErrorReply(Exception):
    """An error that Redis answered."""


def encode(*words: Word) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(text), text))
    return b"".join(parts)


class Connection(asyncio.Protocol):
    """A connection. dial makes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._pending: deque[asyncio.Future[object]] = deque()
        self._buffer = bytearray()
        self._parser = self._parse()
        next(self._parser)
        self.received = loop.time()  # when the last bytes came
        self.why: str | None = None  # why it is closed
        self.closed: asyncio.Future[None] = loop.create_future()

    def send(self, *commands: bytes) -> list[asyncio.Future[object]]:
        """Sends encoded commands. Each future gets the reply, an ErrorReply or a Fault."""
        futures = [self._loop.create_future() for _ in commands]
        if self.why is not None or self._transport is None:
            for future in futures:
                future.set_exception(unanswered(self.why or "not connected", sent=False))
                future.exception()  # nobody has to look
        else:
            self._pending.extend(futures)
            self._transport.write(b"".join(commands))
        return futures

    def close(self, why: str) -> None:
        """Sends the written bytes if the network takes them. All pending requests fail."""
        self._fail(why)
        if self._transport is not None:
            self._transport.close()
            # A dead network never takes the rest.
            self._loop.call_later(5, self._transport.abort)

    def _fail(self, why: str) -> None:
        if self.why is not None:
            return
        self.why = why
        self.closed.set_result(None)
        pending, self._pending = self._pending, deque()
        for future in pending:
            if not future.done():
                future.set_exception(unanswered(why, sent=True))
                future.exception()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}" if exc else "the connection was closed by the server")

    def data_received(self, data: bytes) -> None:
        if self.why is None:
            self.received = self._loop.time()
            self._buffer += data
            self._parser.send(None)

    def _parse(self) -> Generator[None, None, None]:
        while True:
            try:
                value = yield from self._value()
            except ValueError as e:
                self.close(f"not a reply of Redis: {e}")
                yield
                continue
            if not self._pending:
                continue
            future = self._pending.popleft()
            if future.done():  # the caller has gone
                continue
            if isinstance(value, ErrorReply):
                future.set_exception(value)
                future.exception()
            else:
                future.set_result(value)

    def _take(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < size:
            yield
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _value(self) -> Generator[None, None, object]:
        while (end := self._buffer.find(b"\r\n")) < 0:
            yield
        line = yield from self._take(end + 2)
        kind, text = line[:1], line[1:-2]
        if kind == b"+":
            return text
        if kind == b"-":
            return ErrorReply(text.decode(errors="replace"))
        if kind == b":":
            return int(text)
        if kind == b"$":
            if text == b"-1":
                return None
            bulk = yield from self._take(int(text) + 2)
            return bulk[:-2]
        if kind == b"*":
            if text == b"-1":
                return None
            values = []
            for _ in range(int(text)):
                values.append((yield from self._value()))
            return values
        raise ValueError(repr(line[:40]))


async def ask(connection: Connection, *words: Word) -> object:
    """One request. An error reply becomes a Fault."""
    try:
        return await connection.send(encode(*words))[0]
    except ErrorReply as e:
        raise refused(str(e)) from None


async def dial(address: Address | str, login: Login, limit: float) -> Connection:
    """A new connection, logged in. Raises a Fault, within `limit` seconds."""
    try:
        return await asyncio.wait_for(_dial(address, login), limit)
    except asyncio.TimeoutError:
        raise unanswered(f"no connection to {place(address)} within {limit:g} s", sent=False) from None
    except ssl.SSLCertVerificationError as e:  # lasting
        raise Fault(Unavailable(f"no connection to {place(address)}: {e}"), passes=False, answered=True) from None
    except (OSError, ssl.SSLError) as e:
        raise unanswered(f"no connection to {place(address)}: {e}", sent=False) from None


def place(address: Address | str) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


async def _dial(address: Address | str, login: Login) -> Connection:
    loop = asyncio.get_running_loop()
    sock = await _connected(loop, address)
    connection = Connection(loop)
    try:
        context = login.context()
        words = login.credentials() if login.credential_provider is None else await in_thread(login.credentials)
        host = address[0] if not isinstance(address, str) else "localhost"
        await loop.create_connection(lambda: connection, sock=sock, ssl=context,
                                     server_hostname=host if context else None)
        hello = [encode("AUTH", *words)] if words else []
        if login.db:
            hello.append(encode("SELECT", login.db))
        try:
            for reply in connection.send(*hello):
                await reply
        except ErrorReply as e:
            raise refused(str(e)) from None
        if login.client_name:  # optional: the user may lack the right
            connection.send(encode("CLIENT", "SETNAME", login.client_name))
    except BaseException as e:
        connection.close(str(e))
        sock.close()
        raise
    return connection


async def _connected(loop: asyncio.AbstractEventLoop, address: Address | str) -> socket.socket:
    if isinstance(address, str):
        places = [(socket.AF_UNIX, address)]
    else:
        places = [(family, to) for family, _, _, _, to in await _resolve(loop, address)]
    trouble: OSError = OSError("no address")
    for family, to in places:
        sock = socket.socket(family, socket.SOCK_STREAM)
        _sockets.add(sock)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, to)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as e:
            sock.close()
            trouble = e
        except BaseException:
            sock.close()
            raise
    raise trouble


async def _resolve(loop: asyncio.AbstractEventLoop, address: Address) -> Any:
    try:  # without a thread, if there is nothing to look up
        return socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return await in_thread(lambda: socket.getaddrinfo(*address, type=socket.SOCK_STREAM))


async def in_thread(call: Callable[[], Any]) -> Any:
    """Runs a blocking call in a daemon thread. Threads of the loop's executor hold up the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as e:
            error = e
        try:
            loop.call_soon_threadsafe(tell, result, error)
        except RuntimeError:  # the loop has gone
            pass

    threading.Thread(target=run, name="redislock helper", daemon=True).start()
    return await done


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _after_fork() -> None:
    # The child has copies of its parent's sockets. An open copy hides the death of the parent from the
    # server, which then tells a dead waiter.
    for sock in list(_sockets):
        sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
