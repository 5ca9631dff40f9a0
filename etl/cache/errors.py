"""Errors of Redis and its client as one line (what, where, what to do), and which may pass."""

from __future__ import annotations

import ssl

import redis
from redis.exceptions import AskError, ClusterDownError, TryAgainError
from redis.sentinel import MasterNotFoundError

from etl.errors import SyncError, Transient
from etl.settings import Settings

_REACHABLE = "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?"
_REDIS = "are REDIS_HOST, REDIS_PORT and REDIS_TLS those of a Redis server?"
_CLUSTER = (
    "it is a node of a cluster behind a server that does not say so to HELLO,"
    " set REDIS_HOST to the nodes themselves"
)
_SENTINEL = "look at SENTINEL MASTERS: is it up, and do enough Sentinels agree?"
_HINTS: dict[type[BaseException], str] = {
    redis.AuthenticationError: "check REDIS_USERNAME and REDIS_PASSWORD",
    redis.exceptions.OutOfMemoryError: "raise maxmemory or let it evict, then run again",
    redis.exceptions.ReadOnlyError: "set REDIS_HOST to the primary",
    redis.exceptions.NoPermissionError: (
        "the user needs ~reco:* +ping +set +mget, +msetex for speed,"
        " +select where REDIS_DB is not 0, and +cluster|slots +asking +wait in a cluster"
    ),
    MasterNotFoundError: _SENTINEL,
    redis.exceptions.MasterDownError: "set REDIS_HOST to the primary",
    ClusterDownError: "look at CLUSTER INFO and CLUSTER NODES",
    redis.exceptions.ClusterCrossSlotError: _CLUSTER,
    redis.exceptions.InvalidResponse: _REDIS,
    redis.ConnectionError: _REACHABLE,
    redis.TimeoutError: _REACHABLE,
    UnicodeError: "check REDIS_HOST",
}
# Errors that redis-py has no class of its own for, by how they begin.
_WORDS = {
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "MISCONF": "the server cannot save to its disk, look at its log",
    "NOREPLICAS": "the server has too few replicas to take keys, look at them",
    "DENIED": "give the server a password, and set REDIS_PASSWORD",
    "unknown command": _REDIS,
    "SELECT is not allowed in cluster mode": "set REDIS_DB=0",
}

# What a failover or replicas that catch up may need minutes for.
_LATER = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError, ClusterDownError)

# TLS errors that only say that the connection was lost.
_CONNECTION_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


# What a node of a cluster answers while slots move or a replica takes over.
_REDIRECTIONS = (AskError, ClusterDownError, TryAgainError)  # AskError: MOVED as well


def to_sync_error(
    error: BaseException,
    settings: Settings,
    done: str = "",
    total: int = 0,
    otherwise: str = "run it again",
) -> SyncError:
    """Turn a client's or server's error into one line: what, where, what to do.

    Args:
        error: of redis-py.
        settings: name the server.
        done: how far the run came, such as "stopped with 3"; `total` is how many keys it has.
        total: see `done`.
        otherwise: what to do about an error that has no hint of its own.
    """
    hint = _hint(error)
    if hint == _REACHABLE and settings.redis_socket:
        hint = "is it up, and is REDIS_HOST the path of its socket?"
    stopped = f"{done} of {total:,} keys written: " if done else ""
    kind = Transient if is_retryable(error) or _is_transient(error) else SyncError
    return problem(settings, f"{stopped}{_message(error)}; {hint or otherwise}", kind)


def problem(settings: Settings, text: str, kind: type[SyncError] = SyncError) -> SyncError:
    """Return an error about the server of these settings."""
    return kind(f"Redis ({settings.redis_address}): {text}")


def is_retryable(error: BaseException, *, in_cluster: bool = False) -> bool:
    """Return whether another attempt may succeed: a server comes back, loads its keys, fails over.

    A password does not become right, and outside of a cluster nobody follows MOVED.
    """
    cause = error.__context__
    refused = isinstance(cause, ssl.SSLError) and not isinstance(cause, _CONNECTION_LOST)
    if refused or isinstance(error, redis.AuthenticationError):
        return False
    lost = isinstance(error, redis.ConnectionError | redis.TimeoutError)
    redirected = in_cluster and isinstance(error, _REDIRECTIONS)
    return lost or redirected or str(error).startswith("BUSY")


def _is_transient(error: BaseException) -> bool:
    """Return whether a scheduler may try again in some minutes."""
    return isinstance(error, _LATER) or str(error).startswith("NOREPLICAS")


def _message(error: object) -> str:
    if isinstance(error, MasterNotFoundError):  # redis-py's words quote its own objects
        return "the Sentinels name no master that is up"
    # redis-py puts the command, hence user data, in front of an error in a pipeline.
    text = " ".join(str(error).rpartition(" caused error: ")[2].split())
    return text.rstrip(".") or type(error).__name__


def _hint(error: BaseException) -> str | None:
    if "DB index" in str(error):
        return "check REDIS_DB"
    if isinstance(error.__context__, ssl.SSLError):
        return "check REDIS_TLS, REDIS_HOST, REDIS_CA_FILE, REDIS_CERT_FILE and REDIS_KEY_FILE"
    by_word = (hint for word, hint in _WORDS.items() if str(error).startswith(word))
    by_kind = (hint for kind, hint in _HINTS.items() if isinstance(error, kind))
    return next(by_word, None) or next(by_kind, None)
