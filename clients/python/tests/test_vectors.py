"""The shared vectors, replayed with the real engine: its loop's time is virtual, its server a script."""

from __future__ import annotations

import asyncio
import json
import pathlib
import selectors

import pytest

from redislock import LockLost, NotAcquired, NotHeld, ServerError, Unavailable
from redislock import _protocol as protocol
from redislock._config import Config, Login
from redislock._engine import Engine
from redislock._errors import Fault, refused
from redislock._server import Server

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "vectors.json").read_text(encoding="utf-8"))
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
HORIZON = 3600.0  # s; so long a client without news is watched


class VirtualSelector(selectors.DefaultSelector):
    """Instead of waiting, the time is put forward."""

    loop: VirtualLoop

    def select(self, timeout=None):
        assert timeout is not None, "nothing would ever happen again"
        self.loop.virtual += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.virtual = 0.0
        selector = VirtualSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.virtual


class Script:
    """A server that answers as the vector says."""

    def __init__(self, note):
        self.note = note
        self.pending = []

    async def _ask(self, function, *args):
        loop = asyncio.get_running_loop()
        sent, answer = loop.time() * 1000, loop.create_future()
        self.note({"call": function, "args": ["TOKEN", *[a for a in args if a is not None]]})
        call = (function, answer)
        self.pending.append(call)
        try:
            step = await answer
        finally:
            if call in self.pending:
                self.pending.remove(call)
        if step["event"] == "error":
            fault = Unavailable if step.get("passes") else ServerError
            raise Fault(fault(step["error"]), passes=step.get("passes", False), answered=step.get("answered", False))
        return step["reply"], sent

    def answer(self, step):
        for call in self.pending:
            if call[0] == step["to"]:
                self.pending.remove(call)
                call[1].set_result(step)
                return

    async def acquire(self, r, prefix, wait, *, load=True, sending=None):
        lease = 0 if r.first_lease == protocol.NEVER else r.first_lease
        reply, sent = await self._ask("acquire", lease, wait, r.holders)
        return protocol.parse_acquired(reply, r.first_lease), sent, b"signals"

    async def extend(self, keys, token, length, *, patience):
        reply, sent = await self._ask("extend", 0 if length == protocol.NEVER else length)
        return reply[0] == 1, sent

    async def release(self, keys, token, *, patience=2.0):
        return (await self._ask("release"))[0][0]


class ScriptedEngine(Engine):
    def _listen(self, w, signals):
        pass  # the vector delivers


def kind(error):
    if error is None:
        return "ok"
    return next((name for cls, name in ((NotAcquired, "busy"), (Unavailable, "unavailable"), (NotHeld, "not_held"))
                 if isinstance(error, cls)), "error")


def cause(lost):
    return "max_hold" if "maximum hold" in str(lost) else "taken" if "taken away" in str(lost) else "lease"


class Play:
    """One life, up to the last step and then without news. `log` has what was done, and when."""

    def __init__(self, request, steps):
        self.log = []
        self.state = None  # after the last step: (deadline, notice) if the lock is held
        self.loop = VirtualLoop()
        try:
            self.loop.run_until_complete(self._live(request, steps))
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    def note(self, action):
        self.log.append((round(self.loop.time() * 1000, 6), action))

    async def _settle(self):
        for _ in range(30):
            await asyncio.sleep(0)

    async def _live(self, request, steps):
        script = Script(self.note)
        engine = ScriptedEngine(script, self.loop)
        waiting = hold = None
        request = protocol.Request(
            protocol.keys_of("lock", "orders"), b"TOKEN", own_token=request.get("own_token", False),
            lease=request["lease"] or protocol.NEVER, place=request["wait_ttl"], renew=not request.get("no_renewal"),
            limit=request.get("limit", protocol.NEVER), max_hold=request.get("max_hold", protocol.NEVER),
            min_hold=request.get("min_hold", 0),
            holders=None if request.get("holders") == 1 else request.get("holders"))

        async def noted(name, call):
            try:
                await call
                self.note({name: "ok"})
            except Exception as e:
                self.note({name: kind(e)})

        def over(future):
            nonlocal hold
            error = future.exception()
            if error is not None:
                self.note({"failed": "lost" if isinstance(error, LockLost) else kind(error)})
                return
            hold = future.result()
            self.note({"held": {"fence": hold.fence, **self._lease(hold)}})
            hold.told(lambda: self.note({"lost": cause(hold.cause)}))

        for step in steps:
            await asyncio.sleep(max(0.0, step["at"] / 1000 - self.loop.time()))
            await self._settle()
            event = step["event"]
            if event == "acquire":
                waiting = engine.obtain(request)
                waiting.result.add_done_callback(over)
            elif event == "cancel":
                engine.spawn(engine._abandon(waiting))
            elif event == "extend":
                engine.spawn(noted("extended", hold.extend(step["lease"])))
            elif event == "release":
                engine.spawn(noted("released", hold.release()))
            elif event in ("reply", "error"):
                script.answer(step)
            elif event == "signal":
                engine._deliver([protocol.parse_signal(step["signal"].encode())])
            else:
                assert event == "time", event
            await self._settle()
        self.state = self._lease(hold) if hold is not None and hold.stage == "held" else None
        await asyncio.sleep(HORIZON)

    @staticmethod
    def _lease(hold):
        term = hold.lease.term
        if term.length == protocol.NEVER:
            return {"deadline": None, "notice": None}
        return {"deadline": term.deadline, "notice": term.notice}


