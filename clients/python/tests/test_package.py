"""What is shipped, and what is written about it."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import redis
from servers import SOON

import redislock
from redislock import _protocol as protocol
from redislock._server import source, version

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
README = (HERE.parent / "README.md").read_text(encoding="utf-8")


def test_the_library_is_that_of_the_repository():
    text = (ROOT / "lua" / "lock.lua").read_text(encoding="utf-8")
    assert source() == text
    assert f"local VERSION = '{version()}'" in text


def test_the_library_is_printed_for_the_one_who_loads_it():
    run = subprocess.run([sys.executable, "-m", "redislock"], cwd=HERE.parent / "src", capture_output=True, text=True,
                         check=True, timeout=SOON)
    assert run.stdout == source()


def test_the_limits_are_those_of_the_library():
    text = source()
    for name, value in (("TOKEN_MAX", protocol.MAX_TOKEN), ("CLAIM_MS", int(protocol.HANDED))):
        assert re.search(rf"^local {name} = {value}\b", text, re.MULTILINE), name
    for name, value in (("LEASE_MS", protocol.MAX_LEASE), ("HOLDERS", protocol.MAX_HOLDERS),
                        ("WAIT_MS", int(protocol.MAX_PLACE))):
        assert re.search(rf"^  {name} = {value},", text, re.MULTILINE), name


def test_wheel_and_sdist(tmp_path):
    """Built without the network. The library is a file in both, not a link."""
    copy = tmp_path / "package"
    subprocess.run(["cp", "-r", HERE.parent, copy], check=True)
    subprocess.run(["cp", "-r", ROOT / "lua", tmp_path], check=True)
    link = copy / "src" / "redislock" / "lock.lua"
    link.unlink()
    link.symlink_to(ROOT / "lua" / "lock.lua")
    code = ("import setuptools.build_meta as b; "
            "print(b.build_sdist('out')); print(b.build_wheel('out'))")
    run = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=2 * SOON,
                         check=False)
    assert run.returncode == 0, run.stderr
    [sdist], [wheel] = (list((copy / "out").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        assert z.read("redislock/lock.lua").decode() == source()
        assert "redislock/py.typed" in names
        assert not [name for name in names if "test" in name]
        [metadata] = [name for name in names if name.endswith("METADATA")]
        assert f"Version: {redislock.__version__}\n" in z.read(metadata).decode()
    with tarfile.open(sdist) as t:
        [member] = [m for m in t.getmembers() if m.name.endswith("/lock.lua")]
        assert member.isfile()
        assert t.extractfile(member).read().decode() == source()


def blocks():
    return re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", [b for b in blocks() if "fastapi" not in b])
def test_the_code_of_the_readme_runs(shared_server, block, monkeypatch, capsys):
    port = shared_server.port
    for cls in (redis.Redis, redis.asyncio.Redis):
        class Local(cls):
            def __init__(self):
                super().__init__(port=port)
        monkeypatch.setattr(sys.modules[cls.__module__.rpartition(".")[0]], "Redis", Local)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_the_fastapi_example(shared_server, monkeypatch):
    import asyncio
    import types

    class HTTPException(Exception):
        pass

    class FastAPI:
        def post(self, path):
            return lambda function: function

    monkeypatch.setitem(sys.modules, "fastapi", types.SimpleNamespace(FastAPI=FastAPI, HTTPException=HTTPException))
    [block] = [b for b in blocks() if "fastapi" in b]

    async def answer(port):
        names = {}
        exec(compile(block.replace("Redis()", f"Redis(port={port})"), "README.md", "exec"), names)
        return await names["pay"]("7")

    assert asyncio.run(answer(shared_server.port))["fence"] > 0
    with redislock.Lock(shared_server.client(), "order:7"), pytest.raises(HTTPException) as raised:
        asyncio.run(answer(shared_server.port))
    assert raised.value.args[0] == 409
    with pytest.raises(HTTPException) as raised:
        asyncio.run(answer(1))
    assert raised.value.args[0] == 503


def test_the_readme_names_each_option_and_error():
    import inspect

    options = [p.name for p in inspect.signature(redislock.Lock).parameters.values() if p.kind is p.KEYWORD_ONLY]
    documented = re.findall(r"^\| `(\w+)` \| ", README, re.MULTILINE)
    assert set(options) <= set(documented)
    errors = [n for n in redislock.__all__ if isinstance(getattr(redislock, n), type)
              and issubclass(getattr(redislock, n), redislock.LockError) and n != "LockError"]
    assert set(errors) <= set(documented)
    from redislock._many import Options
    assert set(Options.__annotations__) == set(options)


def test_what_is_exported_is_there():
    assert all(hasattr(redislock, name) for name in redislock.__all__)
