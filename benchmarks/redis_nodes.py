"""How fast keys are set: on one server by SET and by MSETEX, and on a cluster of three nodes.

usage: redis_nodes.py [KEYS]; ready-made keys, best of three rounds, everything on this machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis

from demo.embedded import Servers, running
from demo.embedded.server import free_port, hand_over
from etl import cache
from etl.settings import Settings

SLOTS = 16_384
NODES = 3
VALUE = b'{"destinations":["Miami","Cancun","Lisbon","Rome"],"score":0.85}'
ROUNDS = 3


def main() -> None:
    """Start the servers, measure each way in turn, print keys a second."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with (
        tempfile.TemporaryDirectory(prefix="etl-bench-") as name,
        ExitStack() as stack,
    ):
        Path(name).chmod(0o755)  # the servers may run as another user
        servers = stack.enter_context(running(Path(name)))
        redis.Redis(port=servers.redis_port).config_set("save", "")
        ports = [stack.enter_context(_node(servers, number)) for number in range(NODES)]
        _join(ports)
        ways = {
            "one server, SET": (servers.redis_port, ""),
            "one server, MSETEX": (servers.redis_port, "standalone"),
            f"{NODES} nodes, SET": (ports[0], "cluster"),
        }
        best = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for way, (port, mode) in ways.items():
                best[way] = max(best[way], _rate(port, mode, count))
    for way, rate in best.items():
        share = rate / best["one server, SET"]
        print(f"{way:20} {rate:>9,.0f} keys/s  {share:.2f}")


def _rate(port: int, mode: str, count: int) -> float:
    settings = Settings(redis_host="127.0.0.1", redis_port=port)
    begun = time.perf_counter()
    with cache.connect(settings) as client:
        cache.require_writable(client, settings)
        client.mode = mode
        *_, written = cache.write(client, _batches(count), count, 86_400, settings)
    if written != count:
        raise SystemExit(f"{written:,} keys written instead of {count:,}")
    return count / (time.perf_counter() - begun)


def _batches(count: int) -> Iterator[cache.Batch]:
    for start in range(0, count, cache.BATCH_KEYS):
        keys = range(start, min(start + cache.BATCH_KEYS, count))
        yield [(f"reco:user_{number:08}", VALUE) for number in keys]


@contextmanager
def _node(servers: Servers, number: int) -> Iterator[int]:
    """Start a Valkey in cluster mode; its port, which leaves room for the port of the bus."""
    beside = servers.redis
    data = beside.data.with_name(f"node{number}")
    data.mkdir()
    hand_over(data, beside.account)
    port = free_port(range(20_000, 22_000))
    options = [text.replace(str(beside.data), str(data)) for text in beside.command]
    options[options.index("--port") + 1] = str(port)
    options[options.index("--save") + 1] = ""
    node = replace(
        beside,
        port=port,
        command=[*options, "--cluster-enabled", "yes"],
        data=data,
        pid_file=data / "valkey.pid",
        process=None,
    )
    node.start()
    try:
        yield port
    finally:
        node.stop()


def _join(ports: list[int]) -> None:
    """Share out the slots, and wait until every node knows who has which."""
    nodes: list[Any] = [redis.Redis(port=port) for port in ports]
    for number, node in enumerate(nodes):
        first, last = SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1
        node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
    deadline = time.monotonic() + 30
    while any(node.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for node in nodes):
        if time.monotonic() > deadline:
            raise SystemExit("the nodes do not find each other")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
