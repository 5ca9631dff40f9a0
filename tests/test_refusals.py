"""A server, or a pooler, that turns us away: what is tried again, and what the line says to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from adbc_driver_manager import AdbcStatusCode, OperationalError
from conftest import segments
from fixture_types import Mart
from pace import HANG, soon
from refusing import german as start_german
from refusing import pgbouncer as start_pgbouncer
from refusing import refusing

from etl import postgres, user_segments
from etl.errors import ConnectionLost, SyncError
from etl.postgres.errors import to_sync_error
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers
    from demo.embedded.server import Server

LOGIN = "check POSTGRES_USER and POSTGRES_PASSWORD"


@pytest.fixture(scope="module")
def german(servers: Servers) -> Iterator[Server]:
    """A Postgres that says everything in German."""
    with start_german(servers) as server:
        yield server


@pytest.fixture(scope="module")
def pooler(servers: Servers) -> Iterator[int]:
    """The port of a PgBouncer."""
    with start_pgbouncer(servers) as port:
        yield port


# Words that nobody here knows, with the code that ADBC keeps to itself.
UNKNOWN = [
    ("Passwort-Authentifizierung für Benutzer »airflow« fehlgeschlagen", "28P01", "FATAL"),
    ("authentification par mot de passe échouée pour l'utilisateur", "28P01", "FATAL"),
    ("пользователь не прошёл проверку подлинности", "28P01", "ВАЖНО"),
    ("ユーザー認証に失敗しました", "28P01", "FATAL"),
    ("Verbindung zur Datenbank verweigert", "3D000", "FATAL"),
    ("could not connect: the timeout of your subscription has expired", "28000", "FATAL"),
    ("your plan does not include this database", "P0001", "FATAL"),
]


@pytest.mark.parametrize(("message", "sqlstate", "severity"), UNKNOWN)
def test_a_refusal_in_unknown_words_is_final(
    mart: Mart, message: str, sqlstate: str, severity: str
) -> None:
    mart(ONE_USER)
    with refusing(message, sqlstate, severity) as server:
        said = refusal(user_segments.sync, POSTGRES_PORT=str(server.port), RETRY_SECONDS="5")

    assert message in said
    assert f"it turns us away: {LOGIN}" in said
    assert len(server.logins) == 1


PASSING = [
    ("the database system is starting up", "57P03"),
    ("the database system is shutting down", "57P03"),
    ("the database system is in recovery mode", "57P03"),
    ("the database system is not yet accepting connections", "57P03"),
    ("sorry, too many clients already", "53300"),
    ("remaining connection slots are reserved for roles with the SUPERUSER attribute", "53300"),
    ('too many connections for role "airflow"', "53300"),
    ('too many connections for database "searchflow"', "53300"),
    ("no more connections allowed (max_client_conn)", "08P01"),
    ("pgbouncer cannot connect to server", "08P01"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("message", "sqlstate"), PASSING)
def test_a_refusal_that_is_known_to_pass_is_tried_again(
    mart: Mart, message: str, sqlstate: str
) -> None:
    mart(ONE_USER)
    with refusing(message, sqlstate) as server:
        said = lost(user_segments.sync, POSTGRES_PORT=str(server.port), RETRY_SECONDS="0.5")

    assert re.search(r"; (it is being|end other sessions|the pooler gets no)", said)
    assert len(server.logins) > 1


NO_TLS = "server does not support SSL, but SSL was required; check PGSSLMODE"
GERMAN: list[tuple[dict[str, str], str]] = [
    ({"POSTGRES_PASSWORD": "falsch"}, "fehlgeschlagen; it turns us away: check POSTGRES_USER"),
    ({"POSTGRES_USER": "niemand"}, "fehlgeschlagen; it turns us away: check POSTGRES_USER"),
    ({"POSTGRES_DB": "nirgends"}, "existiert nicht; it turns us away: check POSTGRES_USER"),
    ({"POSTGRES_USER": "full"}, "zu viele Verbindungen von Rolle"),
    ({"POSTGRES_USER": "unwanted"}, "check PGSSLMODE: where pg_hba.conf says hostssl"),
    ({"PGSSLMODE": "require"}, NO_TLS),
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("given", "said"), GERMAN, ids=lambda value: "".join(value)[:20])
@pytest.mark.usefixtures("environment")
def test_a_refusal_in_german_is_final_and_says_what_to_do(
    german: Server, given: dict[str, str], said: str
) -> None:
    assert said in refusal(connect, **{"POSTGRES_PORT": str(german.port), **given})


@pytest.mark.usefixtures("environment")
def test_a_session_that_a_german_server_ends_is_lost_and_no_refusal(german: Server) -> None:
    with setting(POSTGRES_PORT=str(german.port)):
        settings = Settings.from_environment()
    with postgres.session(settings, "tests") as ended, postgres.session(settings, "tests") as other:
        (its,) = postgres.select(ended, "SELECT pg_backend_pid() AS pid")
        postgres.select(other, "SELECT pg_terminate_backend($1::int)", its["pid"])

        def is_gone() -> bool:
            other.commit()  # within a transaction the view stays as it was first seen
            mine = "SELECT FROM pg_stat_activity WHERE pid = $1::int"
            return not postgres.select(other, mine, its["pid"])

        assert soon(is_gone, HANG)  # and has said its last words

        with pytest.raises(ConnectionLost, match="server closed the connection unexpectedly; is"):
            postgres.select(ended, "SELECT 1 AS one")


POOLED: list[tuple[dict[str, str], str]] = [
    ({"PGOPTIONS": "-c geqo=off"}, "unsupported startup parameter: options; unset PGOPTIONS"),
    ({"POSTGRES_DB": "nope"}, "no such database: nope; check POSTGRES_DB, or create it"),
    ({"POSTGRES_PASSWORD": "wrong"}, f"SASL authentication failed; {LOGIN}"),
    ({"PGSSLMODE": "require"}, NO_TLS),
]


@pytest.mark.parametrize(("given", "said"), POOLED, ids=lambda value: "".join(value)[:20])
@pytest.mark.usefixtures("environment")
def test_a_refusal_of_a_pooler_is_final_and_says_what_to_do(
    pooler: int, given: dict[str, str], said: str
) -> None:
    assert said in refusal(connect, **{"POSTGRES_PORT": str(pooler), **given})


@pytest.mark.usefixtures("environment")
def test_a_pooler_without_a_server_behind_it_may_get_one(pooler: int) -> None:
    said = lost(connect, POSTGRES_PORT=str(pooler), POSTGRES_DB="down")

    assert "; the pooler gets no connection to Postgres: is that up" in said


@pytest.mark.usefixtures("environment")
def test_a_pooler_whose_pool_is_taken_may_have_room_in_a_moment(pooler: int) -> None:
    with setting(POSTGRES_PORT=str(pooler), POSTGRES_DB="small"):
        settings = Settings.from_environment()
    with postgres.session(settings, "tests") as first:
        postgres.select(first, "SELECT 1 AS one")  # and its transaction goes on

        said = lost(connect, POSTGRES_PORT=str(pooler), POSTGRES_DB="small")

    assert "query_wait_timeout; the pooler gets no connection to Postgres" in said


@pytest.mark.usefixtures("environment")
def test_a_pooler_that_is_full_may_have_room_in_a_moment(pooler: int) -> None:
    with setting(POSTGRES_PORT=str(pooler)), ExitStack() as stack:
        settings = Settings.from_environment()
        for _ in range(4):  # which is all that it takes
            stack.enter_context(postgres.session(settings, "tests"))

        said = lost(connect)

    assert "no more connections allowed (max_client_conn); end other sessions" in said


def test_of_several_addresses_the_one_that_refuses_us_counts(servers: Servers) -> None:
    """Of a host with an address where nothing listens, say, and a server that knows us not."""
    error = OperationalError(
        "IO: [libpq] Failed to connect:"
        ' connection to server at "db" (::1), port 1 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?\n"
        'connection to server at "db" (10.0.0.1), port 1 failed: FATAL:  nein\nDETAIL:  geheim\n',
        status_code=AdbcStatusCode.IO,
    )

    told = to_sync_error(error, Settings.from_environment(servers.environment), connecting=True)

    assert not isinstance(told, ConnectionLost)
    assert 'cannot connect to "db" (10.0.0.1), port 1: nein; it turns us away' in str(told)


# Helpers

ONE_USER = segments("('a', 'regular', 1, 0, 0)")


def connect() -> None:
    with postgres.session(Settings.from_environment(), "tests"):
        pass


@contextmanager
def setting(**given: str) -> Iterator[None]:
    """Set variables for the length of a block: what cleans up goes to the tests' own server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        yield


def refusal(run: Callable[[], object], **given: str) -> str:
    """What a run says that is refused for good, in one line."""
    with setting(**given), pytest.raises(SyncError) as failed:
        run()
    assert not isinstance(failed.value, ConnectionLost), failed.value
    assert "\n" not in str(failed.value)
    return str(failed.value)


def lost(run: Callable[[], object], **given: str) -> str:
    """What a run says that may succeed in a moment."""
    with setting(**given), pytest.raises(ConnectionLost) as failed:
        run()
    assert "\n" not in str(failed.value)
    return str(failed.value)
