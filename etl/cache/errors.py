"""What Redis and its client complain of, as one line: what, where, what to do."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import redis

from etl.errors import SyncError, Transient

if TYPE_CHECKING:
    from etl.settings import Settings

_REACHABLE = "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?"
_REDIS = "are REDIS_HOST, REDIS_PORT and REDIS_TLS those of a Redis server?"
_CLUSTER = "it is a node of a cluster, set REDIS_HOST to a single server"
_HINTS: dict[type[BaseException], str] = {
    redis.AuthenticationError: "check REDIS_USERNAME and REDIS_PASSWORD",
    redis.exceptions.OutOfMemoryError: "raise maxmemory or let it evict, then run again",
    redis.exceptions.ReadOnlyError: "set REDIS_HOST to the primary",
    redis.exceptions.NoPermissionError: (
        "the user needs ~reco:* +ping +set +mget, +msetex for speed,"
        " and +select where REDIS_DB is not 0"
    ),
    redis.exceptions.MasterDownError: "set REDIS_HOST to the primary",
    redis.exceptions.ClusterDownError: "look at CLUSTER INFO",
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

_LATER = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
)

# Of TLS these say no more than that somebody hung up.
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def explained(
    error: BaseException,
    settings: Settings,
    done: str = "",
    total: int = 0,
    otherwise: str = "run it again",
) -> SyncError:
    """Turn a client's or server's error into one line: what, where, what to do."""
    stopped = f"{done} of {total:,} keys written: " if done else ""
    kind = Transient if passes(error) or _passes_later(error) else SyncError
    return problem(settings, f"{stopped}{_message(error)}; {_hint(error) or otherwise}", kind)


def problem(settings: Settings, text: str, kind: type[SyncError] = SyncError) -> SyncError:
    """An error about the server of these settings."""
    return kind(f"Redis ({settings.redis_address}): {text}")


def passes(error: BaseException) -> bool:
    """A server may come back, load its keys or end a script; a password does not become right."""
    cause = error.__context__
    refused = isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT)
    if refused or isinstance(error, redis.AuthenticationError):
        return False
    lost = isinstance(error, redis.ConnectionError | redis.TimeoutError)
    return lost or str(error).startswith("BUSY")


def _passes_later(error: BaseException) -> bool:
    """A failover, or replicas that catch up, may take minutes: for a scheduler to wait for."""
    return isinstance(error, _LATER) or str(error).startswith("NOREPLICAS")


def _message(error: object) -> str:
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
