from __future__ import annotations

import asyncio
import os
import subprocess
import threading

import pytest
import redis
import redis.asyncio
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel
from servers import SOON, Server, eventually, free_port

from redislock import AsyncLock, Lock, LockLost, Locks, Unavailable, reset_all


@pytest.fixture
def clustered(cluster):
    client = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", cluster[0].port)], socket_timeout=5)
    yield client
    client.close()


def owner(cluster, name):
    slot = cluster[0].client().execute_command("CLUSTER", "KEYSLOT", "lock:{" + name + "}")
    return cluster[slot * len(cluster) // 16384]


def test_a_cluster(cluster, clustered, name, in_thread):
    nodes = set()
    for tag in "abc":  # each on another one of three primaries
        full = name + "-{" + tag + "}"
        node = owner(cluster, tag).client()
        nodes.add(owner(cluster, tag))
        with Lock(clustered, full) as holder:
            assert Lock(clustered, full).acquire(blocking=False) is False
            waiter = Lock(clustered, full)
            result = in_thread(waiter.acquire)
            eventually(lambda node=node, full=full: node.zcard("lock-queue:" + full) == 1)
            assert waiter._engine is holder._engine
        assert result()
        assert waiter.fence > holder.fence
        waiter.release()
    assert len(nodes) == 3


def test_a_cluster_hands_over_by_signal(cluster, clustered, name, in_thread):
    node = owner(cluster, name).client()
    with Lock(clustered, name):
        waiter = Lock(clustered, name, lease=60)
        result = in_thread(lambda: (waiter.acquire(), waiter._hold.lease.unconfirmed))
        eventually(lambda: node.info("clients")["blocked_clients"] == 1)
    assert result() == (True, True)
    waiter.release()
    eventually(lambda: node.info("clients")["blocked_clients"] == 0)


def test_several_names_over_slots_and_reset_all(cluster, clustered, name):
    names = [name + letter for letter in "abcdef"]
    locks = Locks(clustered, names)
    assert locks.acquire()
    assert reset_all(clustered) == 6
    with pytest.raises(LockLost):
        locks.release()


def test_the_library_is_loaded_on_each_primary(cluster, clustered):
    for server in cluster:
        server.client().function_flush()
    Lock.load(clustered)
    for server in cluster:
        assert server.client().fcall_ro("lock_version", 0) if hasattr(redis.Redis, "fcall_ro") else True
        assert b"lock" in str(server.client().execute_command("FUNCTION", "LIST")).encode()


async def test_a_cluster_for_asyncio(cluster, name):
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster[0].port)
    try:
        async with AsyncLock(client, name) as held:
            assert await AsyncLock(client, name).acquire(timeout=1) is False
            assert (await held.inspect()).held == 1
    finally:
        await (client.aclose() if hasattr(client, "aclose") else client.close())


def test_a_client_that_does_not_know_that_it_is_in_a_cluster(cluster, name, in_thread):
    node = owner(cluster, name)
    client = node.client()
    with Lock(client, name):
        waiter = Lock(client, name)
        result = in_thread(waiter.acquire)
        eventually(lambda: client.zcard("lock-queue:{" + name + "}") == 1)
    assert result()
    waiter.release()