def no_later(mine, theirs):
    """A deadline or a notice may be sooner than that of the Go client."""
    return theirs is None or mine is not None and mine <= theirs + 1e-6


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_vector(vector):
    steps, failed = vector["steps"], None
    for i, step in enumerate(steps):
        play = Play(vector["request"], steps[:i + 1])
        last = steps[i - 1]["at"] if i else -1
        now = [action for at, action in play.log if last < at - 1e-6 and at <= step["at"] + 1e-6 or at == last == -1]
        later = [(at, action) for at, action in play.log if at > step["at"] + 1e-6]
        calls = [action for action in now if "call" in action]
        wanted = [action for action in step["then"] if "call" in action]
        if "or" in step and calls == [a for a in step["or"] if "call" in a] and calls != wanted:
            return  # what follows does not apply
        assert calls == wanted, step
        failed = next((a for _, a in play.log if "failed" in a), failed)
        for action in step["then"]:
            if "held" in action:
                mine = next(a["held"] for a in now if "held" in a)
                assert mine["fence"] == action["held"]["fence"], step
                assert no_later(mine["deadline"], action["held"]["deadline"]), step
                assert no_later(mine["notice"], action["held"]["notice"]), step
            elif "lease" in action:
                assert no_later(play.state["deadline"], action["lease"]["deadline"]), step
                assert no_later(play.state["notice"], action["lease"]["notice"]), step
            elif "failed" in action:
                assert [a for at, a in play.log if "failed" in a and at <= step["at"] + 1e-6] == [action], step
            elif action == {"released": "error"} and step["event"] == "time":
                assert {"released": "unavailable"} in now, step  # nobody answered, and that is what it says
            elif "call" not in action:
                assert action in now, step
        for name in ("held", "lost", "extended", "released"):
            assert [a for a in now if name in a] == [] or any(name in a for a in step["then"]), (step, now)
        until = step["until"]
        # A caller may be told at another time that its wait has failed.
        latest = until[1] if isinstance(until, list) else until
        first = next((at for at, action in later if "failed" not in action or (latest and at <= latest)), None)
        if until is None:
            assert first is None, (step, later[:1])
        elif isinstance(until, list):
            assert until[0] - 1e-6 <= first <= until[1] + 1e-6, step
        else:
            assert first is not None and abs(first - until) < 1e-3, (step, first)


def test_the_vectors_reach_what_a_client_can_meet():
    actions = [action for vector in VECTORS for step in vector["steps"] for action in step["then"]]
    assert {name for action in actions for name in action} >= {"call", "held", "lease", "lost", "failed", "extended",
                                                               "released"}
    assert len(VECTORS) > 50


@pytest.mark.parametrize("case", TEXTS["keys"], ids=lambda c: c["name"])
def test_keys(case):
    if case.get("error"):
        with pytest.raises(ValueError, match="name"):
            protocol.keys_of(case["prefix"], case["name"])
        return
    keys = protocol.keys_of(case["prefix"], case["name"])
    assert [k.decode() for k in keys[1:4]] == [case["lock"], case["queue"], case["state"]]
    assert protocol.keys_from(case["prefix"], keys.lock)[1:] == keys[1:]
    server = Server(Config(Login()))
    server.id = b"CLIENT"
    assert server.signal_list(case["prefix"], keys).decode() == case["all_signals"]
    server.per_lock = True
    assert server.signal_list(case["prefix"], keys).decode() == case["signals"]


@pytest.mark.parametrize("case", TEXTS["prefixes"], ids=lambda c: c["prefix"])
def test_prefixes(case):
    if case["ok"]:
        assert protocol.check_prefix(case["prefix"]) == case["prefix"]
    else:
        with pytest.raises(ValueError, match="prefix"):
            protocol.check_prefix(case["prefix"])


@pytest.mark.parametrize("case", TEXTS["orders"], ids=lambda c: " ".join(c["names"]))
def test_orders(case):
    assert [keys.lock.decode() for keys in protocol.order("lock", case["names"])] == case["locks"]


@pytest.mark.parametrize("case", TEXTS["signals"], ids=lambda c: repr(c["text"]))
def test_signals(case):
    signal = protocol.parse_signal(case["text"].encode())
    if case.get("error"):
        assert signal is None
    else:
        assert signal == (case["fence"], case["deadline"], case["token"].encode())


@pytest.mark.parametrize("case", TEXTS["errors"], ids=lambda c: c["reply"])
def test_errors(case):
    fault = refused(case["reply"])
    assert fault.answered
    assert fault.passes == case["passes"]
    assert isinstance(fault.error, Unavailable if case["passes"] else ServerError)


@pytest.mark.parametrize("case", TEXTS["owners"], ids=lambda c: c["owner"])
def test_owners(case):
    token = protocol.new_token(case["owner"]).decode()
    assert protocol.label(case["owner"]).decode() == case["label"]
    assert token.startswith(case["label"] + ":" if case["label"] else "")
    assert len(token.rpartition(":")[2]) == 22  # 128 bits
