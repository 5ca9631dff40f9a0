"""Redis: write batches of keys with a TTL, or look at what writing them would change."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import InvalidResponse

from etl.cache.errors import explained, problem
from etl.cache.resp import ask
from etl.cache.server import Client, connect, require_writable
from etl.cache.writer import Batch, Pipe, persist
from etl.plumbing import cancellation, log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from etl.settings import Settings

__all__ = [
    "Client",
    "compare",
    "connect",
    "explained",
    "read_back",
    "require_writable",
    "sampled",
    "write",
]

# Keys of one batch: some 100 kB on the wire, small enough that a server stays responsive
# and a lost batch is cheap to send again.
BATCH_KEYS = 1_000

# Keys that are read back when all are written: one in a hundred that is gone shows for certain.
SAMPLE_KEYS = 1_000

# The policies that there are, for what a server says instead may be anything.
_POLICY = re.compile(
    rb"^maxmemory_policy:(noeviction|(?:allkeys|volatile)-(?:lru|lfu|lrm|random|ttl))\r?$",
    re.MULTILINE,
)


def write(
    client: Client, batches: Iterable[Batch], total: int, ttl: int, settings: Settings
) -> Iterator[int]:
    """Set every key with its TTL in seconds; yield after each batch how many of all are.

    A server lost in between is waited for, and what it had not confirmed is sent again.

    Raises:
        SyncError: some keys were not written; the message says how many were.
    """
    pipe = Pipe(client, ttl, settings.retry_seconds)
    try:
        for written in pipe.settled(batches):
            log.event("keys.sent", logging.DEBUG, rows=written, of=total)
            yield written
    except redis.RedisError as error:
        done = f"stopped with at least {pipe.written:,}"
        raise explained(error, settings, done, total) from error
    finally:
        pipe.close()
    if pipe.failure:
        raise explained(pipe.failure, settings, f"stopped with {pipe.written:,}", total)
    log.event("cache.written", keys=pipe.written, by=pipe.command)


def compare(client: Client, batches: Iterable[Batch], settings: Settings) -> dict[str, int]:
    """Count the keys that `write` would add (inserted), change (updated) or only renew."""
    if client.reads == "EXISTS":
        raise problem(settings, "a dry run compares values, and MGET is refused; allow +mget")
    counts = {"inserted": 0, "updated": 0, "unchanged": 0}
    with _connection(client, settings) as connection:
        for batch in batches:
            names = [key for key, _ in batch]
            present = persist(partial(_found, connection, names, client), settings.retry_seconds)
            for (_, value), old in zip(batch, present, strict=True):
                outcome = "inserted" if old is None else "unchanged" if old == value else "updated"
                counts[outcome] += 1
    return counts


def sampled(batches: Iterable[Batch], total: int, most: int, keys: list[str]) -> Iterator[Batch]:
    """Hand the batches on, and add to `keys` at most so many of theirs, spread over all."""
    every, passed = max(-(-total // most), 1), 0
    for batch in batches:
        keys.extend(key for key, _ in batch[-passed % every :: every])
        passed += len(batch)
        yield batch


def read_back(client: Client, keys: list[str], settings: Settings) -> None:
    """See that keys which were written are still there; their values may be another writer's.

    Raises:
        SyncError: some are gone.
    """
    if not keys:
        return
    seconds, missing = settings.retry_seconds, keys
    with _connection(client, settings) as connection:
        for pause in (0, 0.2, 1):  # a proxy may read from a replica that is a little behind
            cancellation.pause(pause)
            found = persist(partial(_found, connection, missing, client), seconds)
            missing = [key for key, value in zip(missing, found, strict=True) if value in (None, 0)]
            if not missing:
                return
        gone = f"{len(missing):,} of a sample of {len(keys):,} written keys are gone"
        raise problem(
            settings, f"{gone}: {_fate(connection)}; raise maxmemory, or see who deletes them"
        )


@contextmanager
def _connection(client: Client, settings: Settings) -> Iterator[Any]:
    """A connection for some replies; what goes wrong with it is explained."""
    connection: Any = client.connection_pool.make_connection()
    try:
        yield connection
    except redis.RedisError as error:
        raise explained(error, settings) from error
    finally:
        connection.disconnect()


def _found(connection: Any, keys: list[str], client: Client) -> list[Any]:
    """The value of each key, None where there is none; of EXISTS 1 and 0."""
    # In a cluster the keys of one command must share a slot.
    at_once = client.reads == "MGET" and client.mode != "cluster"
    each = [(client.reads, key) for key in keys]
    found: list[Any] = []
    for reply in ask(connection, *([("MGET", *keys)] if at_once else each)):
        if isinstance(reply, redis.ResponseError):
            raise reply
        found += reply if isinstance(reply, list) else [reply]
    kind = int if client.reads == "EXISTS" else bytes | None
    if len(found) != len(keys) or not all(isinstance(one, kind) for one in found):
        raise InvalidResponse(f"{client.reads} was not answered with a value for each key")
    return found


def _fate(connection: Any) -> str:
    """Where keys go that are gone; with the server's policy, if this user may ask for it."""
    try:
        (info,) = ask(connection, ("INFO", "memory"))
    except redis.RedisError:
        info = None
    found = _POLICY.search(info) if isinstance(info, bytes) else None
    policy = f" (maxmemory_policy {found[1].decode()})" if found else ""
    return f"they were evicted{policy}, have expired or were deleted"
