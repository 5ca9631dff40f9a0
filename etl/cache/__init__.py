"""Redis: write batches of keys with a TTL, or look at what writing them would change."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from etl.cache.clients import Client
from etl.cache.errors import problem, to_sync_error
from etl.cache.exchange import ask
from etl.cache.lookup import Lookup
from etl.cache.server import connect, require_writable
from etl.cache.survey import POLICY, Memory, kind, memory, write_error
from etl.cache.topology import Batch
from etl.cache.writer import RedisWriter
from etl.plumbing import cancellation, log
from etl.plumbing.counted import counted
from etl.settings import Settings

__all__ = [
    "BATCH_KEYS",
    "SAMPLE_KEYS",
    "Batch",
    "Client",
    "Memory",
    "compare",
    "connect",
    "kind",
    "look_up",
    "memory",
    "read_back",
    "require_writable",
    "sampled",
    "to_sync_error",
    "write",
    "write_error",
]

# 100 kB on the wire: a server stays responsive, and a lost batch is cheap to send again.
BATCH_KEYS = 1_000

# Keys that are read back at the end: where one in a hundred is gone, the sample shows it.
SAMPLE_KEYS = 1_000


def write(
    client: Client, batches: Iterable[Batch], total: int, ttl: int, settings: Settings
) -> Iterator[int]:
    """Set every key with its TTL in seconds; yield now and then how many are confirmed.

    A server that is lost in between is waited for, or the one that takes its place; what was not
    confirmed is sent again.

    Raises:
        SyncError: some keys were not written; the message says how many were.
    """
    writer = RedisWriter(client.topology, client.mode, ttl, settings.retry_seconds)
    try:
        for written in writer.write_batches(batches):
            log.event("keys.sent", logging.DEBUG, rows=written, of=total)
            yield written
    except redis.RedisError as error:
        yield writer.written  # what was confirmed since the last time
        done = f"stopped with at least {writer.written:,}"
        raise to_sync_error(error, settings, done, total) from error
    finally:
        writer.close()
    if writer.failure:
        done = f"stopped with {writer.written:,}"
        raise to_sync_error(writer.failure, settings, done, total)
    if writer.doubt:
        log.warning("keys.unreplicated", reason=writer.doubt)
    log.event("cache.written", keys=writer.written, by=writer.command)


def compare(client: Client, batches: Iterable[Batch], settings: Settings) -> dict[str, int]:
    """Count the keys that `write` would add (inserted), change (updated) or only renew."""
    if client.reads == "EXISTS":
        raise problem(settings, "a dry run compares values, and MGET is refused; allow +mget")
    counts = {"inserted": 0, "updated": 0, "unchanged": 0}
    with _lookup(client, settings) as lookup:
        for batch in batches:
            present = lookup.values([key for key, _ in batch])
            for (_, value), old in zip(batch, present, strict=True):
                outcome = "inserted" if old is None else "unchanged" if old == value else "updated"
                counts[outcome] += 1
    return counts


def look_up(client: Client, key: str, settings: Settings) -> tuple[bytes | None, int | None]:
    """Return the value of a key, None where there is none, and how many seconds it has left.

    These are -1 where it never expires, and None where this user may not ask (PTTL).

    Raises:
        SyncError: the server cannot be asked, or shows no values to this user.
    """
    if client.reads == "EXISTS":
        raise problem(settings, "values are refused to this user; allow +mget")
    with _lookup(client, settings) as lookup:
        (value,) = lookup.values([key])
        (left,) = ask(lookup.connection_for(key), ("PTTL", key))
    return value, max(left // 1000, -1) if isinstance(left, int) else None


def sampled(batches: Iterable[Batch], total: int, most: int, keys: list[str]) -> Iterator[Batch]:
    """Yield the batches, and add to `keys` at most so many of their keys, spread over all."""
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
    missing = keys
    with _lookup(client, settings) as lookup:
        for pause in (0, 0.2, 1):  # a proxy may read from a replica that is a little behind
            cancellation.pause(pause)
            found = lookup.values(missing)
            missing = [key for key, value in zip(missing, found, strict=True) if value in (None, 0)]
            if not missing:
                return
        gone = f"gone are {len(missing):,} of a sample of {counted(len(keys), 'written key')}"
        fate = _fate(lookup.connection_for(missing[0]))
        raise problem(settings, f"{gone}: {fate}; raise maxmemory, or see who deletes them")


@contextmanager
def _lookup(client: Client, settings: Settings) -> Iterator[Lookup]:
    """Look up keys; what goes wrong is raised as a SyncError."""
    lookup = Lookup(client.topology, client.reads, settings.retry_seconds)
    try:
        yield lookup
    except redis.RedisError as error:
        raise to_sync_error(error, settings) from error
    finally:
        lookup.close()


def _fate(connection: Any) -> str:
    """Say where keys went; with the server's policy, if this user may ask for it."""
    try:
        (info,) = ask(connection, ("INFO", "memory"))
    except redis.RedisError:
        info = None
    found = POLICY.search(info) if isinstance(info, bytes) else None
    policy = f" (maxmemory_policy {found[1].decode()})" if found else ""
    return f"they were evicted{policy}, have expired or were deleted"
