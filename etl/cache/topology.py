"""Which node a key goes to, and connections to that node: one server, or a cluster."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import redis
from redis.cluster import ClusterNode, NodesManager
from redis.connection import ConnectionPool
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    RedisClusterException,
)

SLOTS = REDIS_CLUSTER_HASH_SLOTS

Batch: TypeAlias = list[tuple[str, bytes]]

_HOST = re.compile(r"[\w.:-]{0,255}", re.ASCII)

# More nodes than this share a group of batches, so that memory does not grow with the cluster.
_MAX_WIDTH = 8


class Route(NamedTuple):
    """Where commands go; `asking`: the slot is on its way there, so ASKING goes before each."""

    node: str
    asking: bool = False


class SingleServer:
    """All keys are on one server. Behind Sentinels a new connection finds the master of then."""

    is_cluster = False
    width = 1  # batches that make a good load for all nodes
    nodes = ("",)

    def __init__(self, pool: ConnectionPool, count_replicas: Callable[[], int] = lambda: 0) -> None:
        """`count_replicas` tells how many replicas could take the place of the server."""
        self._pool, self._count_replicas = pool, count_replicas

    def split(self, batches: Iterable[Batch]) -> list[tuple[Route, Batch]]:
        """Return each batch with its route."""
        return [(Route(""), batch) for batch in batches]

    def connection(self, node: str) -> Any:
        """Return an own connection, not from the pool: after an error it has unread replies."""
        return self._pool.make_connection()

    def replicas(self, node: str) -> int:
        """Return how many replicas could take the place of this node."""
        return self._count_replicas()

    def note(self, error: Exception, key: str = "") -> None:
        """Learn from an error what the next split has to know."""

    def close(self) -> None:
        """Close what the topology opened."""


class Cluster:
    """The nodes of a Redis or Valkey Cluster, by redis-py's map of the slots."""

    is_cluster = True

    def __init__(
        self, addresses: Sequence[tuple[str, int]], make: Callable[[str, int], redis.Redis]
    ) -> None:
        """Ask the first of these addresses that answers.

        Raises:
            RedisError: none does, or it does not tell.
        """
        self._addresses = list(addresses)
        with _root_cause():
            self._nodes = _Nodes(self._addresses, make)
        self._asked: dict[str, Route] = {}  # the nodes that ASK named, key by key
        self._is_stale = False
        self._read_slots()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The primaries."""
        return tuple(route.node for route in self._routes)

    @property
    def width(self) -> int:
        """How many batches make a good load for all nodes."""
        return min(len(self._routes), _MAX_WIDTH)

    def split(self, batches: Iterable[Batch]) -> list[tuple[Route, Batch]]:
        """Return one batch for each node: the keys whose slots it has.

        Raises:
            RedisError: the slots have changed, and no node tells how.
        """
        self._refresh()
        parts: list[Batch] = [[] for _ in self._routes]
        add = [part.append for part in parts]
        asked: dict[Route, Batch] = defaultdict(list)
        for batch in batches:
            pairs = self._without_asked(batch, asked) if self._asked else batch
            slots = map(key_slot, [key.encode() for key, _ in pairs])
            for pair, slot in zip(pairs, slots, strict=True):
                add[self._owners[slot]](pair)
        found = zip(self._routes, parts, strict=True)
        return [(route, part) for route, part in [*found, *asked.items()] if part]

    def connection(self, node: str) -> Any:
        """Return an own connection, not from the pool: after an error it has unread replies."""
        return self._nodes.client(node).connection_pool.make_connection()

    def replicas(self, node: str) -> int:
        """Return how many replicas could take the place of this node."""
        return self._replicas.get(node, 0)

    def note(self, error: Exception, key: str = "") -> None:
        """Send the key to the node that ASK names; after any other error read the slots anew."""
        if isinstance(error, AskError) and not isinstance(error, MovedError) and error.host:
            check_address(error.host, error.port)
            self._asked[key] = Route(f"{error.host}:{error.port}", asking=True)
        else:
            self._is_stale = True

    def close(self) -> None:
        """Close the connections that were made to read the slots."""
        self._nodes.close()

    def _refresh(self) -> None:
        """Read the slots anew where they have changed."""
        if self._is_stale:
            with _root_cause():
                self._nodes.initialize(additional_startup_nodes_info=self._addresses)
            self._read_slots()
        self._is_stale = self.covered < SLOTS
        if self._is_stale:
            raise ClusterDownError(f"only {self.covered:,} of {SLOTS:,} slots have a node")

    def _read_slots(self) -> None:
        slots = self._nodes.slots_cache
        self.covered = len(slots)
        self._replicas = {nodes[0].name: len(nodes) - 1 for nodes in slots.values()}
        numbers = {name: number for number, name in enumerate(self._replicas)}
        self._routes = [Route(name) for name in self._replicas]
        self._owners = [
            numbers[slots[slot][0].name] if slot in slots else 0 for slot in range(SLOTS)
        ]

    def _without_asked(self, batch: Batch, asked: dict[Route, Batch]) -> Batch:
        """Put the keys that ASK sends elsewhere under their route, and return the others."""
        others = []
        for pair in batch:
            if route := self._asked.pop(pair[0], None):
                asked[route].append(pair)
            else:
                others.append(pair)
        return others


def check_address(host: str, port: int) -> None:
    """Raise InvalidResponse where a server names what is no address; it may be told, in errors."""
    if not _HOST.fullmatch(host) or not 0 < int(port) < 65_536:
        raise InvalidResponse("an address was not told as one")


class _Nodes(NodesManager):
    """redis-py's map of the slots, whose clients are ours."""

    def __init__(
        self, addresses: Iterable[tuple[str, int]], make: Callable[[str, int], redis.Redis]
    ) -> None:
        self._make = make
        node: Any = ClusterNode
        super().__init__([node(host, port) for host, port in addresses])

    def create_redis_node(self, host: str, port: int, **_: Any) -> redis.Redis:
        return self._make(host, port)

    def client(self, name: str) -> Any:
        """Return the client of a node, which ASK may name before the map has it."""
        if name not in self.nodes_cache:
            host, _, port = name.rpartition(":")
            return self._make(host, int(port))
        return self.nodes_cache[name].redis_connection


class _root_cause:  # noqa: N801  (a context manager)
    """Raise the server's error in place of redis-py's, which holds its words and its address."""

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Look for the first cause that is no error about the others."""
        cause = error
        while isinstance(cause, RedisClusterException):
            cause = cause.__cause__ or cause.__context__ or ClusterDownError("no node answers")
        if cause is not error and cause is not None:
            raise cause from error
