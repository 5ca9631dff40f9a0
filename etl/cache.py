"""Redis: write batches of keys with a TTL, or look at what writing them would change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from etl import log
from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from etl.settings import Settings

Batch: TypeAlias = list[tuple[str, bytes]]

# Keys of one pipeline: some 100 kB on the wire, small enough that a server stays responsive
# and a lost batch is cheap to send again.
BATCH_KEYS = 1_000

_HINTS: dict[type[Exception], str] = {
    redis.AuthenticationError: "check REDIS_USERNAME and REDIS_PASSWORD",
    redis.exceptions.OutOfMemoryError: "raise maxmemory or let it evict, then run again",
    redis.exceptions.ReadOnlyError: "set REDIS_HOST to the primary",
    redis.exceptions.NoPermissionError: (
        "the user needs ~reco:* +ping +set +mget, and +select where REDIS_DB is not 0"
    ),
    redis.ConnectionError: "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?",
    redis.TimeoutError: "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?",
    UnicodeError: "check REDIS_HOST",
}


def connect(settings: Settings) -> redis.Redis:
    """Open a connection and ask for a PING.

    Raises:
        SyncError: the server cannot be reached or does not let us in.
    """
    client = redis.Redis(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        username=settings.redis_username,
        password=settings.redis_password,
        ssl=settings.redis_tls,
        socket_timeout=5,
        socket_connect_timeout=10,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
    except (redis.RedisError, UnicodeError) as error:  # the latter: no name for a host
        raise explained(error, settings) from error
    return client


def write(
    client: redis.Redis, batches: Iterable[Batch], total: int, ttl: int, settings: Settings
) -> Iterator[int]:
    """SET every key with its TTL in seconds; yield after each batch how many of all are.

    Raises:
        SyncError: some keys were not written; the message says how many were.
    """
    written = 0
    for batch in batches:
        pipeline = client.pipeline(transaction=False)
        for key, value in batch:
            pipeline.set(key, value, ex=ttl)
        try:
            replies = pipeline.execute(raise_on_error=False)
        except redis.RedisError as error:
            raise explained(error, settings, f"stopped with at least {written:,}", total) from error
        failures = [reply for reply in replies if reply is not True]
        written += len(replies) - len(failures)
        log.event("keys.sent", logging.DEBUG, rows=written, of=total)
        yield written
        if failures:
            raise explained(failures[0], settings, f"stopped with {written:,}", total)
    log.event("cache.written", keys=written)


def compare(client: redis.Redis, batches: Iterable[Batch], settings: Settings) -> dict[str, int]:
    """Count the keys that `write` would add (inserted), change (updated) or only renew."""
    counts = {"inserted": 0, "updated": 0, "unchanged": 0}
    for batch in batches:
        try:
            present = client.mget([key for key, _ in batch])
        except redis.RedisError as error:
            raise explained(error, settings) from error
        for (_, value), old in zip(batch, present, strict=True):
            outcome = "inserted" if old is None else "unchanged" if old == value else "updated"
            counts[outcome] += 1
    return counts


def explained(error: object, settings: Settings, done: str = "", total: int = 0) -> SyncError:
    """Turn a client's or server's error into one line: what, where, what to do."""
    stopped = f"{done} of {total:,} keys written: " if done else ""
    where = f"Redis ({settings.redis_address})"
    return SyncError(f"{where}: {stopped}{_message(error)}; {_hint(error)}")


def _message(error: object) -> str:
    # redis-py puts the command, hence user data, in front of an error in a pipeline.
    text = " ".join(str(error).rpartition(" caused error: ")[2].split())
    return text.rstrip(".") or type(error).__name__


def _hint(error: object) -> str:
    if "DB index" in str(error):
        return "check REDIS_DB"
    return next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), "run it again")
