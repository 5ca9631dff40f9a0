"""Servers that say no: a German Postgres, a PgBouncer, and one that has nothing but its refusal."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from needs import needs, skip

from demo.embedded.server import Server, free_port, hand_over, run

if TYPE_CHECKING:
    from demo.embedded import Servers

_SSL_REQUEST = 80877103
_HBA = """
host all unwanted 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
"""


@dataclass
class Refusing:
    """A server on `port` that answers every login with the same words, and counts them."""

    port: int = 0
    logins: list[float] = field(default_factory=list)


@contextmanager
def refusing(message: str, sqlstate: str, severity: str = "FATAL") -> Iterator[Refusing]:
    """Answer as Postgres does: the severity in its language, a code and a message."""
    server = socket.create_server(("127.0.0.1", 0))
    told = Refusing(server.getsockname()[1])
    fields = {"S": severity, "V": "FATAL", "C": sqlstate, "M": message}
    body = b"".join(f"{key}{text}".encode() + b"\0" for key, text in fields.items()) + b"\0"
    answer = b"E" + (len(body) + 4).to_bytes(4, "big") + body

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:  # closed: the test is over
                return
            with client:
                _login(client)
                told.logins.append(time.monotonic())
                client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _login(client: socket.socket) -> None:
    """Read a startup message, which may come after a question for TLS."""
    while True:
        length = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
        message = client.recv(length - 4, socket.MSG_WAITALL)
        if int.from_bytes(message[:4], "big") != _SSL_REQUEST:
            return
        client.sendall(b"N")


@contextmanager
def german(beside: Servers) -> Iterator[Server]:
    """Debian's Postgres, speaking German, with the roles and the database of `beside`."""
    program, localedef = needs("postgres", "apt-get install postgresql"), needs("localedef")
    share = Path("/usr/share/locale/de/LC_MESSAGES")
    if not list(share.glob(f"postgres-{program.parent.parent.name}.mo")):
        skip(f"{program} speaks no German: there is no catalogue of it in {share}")
    with _folder("etl-german-", beside) as folder:
        locale, data = folder / "locale", folder / "postgres"
        locale.mkdir()
        run([str(localedef), "-i", "de_DE", "-f", "UTF-8", str(locale / "de_DE.UTF-8")], {})
        account = beside.postgres.account
        initdb = str(program.with_name("initdb"))
        run(
            [initdb, "-D", str(data), "-U", "postgres", "-N", "-E", "UTF8", "--locale=C.UTF-8"],
            account,
        )
        (data / "pg_hba.conf").write_text(_HBA)
        password = beside.environment["POSTGRES_PASSWORD"]
        roles = "".join(
            f"CREATE ROLE {role} LOGIN PASSWORD '{password}' {limit};\n"
            for role, limit in (("airflow", ""), ("unwanted", ""), ("full", "CONNECTION LIMIT 0"))
        )
        single = [str(program), "--single", "-D", str(data), "postgres"]
        run(single, account, f"{roles}CREATE DATABASE searchflow OWNER airflow;\n")
        port = free_port(range(20_000, 26_000))
        settings = f"port={port} listen_addresses=127.0.0.1 unix_socket_directories= fsync=off"
        words = [f"--{word}" for word in (*settings.split(), "lc_messages=de_DE.UTF-8")]
        server = replace(
            beside.postgres,
            port=port,
            command=["/usr/bin/env", f"LOCPATH={locale}", str(program), "-D", str(data), *words],
            data=data,
            pid_file=data / "postmaster.pid",
            process=None,
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def pgbouncer(
    beside: Servers,
    mode: str = "transaction",
    settings: str = "query_wait_timeout = 1\nmax_client_conn = 4",
) -> Iterator[int]:
    """PgBouncer before the tests' Postgres; beside `searchflow` databases that fail in ways."""
    program = needs("pgbouncer")
    environment = beside.environment
    target = f"host=127.0.0.1 port={beside.postgres_port}"
    with _folder("etl-pgbouncer-", beside) as folder:
        port = free_port(range(20_000, 26_000))
        users, config = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"airflow" "{environment["POSTGRES_PASSWORD"]}"\n')
        config.write_text(
            "[databases]\n"
            f"searchflow = {target}\n"
            f"small = {target} dbname=searchflow pool_size=1\n"
            "down = host=127.0.0.1 port=1\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = {mode}\n"
            f"{settings}\nserver_login_retry = 1\n"
        )
        for path in (users, config):
            hand_over(path, beside.postgres.account)
        process = subprocess.Popen(
            [str(program), "-q", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            **beside.postgres.account,
        )
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)
        else:
            return


@contextmanager
def _folder(prefix: str, beside: Servers) -> Iterator[Path]:
    """A folder that the user of the servers owns."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    os.chmod(folder, 0o755)
    hand_over(folder, beside.postgres.account)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
