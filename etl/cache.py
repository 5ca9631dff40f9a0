"""Redis: write batches of keys with a TTL, or look at what writing them would change."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from etl import log
from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.settings import Settings

Batch: TypeAlias = list[tuple[str, bytes]]

# Keys of one pipeline: some 100 kB on the wire, small enough that a server stays responsive
# and a lost batch is cheap to send again.
BATCH_KEYS = 1_000


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
    except redis.RedisError as error:
        raise explained(error, settings) from error
    return client


def write(client: redis.Redis, batches: Iterable[Batch], ttl: int, settings: Settings) -> int:
    """SET every key with its TTL in seconds and return how many; every reply is checked.

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
            raise _incomplete(written, error, settings) from error
        failures = [reply for reply in replies if reply is not True]
        written += len(replies) - len(failures)
        if failures:
            raise _incomplete(written, failures[0], settings)
    log.event("cache.written", keys=written)
    return written


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


def explained(error: object, settings: Settings) -> SyncError:
    """Turn a client's or server's error into one line: what, where, what to do."""
    return SyncError(f"Redis ({settings.redis_address}): {_message(error)}; {_hint(error)}")


def _incomplete(written: int, error: object, settings: Settings) -> SyncError:
    return SyncError(
        f"Redis ({settings.redis_address}): stopped after {written:,} keys were written:"
        f" {_message(error)}; {_hint(error)}"
    )


def _message(error: object) -> str:
    # redis-py appends the command, hence user data, to the text of an error in a pipeline.
    return " ".join(str(error).partition(" of pipeline ")[0].split()) or type(error).__name__


def _hint(error: object) -> str:
    match error:
        case redis.AuthenticationError():
            return "check REDIS_USERNAME and REDIS_PASSWORD"
        case redis.exceptions.OutOfMemoryError():
            return "raise maxmemory or let it evict, then run again"
        case redis.exceptions.ReadOnlyError():
            return "set REDIS_HOST to the primary"
        case redis.exceptions.NoPermissionError():
            return "allow the user +set +mget and ~reco:*"
        case redis.ConnectionError() | redis.TimeoutError():
            return "is it up, and are REDIS_HOST and REDIS_PORT right?"
        case _:
            return "put it right and run again"
