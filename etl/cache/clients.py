"""Clients of redis-py, set up alike for a server, the nodes of a cluster and Sentinels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, InvalidResponse
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from etl.cache.resp import Reader
from etl.cache.topology import SLOTS, Cluster, SingleServer, check_address
from etl.errors import SyncError, UsageError
from etl.settings import Settings

_FILES = {
    "redis_ca_file": "ssl_ca_certs",
    "redis_cert_file": "ssl_certfile",
    "redis_key_file": "ssl_keyfile",
}


class Client(redis.Redis):
    """A server that answers, and the node or nodes that keys go to.

    `told` is what the server says of itself, nothing where it does not know HELLO; of it `mode`:
    standalone, cluster, or "". `reads` is a command that finds keys.
    """

    mode = ""
    told: Mapping[Any, Any] = MappingProxyType({})
    reads = "MGET"
    topology: SingleServer | Cluster

    def close(self) -> None:
        """Close the connections to all nodes and Sentinels."""
        super().close()
        if hasattr(self, "topology"):
            self.topology.close()
            if self.sentinels:
                self.sentinels.close()

    @property
    def sentinels(self) -> Sentinel | None:
        """redis-py's client of the Sentinels that watch this server, if there are any."""
        pool = self.connection_pool
        return pool.sentinel_manager if isinstance(pool, SentinelConnectionPool) else None


class _CheckedClient(redis.Redis):
    """Checks what redis-py parses by itself: the slots of a cluster, and what Sentinels say."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            execute: Any = super().execute_command
            reply = execute(*args, **options)
            if args[0] == "CLUSTER SLOTS":
                _check_slots(reply)
            if args[0] == "SENTINEL MASTERS":
                for state in reply.values():
                    check_address(state["ip"], state["port"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InvalidResponse(f"{args[0]} was not answered with what it asks for") from error
        return reply


def server_clients(settings: Settings) -> list[Client]:
    """Return a client for each address in REDIS_HOST; with REDIS_SENTINEL one for the master."""
    if settings.redis_sentinel:
        return [_master_client(settings)]
    path = settings.redis_socket
    addresses = [
        {"host": host, "port": port} for host, port in ([] if path else settings.redis_addresses)
    ]
    clients = []
    for address in addresses or [{"unix_socket_path": path}]:
        client: Client = _make(Client, settings, **address)
        client.topology = SingleServer(client.connection_pool)
        clients.append(client)
    return clients


def cluster_of(settings: Settings) -> Cluster:
    """Ask the nodes in REDIS_HOST for the slots, and return the cluster.

    Raises:
        RedisError: no node tells.
    """
    return Cluster(
        settings.redis_addresses,
        lambda host, port: _make(_CheckedClient, settings, host=host, port=port),
    )


def _master_client(settings: Settings) -> Client:
    own = {"username": None, "password": settings.redis_sentinel_password, "db": 0}
    new: Any = Sentinel
    sentinel = new([])
    sentinel.sentinels = [
        _make(_CheckedClient, settings, **own, host=host, port=port)
        for host, port in settings.redis_addresses
    ]
    name = settings.redis_sentinel
    client: Client = sentinel.master_for(name, Client, **_arguments(settings), parser_class=Reader)
    client.topology = SingleServer(
        client.connection_pool, lambda: len(sentinel.discover_replicas(name))
    )
    return client


def _make(kind: type[redis.Redis], settings: Settings, **given: Any) -> Any:
    """Make a client whose connections read replies by `Reader`."""
    client: Any = kind(**{**_arguments(settings), **given})
    # Not an argument of the constructor, which would pass it to no connection.
    client.connection_pool.connection_kwargs["parser_class"] = Reader
    return client


def _arguments(settings: Settings) -> dict[str, Any]:
    """Return what every connection is made with."""
    return {
        "db": settings.redis_db,
        "username": settings.redis_username,
        "password": settings.redis_password,
        **_tls(settings),
        "protocol": 2,  # RESP3 begins with HELLO, which proxies and old servers do not know
        "socket_timeout": 5,
        "socket_connect_timeout": 10,
        "driver_info": None,  # or each connection says its version, which takes another right
        "retry": Retry(NoBackoff(), 0),  # `retry_redis` knows what is worth another attempt
    }


def _tls(settings: Settings) -> dict[str, Any]:
    """Return the arguments for TLS; files are opened here because OpenSSL does not name them."""
    given = {name: path for name in _FILES if (path := getattr(settings, name))}
    if settings.redis_tls and settings.redis_socket:
        raise UsageError(
            "settings: REDIS_TLS is true, but REDIS_HOST is a Unix socket, which has no TLS;"
            " set REDIS_TLS=false"
        )
    for name, path in given.items():
        if not settings.redis_tls:
            raise UsageError(f"settings: {name.upper()} is set but REDIS_TLS is not true")
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise SyncError(f"{name.upper()}: {path}: {error.strerror}; correct it") from error
    return {"ssl": settings.redis_tls} | {_FILES[name]: path for name, path in given.items()}


def _check_slots(reply: Any) -> None:
    """Raise an error where a range of slots or an address cannot be one, or there is none."""
    for first, last, *nodes in reply:
        if not 0 <= int(first) <= int(last) < SLOTS or not nodes:
            raise ValueError("no range of slots")
        for node in nodes:
            node[0] = node[0] or b""  # None: the address that was asked
            check_address(node[0].decode(), node[1])
    if not reply:  # which redis-py does not expect
        raise ClusterDownError("none of the slots has a node")
