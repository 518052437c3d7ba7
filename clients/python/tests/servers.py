"""Real servers for the tests, each with a folder of its own, and what breaks connections to them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import redis

SOON = 60  # seconds; generous, nothing is proved by being fast


def eventually(condition, what="it did not come true", within=SOON):
    end = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(0.005)
    return result


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A redis-server, or a Sentinel."""

    def __init__(self, *args, sentinel=None, tls=None):
        self.folder = tempfile.mkdtemp(prefix="redislock-py-")
        for _ in range(20):  # somebody else may take the port first
            self.port = free_port()
            listen = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
            words = [os.environ.get("REDIS_SERVER", "redis-server")]
            if sentinel is not None:
                config = os.path.join(self.folder, "sentinel.conf")
                with open(config, "w") as f:
                    f.write(sentinel)
                words += [config, "--sentinel"]
            else:
                words += ["--save", "", "--appendonly", "no", "--cluster-port", str(free_port())]
            words += [*listen, "--bind", "127.0.0.1", "--dir", self.folder, "--loglevel", "warning"]
            words += [*(tls or ()), *args]
            with open(os.path.join(self.folder, "log"), "ab") as log:
                self.process = subprocess.Popen(words, stdout=log, stderr=log)
            if self._answers(tls):
                return
            self.process.kill()
            self.process.wait(SOON)
        raise AssertionError("no server came up")

    def _answers(self, tls):
        end = time.monotonic() + SOON
        while time.monotonic() < end:
            if self.process.poll() is not None:
                return False
            try:
                if tls:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    return True
                with self.client() as client:
                    return client.ping()
            except redis.AuthenticationError:
                return True
            except (redis.RedisError, OSError):
                time.sleep(0.02)
        return False

    def client(self, **options):
        return redis.Redis(host="127.0.0.1", port=self.port, **{"socket_timeout": 5, **options})

    def stop(self):
        """As if the machine stood still. The kernel goes on to take connections."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.process.kill()
        self.process.wait(SOON)
        shutil.rmtree(self.folder, ignore_errors=True)


def start_cluster(count):
    servers = [Server("--cluster-enabled", "yes", "--cluster-node-timeout", "5000") for _ in range(count)]
    with servers[0].client() as first:
        for i, server in enumerate(servers):
            low, high = i * 16384 // count, (i + 1) * 16384 // count - 1
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
                bus = int(client.config_get("cluster-port")["cluster-port"])
            if i:
                first.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
    for server in servers:
        with server.client() as client:
            eventually(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")).replace(
                "'cluster_state': 'ok'", "cluster_state:ok"), "the cluster did not come up")
            eventually(lambda: len(client.execute_command("CLUSTER", "SLOTS")) == count)
    return servers


class Proxy:
    """Forwards connections to a server, until it is told otherwise."""

    def __init__(self, port):
        self.target = port
        self.swallow_up = self.swallow_down = False  # bytes vanish, and the connection stays open
        self.accepted = 0
        self._frozen = set()
        self._held = {}
        self._flush = threading.Event()
        self.seen = b""  # what clients sent
        self._links = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hole(self, on=True):
        self.swallow_up = self.swallow_down = on

    def freeze(self):
        """The present connections carry nothing any more, and stay open."""
        self._frozen.update(s for link in self._links for s in link)

    def hold(self):
        """What clients send on the present connections arrives only when it is flushed, also if they are closed."""
        self._held = {down: b"" for down, _ in self._links}

    def flush(self):
        self._flush.set()

    def _accept(self):
        while True:
            try:
                down, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                up = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                down.close()
                continue
            self._links.append((down, up))
            if self._closed:  # just now
                self.cut()
                return
            threading.Thread(target=self._copy, args=(down, up, "swallow_up"), daemon=True).start()
            threading.Thread(target=self._copy, args=(up, down, "swallow_down"), daemon=True).start()

    def _copy(self, source, to, swallow):
        try:
            while data := source.recv(65536):
                if swallow == "swallow_up":
                    self.seen += data
                if source in self._held:
                    self._held[source] += data
                elif not getattr(self, swallow) and source not in self._frozen:
                    to.sendall(data)
        except OSError:
            pass
        if source in self._held:
            self._flush.wait(SOON)
            to.sendall(self._held[source])
            to.shutdown(socket.SHUT_WR)
            return
        for s in (source, to):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        links, self._links = self._links, []
        for link in links:
            for s in link:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                s.close()

    def close(self):
        self._closed = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake who accepts
        except OSError:
            pass
        self._listener.close()
        self.cut()
