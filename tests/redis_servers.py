"""Redis servers of other kinds than that of conftest: real ones, and some that misbehave."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
from needs import needs
from pace import soon

from demo.embedded import Servers
from demo.embedded.server import Server, free_port, hand_over

# A cluster's node also takes the port 10,000 above, below those of demo/embedded.
_PORTS = range(7_000, 9_900)

Answer = bytes | None | Callable[[], Iterable[bytes]]  # None: hang up


@dataclass(frozen=True)
class Others:
    """Starts a server for the length of a block, and points the service at it."""

    servers: Servers
    monkeypatch: pytest.MonkeyPatch

    @contextmanager
    def server(self, *options: str, program: str = "valkey") -> Iterator[int]:
        """Valkey, or Debian's `redis-server` or `redis-sentinel`."""
        with started(self.servers, options, program) as server:
            self.point_at(server.port)
            yield server.port

    @contextmanager
    def cluster(self, *slots: int, program: str = "valkey", node: int = 0) -> Iterator[list[int]]:
        """Nodes with so many slots each, and the service pointed at one of them."""
        options = ["--cluster-enabled", "yes"]
        with ExitStack() as stack:
            every = [stack.enter_context(started(self.servers, options, program)) for _ in slots]
            ports = [server.port for server in every]
            nodes: list[Any] = [stack.enter_context(redis.Redis(port=port)) for port in ports]
            first = 0
            for one, count in zip(nodes, slots, strict=True):
                if count:
                    one.execute_command("CLUSTER", "ADDSLOTSRANGE", first, first + count - 1)
                one.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
                first += count
            known = str(sum(map(bool, slots))), "ok" if first == 16_384 else "fail"
            for one in nodes:
                _await(one, known)
            self.point_at(ports[node])
            yield ports

    @contextmanager
    def fake(self, answers: Mapping[str, Answer]) -> Iterator[None]:
        """Answers each command so; it knows PING, MGET of no key, and no other that is not told."""
        known: dict[str, Answer] = {"PING": b"+PONG\r\n", "MGET": b"*1\r\n$-1\r\n", **answers}

        def serve(client: socket.socket) -> None:
            reader = hiredis.Reader()
            while piece := client.recv(65_536):
                reader.feed(piece)
                while command := reader.gets():
                    answer = known.get(command[0].decode(), b"-ERR unknown command\r\n")
                    if answer is None:
                        return
                    for part in [answer] if isinstance(answer, bytes) else answer():
                        client.sendall(part)

        with _listening(serve) as port:
            self.point_at(port)
            yield

    @contextmanager
    def proxy(self, unknown: Mapping[str, bytes | None], target: int = 0) -> Iterator[None]:
        """A proxy that answers these commands by itself; None: it hangs up."""

        def serve(client: socket.socket) -> None:
            upstream = "127.0.0.1", target or self.servers.redis_port
            with socket.create_connection(upstream) as server:
                threading.Thread(target=hand_on, args=[server, client], daemon=True).start()
                while piece := client.recv(65_536):
                    name = next(
                        (name for name in unknown if f"\r\n{name}\r\n".encode() in piece), ""
                    )
                    answer = unknown[name] if name else piece
                    if answer is None:
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    (client if name else server).sendall(answer)

        def hand_on(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while piece := source.recv(65_536):
                    sink.sendall(piece)

        with _listening(serve) as port:
            self.point_at(port)
            yield

    def point_at(self, port: int) -> None:
        """Runs go to this port from now on."""
        self.monkeypatch.setenv("REDIS_PORT", str(port))


@contextmanager
def started(
    servers: Servers, options: Iterable[str], program: str = "valkey", config: str = ""
) -> Iterator[Server]:
    """Valkey, or Debian's `redis-server` or `redis-sentinel`, for the length of a block.

    Args:
        servers: whose account runs it.
        options: of the command line.
        program: which one.
        config: lines of its file, for what cannot be an option.
    """
    embedded = servers.redis
    binary = embedded.command[0] if program == "valkey" else str(needs(program))
    port = free_port(_PORTS)
    with tempfile.TemporaryDirectory(prefix="etl-redis-") as folder:
        data = Path(folder)
        file = data / "server.conf"  # which a Sentinel writes to
        file.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{config}")
        for path in (data, file):
            hand_over(path, embedded.account)
        unsaved = [] if program == "redis-sentinel" else ["--save", ""]
        server = replace(
            embedded,
            port=port,
            command=[binary, str(file), *unsaved, *options],
            data=data / "server",
            pid_file=data / "server.pid",
            process=None,
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def _listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that serves each of its clients so, in threads."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=served, args=[client], daemon=True).start()

    def served(client: socket.socket) -> None:
        with client, suppress(OSError):
            serve(client)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _await(node: Any, known: tuple[str, str]) -> None:
    def is_known() -> bool:
        info = node.cluster("INFO")
        return (info["cluster_size"], info["cluster_state"]) == known

    assert soon(is_known, 20)
