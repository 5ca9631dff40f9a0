"""Redis: write batches of keys with a TTL, or look at what writing them would change."""

from __future__ import annotations

import logging
import ssl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from etl.cache.writer import Batch, Pipe, persist
from etl.errors import SyncError, UsageError
from etl.plumbing import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from etl.settings import Settings

# Keys of one batch: some 100 kB on the wire, small enough that a server stays responsive
# and a lost batch is cheap to send again.
BATCH_KEYS = 1_000

_REACHABLE = "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?"
_HINTS: dict[type[BaseException], str] = {
    redis.AuthenticationError: "check REDIS_USERNAME and REDIS_PASSWORD",
    redis.exceptions.OutOfMemoryError: "raise maxmemory or let it evict, then run again",
    redis.exceptions.ReadOnlyError: "set REDIS_HOST to the primary",
    redis.exceptions.NoPermissionError: (
        "the user needs ~reco:* +ping +set +mget, +msetex for speed,"
        " and +select where REDIS_DB is not 0"
    ),
    redis.ConnectionError: _REACHABLE,
    redis.TimeoutError: _REACHABLE,
    UnicodeError: "check REDIS_HOST",
}
_FILES = {
    "redis_ca_file": "ssl_ca_certs",
    "redis_cert_file": "ssl_certfile",
    "redis_key_file": "ssl_keyfile",
}


def connect(settings: Settings) -> redis.Redis:
    """Open a connection and ask for a PING; a server that is away is waited for.

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
        **_certificates(settings),
        socket_timeout=5,
        socket_connect_timeout=10,
        driver_info=None,  # or each connection says its version, which takes another right
        retry=Retry(NoBackoff(), 0),  # `persist` knows better what is worth another attempt
    )
    try:
        persist(client.ping, settings.retry_seconds)
    except (redis.RedisError, UnicodeError) as error:  # the latter: no name for a host
        raise explained(error, settings) from error
    return client


def write(
    client: redis.Redis, batches: Iterable[Batch], total: int, ttl: int, settings: Settings
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


def compare(client: redis.Redis, batches: Iterable[Batch], settings: Settings) -> dict[str, int]:
    """Count the keys that `write` would add (inserted), change (updated) or only renew."""
    counts = {"inserted": 0, "updated": 0, "unchanged": 0}
    for batch in batches:
        names = [key for key, _ in batch]
        try:
            present: Any = persist(partial(client.mget, names), settings.retry_seconds)
        except redis.RedisError as error:
            raise explained(error, settings) from error
        for (_, value), old in zip(batch, present, strict=True):
            outcome = "inserted" if old is None else "unchanged" if old == value else "updated"
            counts[outcome] += 1
    return counts


def explained(
    error: BaseException, settings: Settings, done: str = "", total: int = 0
) -> SyncError:
    """Turn a client's or server's error into one line: what, where, what to do."""
    stopped = f"{done} of {total:,} keys written: " if done else ""
    where = f"Redis ({settings.redis_address})"
    return SyncError(f"{where}: {stopped}{_message(error)}; {_hint(error)}")


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


def _message(error: object) -> str:
    # redis-py puts the command, hence user data, in front of an error in a pipeline.
    text = " ".join(str(error).rpartition(" caused error: ")[2].split())
    return text.rstrip(".") or type(error).__name__


def _hint(error: BaseException) -> str:
    if "DB index" in str(error):
        return "check REDIS_DB"
    if isinstance(error.__context__, ssl.SSLError):
        return "check REDIS_TLS, REDIS_HOST, REDIS_CA_FILE, REDIS_CERT_FILE and REDIS_KEY_FILE"
    return next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), "run it again")