class Move:
    """Moves the slot of a name to another node, in steps, and back at the end."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.source = owner(cluster, name)
        self.target = next(s for s in cluster if s is not self.source)
        self.a, self.b = self.source.client(), self.target.client()
        self.slot = self.a.execute_command("CLUSTER", "KEYSLOT", name)
        self.ids = [c.execute_command("CLUSTER", "MYID").decode() for c in (self.a, self.b)]

    def begin(self):
        self.b.execute_command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.ids[0])
        self.a.execute_command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.ids[1])

    def migrate(self):
        for key in self.a.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
            self.a.execute_command("MIGRATE", "127.0.0.1", self.target.port, key, 0, 5000)

    def end(self):
        for c in (self.b, self.a):
            c.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", self.ids[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for key in self.b.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
            self.b.delete(key)
        for c in (self.a, self.b, *(s.client() for s in self.cluster)):
            c.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", self.ids[0])


def test_a_slot_that_moves(cluster, clustered, name, in_thread):
    Lock.load(clustered)
    with Move(cluster, name) as move:
        holder, waiter = Lock(clustered, name), Lock(clustered, name)
        holder.acquire()
        result = in_thread(waiter.acquire)
        eventually(lambda: move.a.zcard("lock-queue:{" + name + "}") == 1)
        move.begin()
        move.migrate()
        move.end()
        holder.release()
        assert result()
        assert move.b.get("lock:{" + name + "}").decode() == waiter.token
        waiter.release()


def test_moved_and_ask_are_followed(cluster, clustered, name):
    Lock.load(clustered)
    with Move(cluster, name) as move, Lock(clustered, name, lease=60) as holder:
        waiting = holder._engine.obtain(Lock(clustered, name)._request(True, None))
        eventually(lambda: move.a.zcard("lock-queue:{" + name + "}") == 1)
        server = holder._engine.server

        def address():
            words = ["FCALL_RO", "lock_inspect", 3, *holder._keys[1:4]]
            reply = holder._engine.run(server.call(holder._keys, *words)).result(SOON)  # one call: nobody tries again
            assert reply[1].decode() == holder.token
            return server._slots[move.slot][1]

        move.begin()
        move.migrate()
        assert address() == move.source.port  # ASK
        move.end()
        assert address() == move.target.port  # MOVED
        holder._engine.abandon(waiting).result(SOON)


@pytest.fixture
def sentinel():
    primary = Server()
    replica = Server("--replicaof", "127.0.0.1", str(primary.port))
    sentinels = [Server(sentinel=f"sentinel monitor main 127.0.0.1 {primary.port} 2\n"
                                 "sentinel down-after-milliseconds main 1000\n"
                                 "sentinel failover-timeout main 3000\n") for _ in range(3)]
    try:
        for s in sentinels:
            with s.client() as client:
                eventually(lambda client=client: client.sentinel_master("main")["num-slaves"] == 1
                           and client.sentinel_master("main")["num-other-sentinels"] == 2)
        yield primary, replica, sentinels
    finally:
        for s in [*sentinels, replica, primary]:
            s.close()


def role_of(server):
    try:
        return server.client().role()[0]
    except redis.ConnectionError:  # a server that changes its role closes connections
        return None


def test_sentinel(sentinel, name, in_thread):
    primary, replica, sentinels = sentinel
    addresses = [("127.0.0.1", s.port) for s in sentinels]
    client = Sentinel([("127.0.0.1", free_port()), *addresses]).master_for("main")
    with pytest.raises(ValueError, match="master_for"):
        Lock(Sentinel(addresses).slave_for("main"), name)
    with pytest.raises(Unavailable, match="does not know a master"):
        Lock(Sentinel(addresses).master_for("other"), name).acquire(blocking=False)
    holder, waiter = Lock(client, name, lease=60), Lock(client, name)
    holder.acquire()
    result = in_thread(waiter.acquire)
    eventually(lambda: replica.client().zcard("lock-queue:{" + name + "}") == 1)
    sentinels[0].client().execute_command("SENTINEL", "FAILOVER", "main")
    for server, role in ((replica, b"master"), (primary, b"slave")):
        eventually(lambda server=server, role=role: role_of(server) == role)

    def released():
        try:
            holder.release()
        except Unavailable:
            return False
        return True

    eventually(released)
    assert result()
    eventually(lambda: replica.client().get("lock:{" + name + "}") == waiter.token.encode())
    waiter.release()


async def test_sentinel_for_asyncio(sentinel, name):
    from redis.asyncio.sentinel import Sentinel as AsyncSentinel

    client = AsyncSentinel([("127.0.0.1", sentinel[2][0].port)]).master_for("main")
    async with AsyncLock(client, name) as held:
        assert sentinel[0].client().get("lock:{" + name + "}").decode() == held.token


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                   check=True, capture_output=True, timeout=SOON)
    return str(key), str(cert)


@pytest.fixture
def tls(certificate):
    key, cert = certificate
    server = Server(tls=["--tls-key-file", key, "--tls-cert-file", cert, "--tls-ca-cert-file", cert,
                         "--tls-auth-clients", "no"])
    yield server
    server.close()


def test_tls(tls, certificate, name):
    _, cert = certificate
    options = {"port": tls.port, "ssl": True, "ssl_ca_certs": cert, "ssl_check_hostname": True}
    with Lock(redis.Redis(host="localhost", **options), name) as held:
        assert held.held
    with Lock(redis.asyncio.Redis(host="localhost", **options), name) as held:
        assert held.held
    url = f"rediss://localhost:{tls.port}?ssl_cert_reqs=none&ssl_check_hostname=false"
    with Lock(redis.Redis.from_url(url), name) as held:
        assert held.held
    for wrong in ({"host": "127.0.0.1", **options},  # the certificate is for another name
                  {"host": "localhost", "port": tls.port, "ssl": True}):  # and nobody here has signed it
        with pytest.raises(Unavailable, match="(?i)certificate"):
            Lock(redis.Redis(**wrong), name).acquire()  # it does not wait for that to pass
    with pytest.raises(ValueError, match="ssl_validate_ocsp"):
        Lock(redis.Redis(ssl_validate_ocsp=True, host="localhost", **options), name)


def test_passwords_databases_and_sockets(name):
    server = Server("--requirepass", "secret", "--unixsocket", "sock", "--unixsocketperm", "700")
    try:
        admin = server.client(password="secret")
        path = os.path.join(server.folder, "sock")
        admin.execute_command("ACL", "SETUSER", "me", "on", ">mine", "~*", "+@all")
        for client in (redis.Redis(port=server.port, password="secret", db=3),
                       redis.Redis(port=server.port, username="me", password="mine", db=3, client_name="me"),
                       redis.Redis.from_url(f"unix://{path}?password=secret&db=3"),
                       redis.Redis.from_url(f"redis://:secret@127.0.0.1:{server.port}/3")):
            with Lock(client, name) as held:
                with redis.Redis(port=server.port, password="secret", db=3) as third:
                    assert third.get("lock:{" + name + "}").decode() == held.token
                assert admin.exists("lock:{" + name + "}") == 0
        assert "me" in [c["name"] for c in admin.client_list()]
    finally:
        server.close()


if hasattr(redis, "CredentialProvider"):  # redis-py 4.3 has none
    def test_a_credential_provider(server, name):
        class Provider(redis.CredentialProvider):
            threads = set()

            def get_credentials(self):
                self.threads.add(threading.current_thread().name)
                return "me", "mine"

        server.client().execute_command("ACL", "SETUSER", "me", "on", ">mine", "~*", "+@all")
        with Lock(redis.Redis(port=server.port, credential_provider=Provider()), name) as held:
            assert held.held
        assert "redislock" not in Provider.threads  # it may block


def test_clients_with_the_same_address_share_an_engine(shared_server, client, name):
    other = redis.Redis(host="127.0.0.1", port=shared_server.port, socket_timeout=1, max_connections=1)
    assert Lock(client, name)._engine is Lock(other, name)._engine
    other = redis.Redis(host="127.0.0.1", port=shared_server.port, db=1)
    assert Lock(client, name)._engine is not Lock(other, name)._engine


def test_asyncio_is_not_disturbed(lock):
    """The engine's loop is its own."""
    async def main():
        with lock() as held:
            return asyncio.get_running_loop() is not held._engine.loop
    assert asyncio.run(main())
