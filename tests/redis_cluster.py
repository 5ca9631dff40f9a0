"""A cluster of three primaries, each with a replica, that tests may break and that heals."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
from pace import soon
from redis_servers import started

from demo.embedded import Servers
from demo.embedded.server import Server

SLOTS = 16_384

_OPTIONS = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "1000",
    "cluster-replica-validity-factor": "0",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "enable-debug-command": "yes",
}


@dataclass(frozen=True)
class LiveCluster:
    """Six servers; who is a primary may change."""

    servers: list[Server]

    def node(self, server: Server) -> Any:
        """Return a client of one node."""
        return redis.Redis(port=server.port, socket_timeout=5)

    def primaries(self) -> list[Server]:
        """Return the servers that have slots, by their first slot."""
        slots = self._any().execute_command("CLUSTER SLOTS")
        ports = [node[1] for _, _, node, *_ in sorted(slots)]
        return [self._server(port) for port in dict.fromkeys(ports)]

    def replica_of(self, primary: Server) -> Server:
        """Return the replica of a primary."""
        for _, _, node, *replicas in self._any().execute_command("CLUSTER SLOTS"):
            if node[1] == primary.port:
                return self._server(replicas[0][1])
        raise AssertionError("no such primary")

    def keys(self) -> int:
        """Count the keys of all primaries."""
        return sum(int(self.node(one).dbsize()) for one in self.primaries())

    def reader(self) -> Any:
        """Return redis-py's own client of the cluster."""
        return redis.RedisCluster("127.0.0.1", self.primaries()[0].port)

    def id_of(self, server: Server) -> str:
        """Return the name that the cluster knows a server by."""
        return str(self.node(server).execute_command("CLUSTER MYID").decode())

    def move_begin(self, slot: int, source: Server, target: Server) -> None:
        """Begin to move a slot: new keys of it are set on the target, after ASKING."""
        self._set_slot(target, slot, "IMPORTING", self.id_of(source))
        self._set_slot(source, slot, "MIGRATING", self.id_of(target))

    def move_end(self, slot: int, source: Server, target: Server) -> None:
        """Move the keys of a slot that are still there, and tell all primaries."""
        node = self.node(source)
        while names := node.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            node.execute_command(
                "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *names
            )
        for one in (target, source, *self.primaries()):
            self._set_slot(one, slot, "NODE", self.id_of(target))

    def heal(self) -> None:
        """Start what was killed, wait until each primary has a replica, and empty them all."""
        for server in self.servers:
            if server.process is not None:
                with suppress(ProcessLookupError):
                    server.process.send_signal(signal.SIGCONT)
            server.start()
        assert soon(self._is_healthy, 30)
        for primary in self.primaries():
            self.node(primary).flushall()

    def _is_healthy(self) -> bool:
        """Whether all nodes agree, and every primary has a replica in step."""
        views = set()
        with suppress(redis.RedisError):
            for server in self.servers:
                node = self.node(server)
                if node.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                    return False
                role = node.role()
                if role[0] == b"slave" and role[3] != b"connected":
                    return False
                slots = node.execute_command("CLUSTER SLOTS")
                views.add(str(sorted((first, last, one[1]) for first, last, one, *_ in slots)))
                owners = {one[1]: len(replicas) for _, _, one, *replicas in slots}
                if sorted(owners.values()) != [1, 1, 1]:
                    return False
            return len(views) == 1
        return False

    def _any(self) -> Any:
        """A client of a node that runs."""
        for server in self.servers:
            with suppress(redis.RedisError):
                node = self.node(server)
                if node.execute_command("CLUSTER INFO")["cluster_state"] == "ok":
                    return node
        raise AssertionError("no node runs")

    def _server(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def _set_slot(self, server: Server, slot: int, *words: str) -> None:
        self.node(server).execute_command("CLUSTER SETSLOT", slot, *words)


@contextmanager
def live_cluster(
    servers: Servers, program: str = "valkey", options: dict[str, str] | None = None
) -> Iterator[LiveCluster]:
    """Start three primaries with a third of the slots each, and a replica for each."""
    given = {**_OPTIONS, **(options or {})}
    flags = [text for name, value in given.items() for text in (f"--{name}", value)]
    with ExitStack() as stack:
        every = [stack.enter_context(started(servers, flags, program)) for _ in range(6)]
        cluster = LiveCluster(every)
        for number, server in enumerate(every[:3]):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            node = cluster.node(server)
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in every[1:]:
            cluster.node(server).execute_command("CLUSTER MEET", "127.0.0.1", every[0].port)
        for replica, primary in zip(every[3:], every[:3], strict=True):
            node, name = cluster.node(replica), cluster.id_of(primary)
            assert soon(partial(_replicates, node, name), 20)
        cluster.heal()
        yield cluster


def _replicates(node: Any, primary: str) -> bool:
    with suppress(redis.ResponseError):  # it does not know the primary yet
        node.execute_command("CLUSTER REPLICATE", primary)
        return True
    return False
