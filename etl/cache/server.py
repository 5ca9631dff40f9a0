"""Connect to Redis, and ask what the server is before the first key goes out."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from etl.cache.errors import explained, problem
from etl.cache.resp import Reader, ask, ping, try_command
from etl.cache.writer import persist
from etl.errors import SyncError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etl.settings import Settings

_SLOTS = 16_384

_FILES = {
    "redis_ca_file": "ssl_ca_certs",
    "redis_cert_file": "ssl_certfile",
    "redis_key_file": "ssl_keyfile",
}


# How to see that keys are there, the best first; a dry run needs their values as well.
_READS = ("MGET", "GET", "EXISTS")

# A key that ~reco:* allows and nobody has, for no id is empty.
_NOBODY = "reco:"


class Client(redis.Redis):
    """A server that answers.

    `mode` is what it says of itself: standalone, cluster, ""; `reads` a command that finds keys.
    """

    mode = ""
    reads = _READS[0]


def connect(settings: Settings) -> Client:
    """Open a connection and ask for a PING; a server that is away is waited for.

    Raises:
        SyncError: the server cannot be reached or does not let us in.
    """
    client = Client(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        username=settings.redis_username,
        password=settings.redis_password,
        ssl=settings.redis_tls,
        **_certificates(settings),
        protocol=2,  # RESP3 begins with HELLO, which proxies and old servers do not know
        socket_timeout=5,
        socket_connect_timeout=10,
        driver_info=None,  # or each connection says its version, which takes another right
        retry=Retry(NoBackoff(), 0),  # `persist` knows better what is worth another attempt
    )
    client.connection_pool.connection_kwargs["parser_class"] = Reader
    with _probe(client, settings) as probe:
        persist(partial(ping, probe), settings.retry_seconds)
    return client


def require_writable(client: Client, settings: Settings) -> None:
    """Ask the server what it is and how keys can be read back; set `client.mode` and `.reads`.

    Raises:
        SyncError: it is a Sentinel, a replica or one of several nodes of a cluster, or lets us
            read no key.
    """
    with _probe(client, settings) as probe:
        told = persist(partial(_told, probe), settings.retry_seconds)
        if told.get(b"mode") == b"sentinel":
            raise problem(
                settings,
                "this is a Sentinel, which keeps no keys; set REDIS_HOST and REDIS_PORT to those"
                " of the primary that it watches",
            )
        if told.get(b"mode") == b"cluster":
            _require_one_node(probe, settings)
        if told.get(b"role") in (b"replica", b"slave"):
            raise problem(settings, "this is a replica; set REDIS_HOST to the primary")
        client.mode = told.get(b"mode", b"").decode(errors="replace")
        client.reads = _readable(probe, settings)
        if settings.redis_db:
            persist(client.ping, settings.retry_seconds)


@contextmanager
def _probe(client: Client, settings: Settings) -> Iterator[Any]:
    """A connection of its own and without SELECT, which a Sentinel does not know."""
    pool = client.connection_pool
    connection = pool.connection_class(**{**pool.connection_kwargs, "db": 0})
    try:
        yield connection
    except (redis.RedisError, UnicodeError) as error:  # the latter: no name for a host
        login = "check REDIS_USERNAME, REDIS_PASSWORD and REDIS_DB"
        raise explained(error, settings, otherwise=login) from error
    finally:
        connection.disconnect()


def _certificates(settings: Settings) -> dict[str, Any]:
    """The client's arguments for TLS; a file is opened here, for OpenSSL does not name it."""
    given = {name: path for name in _FILES if (path := getattr(settings, name))}
    for name, path in given.items():
        if not settings.redis_tls:
            raise UsageError(f"settings: {name.upper()} is set but REDIS_TLS is not true")
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise SyncError(f"{name.upper()}: {path}: {error.strerror}; correct it") from error
    return {_FILES[name]: path for name, path in given.items()}


def _told(connection: Any) -> dict[Any, Any]:
    """What HELLO tells; nothing of a server or proxy that does not know it."""
    told = try_command(connection, "HELLO", "2")
    pairs = told if isinstance(told, list) else []
    return {
        name: value
        for name, value in zip(pairs[::2], pairs[1::2], strict=False)
        if isinstance(name, bytes) and isinstance(value, bytes)
    }


def _require_one_node(connection: Any, settings: Settings) -> None:
    (info,) = ask(connection, ("CLUSTER", "INFO"))
    if not isinstance(info, bytes):
        raise problem(
            settings,
            "this is a node of a cluster and does not tell this user of how many; allow"
            " +cluster|info, or set REDIS_HOST to a single server",
        )
    nodes, slots = (_figure(info, name) for name in ("cluster_size", "cluster_slots_assigned"))
    if (nodes, slots) != (1, _SLOTS):
        raise problem(
            settings,
            f"this is a node of a cluster of {nodes:,} with {slots:,} of {_SLOTS:,} slots,"
            " and only one with all of them can be written to; set REDIS_HOST to a single server",
        )


def _readable(connection: Any, settings: Settings) -> str:
    """A command that the server knows and the user may use to find keys."""
    refusals = []
    for command in _READS:
        known = partial(try_command, connection, command, _NOBODY)
        refusal = persist(known, settings.retry_seconds)
        if not _refused(refusal):
            return command
        refusals.append(refusal)
    why = "written keys are read back, and MGET, GET and EXISTS are refused"
    denied = [one for one in refusals if isinstance(one, redis.exceptions.NoPermissionError)]
    if denied:
        denied[0].args = (why,)
    elif not isinstance(refusals[0], redis.ResponseError):
        raise problem(settings, f"{why}: it hangs up; let what is in between allow MGET")
    raise explained((denied or refusals)[0], settings)


def _refused(reply: Any) -> bool:
    """Whether the command is; what else a server complains of, to write a key tells better."""
    denied = (redis.exceptions.NoPermissionError, redis.ConnectionError, redis.TimeoutError)
    return isinstance(reply, denied) or str(reply) == "unknown command"


def _figure(info: bytes, name: str) -> int:
    found = re.search(rb"^%b:(\d{1,9})\r?$" % name.encode(), info, re.MULTILINE)
    return int(found[1]) if found else 0
