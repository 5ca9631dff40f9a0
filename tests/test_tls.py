"""TLS to Postgres: libpq's own settings are obeyed, and who cannot be trusted is not talked to."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import command, results, segments
from fixture_types import Mart
from needs import needs
from pace import within
from tls import Certificates, certificates, tls_proxy

from demo.embedded.server import Server, free_port, hand_over, run
from etl import postgres, user_segments
from etl.errors import SyncError
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers

Given = dict[str, str]


@pytest.fixture(scope="module")
def papers() -> Iterator[Certificates]:
    """Certificates in a folder that the user of a server may enter."""
    with tempfile.TemporaryDirectory(prefix="etl-tls-") as folder:
        os.chmod(folder, 0o755)
        yield certificates(Path(folder))


@pytest.fixture(scope="module")
def debian(papers: Certificates, servers: Servers) -> Iterator[Server]:
    """Debian's own Postgres, which lets nobody in without TLS."""
    server = _debian(papers, servers, needs("postgres", "apt-get install postgresql"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["behind a proxy", "Debian's"])
def verified(
    request: pytest.FixtureRequest, papers: Certificates, servers: Servers, environment: Path
) -> Iterator[Given]:
    """The settings that reach a Postgres over TLS and verify who it is."""
    if request.param == "Debian's":
        yield _strict(request.getfixturevalue("debian").port, papers)
    else:
        with tls_proxy(servers.postgres_port, papers, postgres=True) as port:
            yield _strict(port, papers)


@pytest.mark.few(1)
def test_a_whole_sync_goes_over_verified_tls(verified: Given, mart: Mart) -> None:
    mart(ONE_USER)

    made = command("etl.init_db", **verified)
    finished = command("etl", "--sync", "user_segments", "--json", **verified)

    assert (made.returncode, finished.returncode) == (0, 0), made.stderr + finished.stderr
    assert results(finished)[0]["inserted"] == 1


def test_a_server_that_another_authority_vouches_for_is_not_talked_to(
    verified: Given, papers: Certificates, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _refusal({**verified, "PGSSLROOTCERT": str(papers.other_ca_file)}, mart, monkeypatch)

    assert "certificate verify failed" in said


def test_a_server_of_another_name_is_not_talked_to(
    verified: Given, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _refusal({**verified, "POSTGRES_HOST": "127.0.0.1"}, mart, monkeypatch)

    assert 'server certificate for "localhost" does not match host name "127.0.0.1"' in said


def test_without_an_authority_to_trust_nobody_is_talked_to(
    verified: Given, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _refusal({**verified, "PGSSLROOTCERT": "/nowhere/ca.pem"}, mart, monkeypatch)

    assert 'root certificate file "/nowhere/ca.pem" does not exist' in said


def test_a_server_without_tls_is_not_talked_to(
    servers: Servers, papers: Certificates, mart: Mart
) -> None:
    mart(ONE_USER)

    finished = command(
        "etl.user_segments", LOG_FORMAT="text", **_strict(servers.postgres_port, papers)
    )

    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("etl: ")]
    assert (finished.returncode, "Traceback" in finished.stderr) == (1, False)
    assert "server does not support SSL, but SSL was required; check PGSSLMODE: `prefer`" in line


def test_a_server_that_demands_tls_says_so_to_whoever_goes_without(
    debian: Server, papers: Certificates, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {**_strict(debian.port, papers), "PGSSLMODE": "disable"}

    said = _refusal(without, mart, monkeypatch)

    assert "no encryption; check PGSSLMODE: where pg_hba.conf says hostssl it must be" in said


def test_a_server_that_asks_for_a_certificate_gets_ours(
    servers: Servers, papers: Certificates, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"PGSSLCERT": str(papers.client_cert), "PGSSLKEY": str(papers.client_key)}

    with tls_proxy(servers.postgres_port, papers, postgres=True, ask_client=True) as port:
        given = _strict(port, papers)
        said = _refusal(given, mart, monkeypatch)
        with monkeypatch.context() as environment:
            _set(environment, given | ours)
            result = user_segments.sync()

    assert "certificate required" in said
    assert result["inserted"] == 1


def test_a_statement_over_tls_can_be_stopped(
    verified: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def be_stopped_while_it_sleeps(connection: postgres.Connection) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        postgres.select(connection, "SELECT pg_sleep(90)")

    before = signal.signal(signal.SIGUSR1, stop)
    with monkeypatch.context() as environment:
        _set(environment, verified)
        with (
            postgres.session(Settings.from_environment(), "tests") as connection,
            within(5),
            pytest.raises(KeyboardInterrupt),
        ):
            be_stopped_while_it_sleeps(connection)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(("required", "is_sent"), [("password", True), ("scram-sha-256", False)])
def test_whoever_answers_in_the_servers_place_gets_no_password_with_requireauth(
    required: str, is_sent: bool, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(ONE_USER)
    with _impostor() as (port, sent), monkeypatch.context() as environment:
        given = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port)}
        _set(environment, {**given, "PGREQUIREAUTH": required, "POSTGRES_PASSWORD": "s3cret!"})
        with pytest.raises(SyncError):
            user_segments.sync()

    assert (b"s3cret!" in b"".join(sent)) is is_sent


# Helpers

ONE_USER = segments("('a', 'at_risk', 1, 0, 0)")


def _strict(port: int, papers: Certificates) -> Given:
    return {
        "POSTGRES_HOST": "localhost",
        "POSTGRES_PORT": str(port),
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(papers.ca_file),
    }


@contextmanager
def _impostor() -> Iterator[tuple[int, list[bytes]]]:
    """A port that has no TLS and asks for the password in clear; and what is sent to it."""
    sent: list[bytes] = []

    def answer(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                with client:
                    client.settimeout(5)
                    while len(said := client.recv(4096)) == 8:  # "do you speak TLS?"
                        client.sendall(b"N")
                    client.sendall(b"R\0\0\0\x08\0\0\0\x03")
                    sent.extend([said, client.recv(4096)])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=[listening], daemon=True).start()
        yield listening.getsockname()[1], sent
        listening.shutdown(socket.SHUT_RDWR)


def _refusal(given: Given, mart: Mart, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a sync says that must not connect: one line, with a hint at its end."""
    mart(ONE_USER)
    with monkeypatch.context() as environment:
        _set(environment, given)
        with pytest.raises(SyncError) as raised:
            user_segments.sync()
    message = str(raised.value)
    assert (raised.value.exit_code, "\n" in message) == (1, False)
    assert message.startswith("Postgres (airflow@")
    assert "; check PGSSLMODE" in message
    return message


def _set(environment: pytest.MonkeyPatch, given: Given) -> None:
    for name, value in given.items():
        environment.setenv(name, value)


def _debian(papers: Certificates, beside: Servers, program: Path) -> Server:
    """Make a cluster beside the certificates, with the role and the password of `beside`."""
    account, folder = beside.postgres.account, papers.ca_file.parent
    data, key = folder / "postgres", folder / "own_key.pem"
    data.mkdir(mode=0o700)
    key.touch(mode=0o600)  # a server takes no key that others may read, or own
    key.write_bytes(papers.key_file.read_bytes())
    for path in (data, key):
        hand_over(path, account)
    run([str(program.with_name("initdb")), "-D", str(data), "-U", "postgres", "-N"], account)
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    role = f"CREATE ROLE airflow LOGIN PASSWORD '{beside.environment['POSTGRES_PASSWORD']}';\n"
    single = [str(program), "--single", "-D", str(data), "postgres"]
    run(single, account, f"{role}CREATE DATABASE searchflow OWNER airflow;\n")
    port = free_port(range(20_000, 26_000))
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": papers.cert_file,
        "ssl_key_file": key,
    }
    command = [str(program), "-D", str(data), *(f"--{k}={v}" for k, v in settings.items())]
    return replace(
        beside.postgres,
        port=port,
        command=command,
        data=data,
        pid_file=data / "postmaster.pid",
        process=None,
    )
