"""Read the values of keys, from one server or from all nodes of a cluster at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import redis
from redis.exceptions import AskError, ClusterDownError, InvalidResponse

from etl.cache.errors import is_retryable
from etl.cache.exchange import replies, send
from etl.cache.topology import Batch, Cluster, Route, SingleServer
from etl.cache.writer import MAX_REDIRECTS, retry_redis


class Lookup:
    """Values of keys, over one connection a node."""

    def __init__(self, topology: SingleServer | Cluster, reads: str, retry_seconds: float) -> None:
        """Connect at the first need; `reads` is MGET, GET, or EXISTS for 1 and 0 as values.

        A node that is lost is tried again for `retry_seconds`.
        """
        self._topology, self._reads, self._retry_seconds = topology, reads, retry_seconds
        self._at_once = reads == "MGET" and not topology.is_cluster
        self._connections: dict[str, Any] = {}

    def values(self, keys: list[str]) -> list[Any]:
        """Return the value of each key, None where there is none.

        Raises:
            RedisError: a node refuses, or is lost.
        """
        found: dict[str, Any] = {}
        work = partial(self._complete, keys, found)
        retry_redis(work, self._retry_seconds, in_cluster=self._topology.is_cluster)
        return [found[key] for key in keys]

    def connection_for(self, key: str) -> Any:
        """Return the connection to the node of a key."""
        ((route, _),) = self._topology.split([[(key, b"")]])
        return self._connection(route.node)

    def close(self) -> None:
        """Hang up."""
        for connection in self._connections.values():
            connection.disconnect()
        self._connections = {}

    def _connection(self, node: str) -> Any:
        if node not in self._connections:
            self._connections[node] = self._topology.connection(node)
        return self._connections[node]

    def _complete(self, keys: list[str], found: dict[str, Any]) -> None:
        """Look up the keys that are not found yet, and follow the nodes that send us on."""
        for _ in range(MAX_REDIRECTS):
            missing = [(key, b"") for key in keys if key not in found]
            with self._relearning():
                causes = list(self._look_up(missing, found))
            for cause in causes:
                if not isinstance(cause, AskError):
                    raise cause
            if not causes:
                return
        raise ClusterDownError("the nodes do not agree on which of them has a slot")

    @contextmanager
    def _relearning(self) -> Iterator[None]:
        """Hang up after an error, because replies may be left, and ask anew who has which slot."""
        try:
            yield
        except redis.RedisError as error:
            self.close()
            self._topology.note(error)
            raise

    def _look_up(self, missing: Batch, found: dict[str, Any]) -> Iterator[Exception]:
        """Ask all nodes, then read their replies; yield why a key has to be asked for again."""
        routes = [
            (route, [key for key, _ in batch]) for route, batch in self._topology.split([missing])
        ]
        for route, keys in routes:
            send(self._connection(route.node), *self._commands(route, keys))
        for route, keys in routes:
            for key, reply in zip(keys, self._replies(route, keys), strict=True):
                if not isinstance(reply, redis.ResponseError):
                    found[key] = reply
                elif is_retryable(reply, in_cluster=self._topology.is_cluster):
                    self._topology.note(reply, key)
                    yield reply
                else:
                    raise reply

    def _commands(self, route: Route, keys: list[str]) -> list[tuple[str, ...]]:
        if self._at_once:
            return [("MGET", *keys)]
        # One key each: keys of two slots may not share a command, and while a slot moves to
        # another node even two of its own are refused.
        before = [("ASKING",)] if route.asking else []
        return [command for key in keys for command in (*before, (self._reads, key))]

    def _replies(self, route: Route, keys: list[str]) -> list[Any]:
        """Read the value of each key, or the error with which it is not told."""
        commands = 1 if self._at_once else len(keys) * (1 + route.asking)
        found = list(replies(self._connection(route.node), commands))
        values = []
        for reply in found[route.asking :: 1 + route.asking]:
            refused = self._at_once and isinstance(reply, redis.ResponseError)
            values += reply if isinstance(reply, list) else [reply] * (len(keys) if refused else 1)
        kind = int if self._reads == "EXISTS" else bytes | None
        if len(values) != len(keys) or not all(
            isinstance(one, kind | redis.ResponseError) for one in values
        ):
            raise InvalidResponse(f"{self._reads} was not answered with a value for each key")
        return values
