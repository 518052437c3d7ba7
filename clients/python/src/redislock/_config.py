"""The address and login, read from the caller's redis-py client. Nothing else uses that client.

Locks open connections of their own. So they do not use up the caller's pool, and no retry of the client
stretches a time limit.
"""

from __future__ import annotations

import inspect
import ssl
from dataclasses import dataclass
from typing import Any, Callable

import redis
import redis.asyncio

Address = tuple[str, int]

_TLS = (redis.SSLConnection, redis.asyncio.SSLConnection)


@dataclass(frozen=True)
class Login:
    """How to log in to a server. Equal Logins share their connections."""

    username: str | None = None
    password: str | None = None
    credential_provider: Any = None
    db: int = 0
    client_name: str | None = None
    tls: tuple[tuple[str, Any], ...] | None = None  # None: no TLS

    def credentials(self) -> tuple[str, ...]:
        if self.credential_provider is not None:
            return tuple(str(word) for word in self.credential_provider.get_credentials())
        if self.password is None:
            return ()
        return (self.username, self.password) if self.username else (self.password,)

    def context(self) -> ssl.SSLContext | None:
        """The context that redis-py makes from the same options."""
        if self.tls is None:
            return None
        o = dict(self.tls)
        context = ssl.create_default_context()
        context.check_hostname = bool(o.get("ssl_check_hostname"))
        verify = o.get("ssl_cert_reqs")
        modes = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
        context.verify_mode = ssl.CERT_NONE if verify is None else modes.get(verify, verify)
        for flag in o.get("ssl_include_verify_flags") or ():
            context.verify_flags |= flag
        for flag in o.get("ssl_exclude_verify_flags") or ():
            context.verify_flags &= ~flag
        if o.get("ssl_certfile") or o.get("ssl_keyfile"):
            context.load_cert_chain(o["ssl_certfile"], o.get("ssl_keyfile"), o.get("ssl_password"))
        if o.get("ssl_ca_certs") or o.get("ssl_ca_path") or o.get("ssl_ca_data"):
            context.load_verify_locations(o.get("ssl_ca_certs"), o.get("ssl_ca_path"), o.get("ssl_ca_data"))
        if o.get("ssl_min_version") is not None:
            context.minimum_version = o["ssl_min_version"]
        if o.get("ssl_ciphers"):
            context.set_ciphers(o["ssl_ciphers"])
        return context


@dataclass(frozen=True)
class Config:
    """Equal Configs share an engine, whichever client they come from."""

    login: Login
    addresses: tuple[Address, ...] = ()
    path: str | None = None  # of a unix socket
    service: str | None = None  # Sentinel: the name of the master; addresses are those of the Sentinels
    sentinels: tuple[Login, ...] = ()  # how to talk to each of them
    cluster: bool = False
    remap: Callable[[Address], Address] | None = None


def config_of(client: Any) -> Config:
    """Reads a client of redis-py or redis.asyncio: Redis, RedisCluster, or the result of
    Sentinel.master_for."""
    manager = getattr(client, "nodes_manager", None)
    if manager is not None:
        nodes = list(manager.startup_nodes.values()) or list(client.get_nodes())
        kwargs = dict(getattr(client, "connection_kwargs", None) or getattr(manager, "connection_kwargs", None)
                      or client.get_connection_kwargs())
        kwargs.setdefault("connection_class", getattr(nodes[0], "connection_class", None))
        return Config(_login(kwargs, kwargs["connection_class"]), _addresses((n.host, n.port) for n in nodes),
                      cluster=True, remap=getattr(manager, "address_remap", None))
    pool = getattr(client, "connection_pool", None)
    if pool is None or not isinstance(getattr(pool, "connection_kwargs", None), dict):
        raise TypeError(f"client must be a client of redis-py, not {client!r}")
    kwargs = pool.connection_kwargs
    login = _login(kwargs, pool.connection_class)
    sentinels = getattr(pool, "sentinel_manager", None)
    if sentinels is not None:
        if not pool.is_master:
            raise ValueError("client must be of a master: Sentinel.master_for(...)")
        pools = [s.connection_pool for s in sentinels.sentinels]
        return Config(login, _addresses((p.connection_kwargs["host"], p.connection_kwargs["port"]) for p in pools),
                      service=pool.service_name,
                      sentinels=tuple(_login(p.connection_kwargs, p.connection_class) for p in pools))
    if kwargs.get("path"):
        return Config(login, path=kwargs["path"])
    return Config(login, ((kwargs.get("host", "localhost"), int(kwargs.get("port", 6379))),))


def _addresses(pairs: Any) -> tuple[Address, ...]:
    return tuple((str(host), int(port)) for host, port in pairs)


def _login(kwargs: dict[str, Any], connection_class: Any) -> Login:
    return Login(
        username=kwargs.get("username"),
        password=kwargs.get("password"),
        credential_provider=kwargs.get("credential_provider"),
        db=int(kwargs.get("db") or 0),
        client_name=kwargs.get("client_name"),
        tls=_tls(kwargs, connection_class),
    )


def _tls(kwargs: dict[str, Any], connection_class: Any) -> tuple[tuple[str, Any], ...] | None:
    is_class = isinstance(connection_class, type)
    if not kwargs.get("ssl") and not (is_class and issubclass(connection_class, _TLS)):
        return None
    for option in ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled"):
        if kwargs.get(option):
            raise ValueError(f"{option} is not supported: redislock opens connections of its own")
    # Missing options have the defaults of this redis-py. Newer versions are stricter.
    base = next((c for c in _TLS if is_class and issubclass(connection_class, c)), redis.SSLConnection)
    options = {name: p.default for name, p in inspect.signature(base.__init__).parameters.items()
               if name.startswith("ssl_")}
    options.update((name, value) for name, value in kwargs.items() if name.startswith("ssl_"))
    return tuple(sorted((name, tuple(value) if isinstance(value, list) else value)
                        for name, value in options.items()))
