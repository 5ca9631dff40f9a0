"""Connect to Redis, and ask what the server is before the first key goes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import redis
from redis.sentinel import Sentinel

from etl.cache.clients import Client, cluster_of, server_clients
from etl.cache.errors import problem, to_sync_error
from etl.cache.exchange import ping, try_command
from etl.cache.topology import SLOTS
from etl.cache.writer import retry_redis
from etl.settings import Settings

# How to see that keys are there, the best first; a dry run needs their values as well.
_READS = ("MGET", "GET", "EXISTS")

# A key that ~reco:* allows and nobody has, for no id is empty.
NOBODY = "reco:"


def connect(settings: Settings) -> Client:
    """Return a client of the first address in REDIS_HOST that answers a PING, or of the master.

    A server that is away is waited for.

    Raises:
        SyncError: no server can be reached, or none lets us in.
    """
    clients = server_clients(settings)
    with explained(settings):
        if sentinels := clients[0].sentinels:
            _require_watched(sentinels, settings)
        return retry_redis(partial(_first_that_answers, clients), settings.retry_seconds)


def require_writable(client: Client, settings: Settings) -> None:
    """Ask the server what it is and how keys can be read back; in a cluster, who has which slot.

    Raises:
        SyncError: it is a Sentinel, a replica or a cluster in which slots have no node, or lets
            us read no key.
    """
    with explained(settings), _probe(client) as probe:
        told = retry_redis(partial(_hello, probe, client.sentinels), settings.retry_seconds)
        client.told = told
        client.mode = told.get(b"mode", b"").decode(errors="replace")
        if client.mode == "sentinel":
            raise problem(
                settings,
                "this is a Sentinel, which keeps no keys; set REDIS_SENTINEL to the name of a"
                " master that it watches",
            )
        if client.mode == "cluster":
            _enter_cluster(client, settings)
        elif told.get(b"role") in (b"replica", b"slave"):
            raise problem(settings, "this is a replica; set REDIS_HOST to the primary")
        client.reads = _readable(probe, settings)
        if settings.redis_db:
            retry_redis(client.ping, settings.retry_seconds)


def _enter_cluster(client: Client, settings: Settings) -> None:
    """Let keys go to the node that has their slot."""
    if settings.redis_db:
        raise problem(settings, "this is a cluster, which has database 0 alone; set REDIS_DB=0")
    if settings.redis_socket:
        raise problem(
            settings,
            "this is a node of a cluster, and the others have no socket here; set REDIS_HOST to"
            " the host names of some nodes",
        )
    cluster = retry_redis(partial(cluster_of, settings), settings.retry_seconds)
    client.topology = cluster
    if cluster.covered < SLOTS:
        raise problem(
            settings,
            f"this is a cluster in which {cluster.covered:,} of {SLOTS:,} slots have a node, and"
            " keys of the others have nowhere to go; look at CLUSTER INFO, give each slot a node",
        )


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Raise an error of the client or the server as a SyncError."""
    try:
        yield
    except (redis.RedisError, UnicodeError) as error:  # the latter: no name for a host
        login = "check REDIS_USERNAME, REDIS_PASSWORD and REDIS_DB"
        raise to_sync_error(error, settings, otherwise=login) from error


@contextmanager
def _probe(client: Client) -> Iterator[Any]:
    """A connection of its own and without SELECT, which a Sentinel does not know."""
    pool = client.connection_pool
    connection = pool.connection_class(**{**pool.connection_kwargs, "db": 0})
    try:
        yield connection
    finally:
        connection.disconnect()


def _first_that_answers(clients: Sequence[Client]) -> Client:
    """Return the first client whose server answers; of errors, the last one's is raised."""
    *others, last = clients
    for client in others:
        try:
            return _answering(client)
        except (redis.ConnectionError, redis.TimeoutError, UnicodeError):
            continue
    return _answering(last)


def _answering(client: Client) -> Client:
    with _probe(client) as probe:
        ping(probe)
    return client


def _require_watched(sentinels: Sentinel, settings: Settings) -> None:
    """See that Sentinels answer and watch a master of the name in REDIS_SENTINEL."""
    work = partial(_is_watched, sentinels, settings.redis_sentinel)
    try:
        is_watched = retry_redis(work, settings.retry_seconds)
    except redis.AuthenticationError as error:
        hint = "check REDIS_SENTINEL_PASSWORD, and that REDIS_HOST names Sentinels"
        raise problem(settings, f"the Sentinels refuse the login; {hint}") from error
    except redis.ResponseError as error:
        hint = (
            "as REDIS_SENTINEL is set, REDIS_HOST and REDIS_PORT must be those of Sentinels,"
            " where the user needs +sentinel|masters +sentinel|slaves"
        )
        raise problem(
            settings, f"SENTINEL MASTERS or SENTINEL SLAVES is refused: {error}; {hint}"
        ) from error
    if not is_watched:
        hint = "set REDIS_SENTINEL to one of those in SENTINEL MASTERS"
        raise problem(settings, f"the Sentinels watch no master of that name; {hint}")


def _is_watched(sentinel: Sentinel, name: str | None) -> bool:
    """Return whether one of the Sentinels that answer watches a master of this name.

    Raises:
        RedisError: none answers; the last one's error.
    """
    watched: list[bool] = []
    lost: Exception = redis.ConnectionError("no Sentinel answers")
    for one in sentinel.sentinels:
        try:
            watched.append(name in one.sentinel_masters())
            if watched[-1]:
                one.sentinel_slaves(name)  # to see whether we may, for later
        except (redis.ConnectionError, redis.TimeoutError) as error:
            lost = error
    if not watched:
        raise lost
    return any(watched)


def _hello(connection: Any, sentinel: Sentinel | None) -> dict[Any, Any]:
    """Return what HELLO tells; nothing of a server or proxy that does not know it."""
    reply = try_command(connection, "HELLO", "2")
    pairs = reply if isinstance(reply, list) else []
    told = {
        name: value
        for name, value in zip(pairs[::2], pairs[1::2], strict=False)
        if isinstance(name, bytes) and isinstance(value, bytes)
    }
    if sentinel and told.get(b"role") in (b"replica", b"slave"):
        connection.disconnect()
        raise redis.ConnectionError("the Sentinels name a replica, a failover is not over")
    return told


def _readable(connection: Any, settings: Settings) -> str:
    """Return a command that the server knows and the user may use to find keys."""
    refusals = []
    for command in _READS:
        known = partial(try_command, connection, command, NOBODY)
        refusal = retry_redis(known, settings.retry_seconds)
        if not _is_refused(refusal):
            return command
        refusals.append(refusal)
    why = "written keys are read back, and MGET, GET and EXISTS are refused"
    denied = [one for one in refusals if isinstance(one, redis.exceptions.NoPermissionError)]
    if denied:
        denied[0].args = (why,)
    elif not isinstance(refusals[0], redis.ResponseError):
        raise problem(settings, f"{why}: it hangs up; let what is in between allow MGET")
    raise to_sync_error((denied or refusals)[0], settings)


def _is_refused(reply: Any) -> bool:
    """Return whether the command is; other complaints, to write a key tells better."""
    denied = (redis.exceptions.NoPermissionError, redis.ConnectionError, redis.TimeoutError)
    return isinstance(reply, denied) or str(reply) == "unknown command"
