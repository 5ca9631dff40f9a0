"""A master and a replica of Redis 7, watched by two Sentinels that replace it at once."""

from __future__ import annotations

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

MASTER = "mymaster"
PASSWORD = "of the sentinels"

_REPLICATION = [
    *("--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"),
    *("--repl-ping-replica-period", "1"),
]

_WATCH = """
sentinel monitor {name} 127.0.0.1 {port} 1
sentinel down-after-milliseconds {name} 800
sentinel failover-timeout {name} 3000
requirepass "{password}"
sentinel sentinel-pass "{password}"
"""


@dataclass(frozen=True)
class Watched:
    """The two servers, either of which may be the master, and their Sentinels."""

    servers: list[Server]
    sentinels: list[Server]

    @property
    def environment(self) -> dict[str, str]:
        """The settings that lead to the master; the first Sentinel is away."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in [1, *(s.port for s in self.sentinels)])
        return {
            "REDIS_HOST": hosts,
            "REDIS_SENTINEL": MASTER,
            "REDIS_SENTINEL_PASSWORD": PASSWORD,
            "RETRY_SECONDS": "60",
        }

    def master(self) -> Server:
        """Return the server that the Sentinels agree on."""
        ports = {
            int(self.sentinel(one).execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)[1])
            for one in self.sentinels
        }
        (port,) = ports
        return next(server for server in self.servers if server.port == port)

    def sentinel(self, server: Server) -> Any:
        """Return a client of a Sentinel."""
        return redis.Redis(port=server.port, password=PASSWORD)

    def node(self, server: Server) -> Any:
        """Return a client of a server."""
        return redis.Redis(port=server.port)

    def has_master(self, server: Server) -> bool:
        """Whether all Sentinels name this server, and it takes keys."""
        with suppress(redis.RedisError, ValueError):
            return self.master() == server and self.node(server).role()[0] == b"master"
        return False


@contextmanager
def watched(servers: Servers) -> Iterator[Watched]:
    """Start them, and wait until the Sentinels know of each other and of the replica."""
    with ExitStack() as stack:
        master = stack.enter_context(started(servers, _REPLICATION, "redis-server"))
        follow = ["--replicaof", f"127.0.0.1 {master.port}"]
        replica = stack.enter_context(started(servers, [*_REPLICATION, *follow], "redis-server"))
        config = _WATCH.format(name=MASTER, port=master.port, password=PASSWORD)
        sentinels = [
            stack.enter_context(started(servers, [], "redis-sentinel", config)) for _ in range(2)
        ]
        group = Watched([master, replica], sentinels)
        assert soon(partial(_is_ready, group, replica), 20)
        yield group


def _is_ready(group: Watched, replica: Server) -> bool:
    role = group.node(replica).role()
    states = [group.sentinel(one).sentinel_masters().get(MASTER, {}) for one in group.sentinels]
    counts = [(one.get("num-slaves"), one.get("num-other-sentinels")) for one in states]
    return bool(role[3] == b"connected") and counts == [(1, 1), (1, 1)]
