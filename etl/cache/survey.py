"""What a server is and has room for, asked in ways that change nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import redis

from etl.cache.clients import Client
from etl.cache.errors import problem, to_sync_error
from etl.cache.exchange import ask
from etl.cache.refusals import UNKNOWN
from etl.cache.server import NOBODY, explained
from etl.errors import SyncError
from etl.settings import Settings

_MEMORY = re.compile(rb"^(used_memory|maxmemory):(\d+)\r?$", re.MULTILINE)

# The policies that there are, for what a server says instead may be anything.
POLICY = re.compile(
    rb"^maxmemory_policy:(noeviction|(?:allkeys|volatile)-(?:lru|lfu|lrm|random|ttl))\r?$",
    re.MULTILINE,
)


# What a key takes beside its name and its value: measured with Redis 7.0 and with Valkey 9.1, whose
# table keeps them in one piece.
_BYTES, _LEAN_BYTES, _LEAN_SINCE = 137, 70, 9


@dataclass(frozen=True)
class Memory:
    """Of all nodes together, in bytes."""

    used: int
    most: int | None  # None: one node at least has no limit
    policy: str  # what is evicted, of the first node; "" where it does not say
    beside: int  # bytes that a key takes beside its name and its value


def kind(client: Client) -> str:
    """Say what a client speaks to, after `require_writable`: `valkey 9.1.2, one server`."""
    told = client.told
    words = [told.get(name, b"").decode(errors="replace") for name in (b"server", b"version")]
    nodes = len(client.topology.nodes)
    if client.topology.is_cluster:
        role = f"a cluster of {nodes} primaries"
    elif client.sentinels:
        role = f"the primary that Sentinels name, {client.topology.replicas('')} replicas"
    else:
        role = "one server" if client.mode else "a server or proxy that does not know HELLO"
    return ", ".join(filter(None, (" ".join(filter(None, words)), role)))


def write_error(client: Client, settings: Settings) -> SyncError | None:
    """Return why no key could be written now; None: one could.

    Each primary is asked to set a key that nobody has, and only if it is there, with a time to live
    that is none: it looks at rights, memory, disk and replicas first, then declines.
    """
    for refusal in _ask_all(client, settings, "SET", NOBODY, "", "XX", "EX", "0"):
        # Of a cluster's nodes all but one have not the slot of the key, which they say last.
        elsewhere = client.topology.is_cluster and isinstance(refusal, redis.exceptions.AskError)
        if isinstance(refusal, redis.RedisError) and str(refusal) != UNKNOWN and not elsewhere:
            return to_sync_error(refusal, settings)
    return None


def memory(client: Client, settings: Settings) -> Memory:
    """Return the memory of all nodes.

    Raises:
        SyncError: a node does not tell.
    """
    used, policy = 0, ""
    most: list[int] = []
    for info in _ask_all(client, settings, "INFO", "memory"):
        if not isinstance(info, bytes):
            raise problem(settings, "INFO is refused, so that its memory is not known")
        told = {name: int(value) for name, value in _MEMORY.findall(info)}
        used += told.get(b"used_memory", 0)
        most.append(told.get(b"maxmemory", 0))
        found = POLICY.search(info)
        policy = policy or (found[1].decode() if found else "")
    is_lean = client.told.get(b"server") == b"valkey" and _major(client) >= _LEAN_SINCE
    beside = _LEAN_BYTES if is_lean else _BYTES
    return Memory(used, sum(most) if all(most) else None, policy, beside)


def _major(client: Client) -> int:
    digits = re.match(rb"\d+", client.told.get(b"version", b""))
    return int(digits[0]) if digits else 0


def _ask_all(client: Client, settings: Settings, *command: str) -> list[Any]:
    """Return the reply of each primary, errors among them."""
    answers = []
    with explained(settings):
        for node in client.topology.nodes:
            connection = client.topology.connection(node)
            try:
                answers += ask(connection, command)
            finally:
                connection.disconnect()
    return answers
