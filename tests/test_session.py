"""A session means the same whatever the environment, the role, the database or the server set."""

from __future__ import annotations

import datetime as dt
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from conftest import command, segments
from destinations import as_superuser, execute
from examples import examples
from fixture_types import Mart, Select
from needs import needs

from demo.embedded.server import free_port
from etl import email_triggers, postgres, user_segments
from etl.errors import SyncError
from etl.init_db import init_db
from etl.plumbing import queries
from etl.prune import prune
from etl.settings import Settings
from etl.status import Flags, status

if TYPE_CHECKING:
    from pathlib import Path

    from demo.embedded import Servers

# No accident, and what an admin means by them cannot be had together with a sync.
REFUSED = ("default_transaction_read_only", "session_replication_role")

# Each is a run of the syncs over a tenth of all settings; settings one by one would be 300 runs.
GROUPS = 10

TIMEOUTS = (
    *("statement_timeout", "lock_timeout", "transaction_timeout"),
    *("idle_session_timeout", "idle_in_transaction_session_timeout"),
)


# Of each what a role has, and what our sessions have.
PINNED = {
    "search_path": ("public", "pg_catalog, pg_temp"),
    "row_security": ("on", "off"),
    "default_transaction_isolation": ("serializable", "read committed"),
    "default_transaction_deferrable": ("on", "off"),
    "exit_on_error": ("on", "off"),
    "default_table_access_method": ("other", "heap"),
    "timezone": ("Pacific/Kiritimati", "UTC"),
    "datestyle": ("German", "ISO, MDY"),
    "intervalstyle": ("iso_8601", "postgres"),
    "extra_float_digits": ("-15", "1"),
    "bytea_output": ("escape", "hex"),
    "standard_conforming_strings": ("off", "on"),
    "array_nulls": ("off", "on"),
    "transform_null_equals": ("on", "off"),
    "random_page_cost": ("40", "1.1"),
    "work_mem": ("64kB", "64MB"),
    "client_min_messages": ("debug5", "error"),
    "client_encoding": ("LATIN1", "UTF8"),
    "statement_timeout": ("1h", "15min"),
    "lock_timeout": ("1h", "30s"),
    "idle_session_timeout": ("1h", "0"),
    "idle_in_transaction_session_timeout": ("1h", "0"),
    "transaction_timeout": ("1h", "0"),
    "client_connection_check_interval": ("1h", "1s"),
}


def test_no_setting_of_the_role_bends_a_result(
    servers: Servers, mart: Mart, select: Select
) -> None:
    """Every setting that a role can have, at its worst."""
    mart(segments(USERS))
    right = _day(select)
    worst = [(row["name"], value) for row in select(SETTINGS) for value in _worst(row)]
    assert len(worst) > 200

    wrong = {}
    for start in range(examples(4, GROUPS)):
        group = dict(worst[start::GROUPS])
        with _set_for(servers, "ROLE airflow", group):
            try:
                came_out: Any = _day(select)
            except SyncError as error:
                came_out = str(error)
        if came_out != right:
            wrong[str(group)] = came_out

    assert wrong == {}


@pytest.mark.parametrize("way", ["straight", "by a pooler that takes no options"])
def test_every_pin_holds_against_the_role(
    way: str, servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that bend no result today."""
    asked = ", ".join(f"current_setting('{name}') AS {name}" for name in PINNED)

    as_superuser(servers, "CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler")
    with (
        _set_for(servers, "ROLE airflow", {name: other for name, (other, _) in PINNED.items()}),
        _pgbouncer(servers) if way != "straight" else nullcontext() as port,
        monkeypatch.context() as setting,
    ):
        setting.setenv("POSTGRES_PORT", str(port or servers.postgres_port))
        (row,) = _rows(f"SELECT {asked}")
    as_superuser(servers, "DROP ACCESS METHOD other")

    assert row == {name: pinned for name, (_, pinned) in PINNED.items()}


def test_a_role_may_have_more_memory_than_a_run_needs(servers: Servers, environment: Path) -> None:
    with _set_for(servers, "ROLE airflow", {"work_mem": "70000kB"}):
        assert _rows("SELECT current_setting('work_mem') AS memory") == [{"memory": "70000kB"}]


def test_a_table_is_streamed_without_workers(servers: Servers, environment: Path) -> None:
    """Its rows are taken one by one, so that workers cost CPU and save no time."""
    workers = "max_parallel_workers_per_gather"
    shard = queries.load("postgres", "create_shard")

    def rows(reader: Any) -> int:
        return int(reader.read_all().num_rows)

    with (
        _set_for(servers, "ROLE airflow", {workers: "4"}),
        postgres.session(Settings.from_environment(), "etl.tests") as session,
    ):
        postgres.execute(session, shard, 0, 1)
        before = postgres.select(session, f"SELECT current_setting('{workers}') AS workers")
        assert postgres.stream(session, "user_segments_current", rows).result() == 0
        after = postgres.select(session, f"SELECT current_setting('{workers}') AS workers")

    assert (before, after) == ([{"workers": "4"}], [{"workers": "0"}])


@pytest.mark.few(1)
@pytest.mark.parametrize("whom", ["ROLE airflow", "DATABASE searchflow"])
def test_an_encoding_that_was_set_makes_no_other_names(
    whom: str, servers: Servers, mart: Mart, select: Select
) -> None:
    mart(segments(USERS))
    right = _day(select)

    for encoding in ("LATIN1", "WIN1252", "SQL_ASCII"):
        with _set_for(servers, whom, {"client_encoding": encoding}):
            assert _day(select) == right


@pytest.mark.few(1)
@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "LATIN9", "SQL_ASCII"])
def test_a_database_of_another_encoding_gets_ids_as_they_are_or_none(
    encoding: str, servers: Servers, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(USERS))

    with _database(servers, encoding, monkeypatch):
        first, again = user_segments.sync(), user_segments.sync()
        mails = email_triggers.sync(force=True)
        ids = {row["user_id"] for row in _rows("SELECT user_id FROM crm.user_segments")}
        mart(segments(f"{USERS}, ('☃', 'regular', 1, 0, 0)"))
        if encoding != "SQL_ASCII":
            with pytest.raises(SyncError, match="encoding of the database cannot hold") as raised:
                user_segments.sync()
            assert "\n" not in str(raised.value)

    assert (first["inserted"], again["unchanged"], mails["inserted"]) == (5, 5, 4)
    assert {"kävijä_1", "suppressed_ä"} <= ids


def test_no_variable_of_the_environment_bends_a_result(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(USERS))
    right = _day(select)
    options = "-c row_security=on -c search_path=public -c datestyle=German -c lock_timeout=1"
    for name, value in {
        "PGCLIENTENCODING": "LATIN1",
        "PGDATESTYLE": "SQL, DMY",
        "PGTZ": "Pacific/Kiritimati",
        "PGGEQO": "off",
        "PGAPPNAME": "another",
        "PGHOSTADDR": "127.0.0.9",
        "PGDATABASE": "another",
        "PGUSER": "another",
        "PGOPTIONS": f"{options} -c client_encoding=LATIN1 -c standard_conforming_strings=off",
    }.items():
        monkeypatch.setenv(name, value)

    assert _day(select) == right


@pytest.mark.few(1)
@pytest.mark.parametrize("setting", TIMEOUTS)
def test_no_timeout_but_ours_cuts_a_session(setting: str, servers: Servers, mart: Mart) -> None:
    """With all that a version has: transaction_timeout came with Postgres 17."""
    with _set_for(servers, "ROLE airflow", {setting: "400"}):  # in ms
        with postgres.session(Settings.from_environment(), "tests") as connection:
            postgres.execute(connection, "SELECT pg_sleep(0.6)")
            connection.commit()
        mart(segments(USERS))
        assert user_segments.sync()["inserted"] == 5


@pytest.mark.few(1)
@pytest.mark.parametrize("setting", ["statement_timeout", "idle_in_transaction_session_timeout"])
def test_no_timeout_cuts_a_login(setting: str, servers: Servers, environment: Path) -> None:
    """Nor in the moment before session.sql lifts it."""
    with _set_for(servers, "ROLE airflow", {setting: "1"}):  # ms
        for _ in range(20):
            assert _rows("SELECT pg_sleep(0.01)::text AS it") == [{"it": ""}]


@pytest.mark.parametrize("whom", ["ROLE airflow", "DATABASE searchflow"])
def test_a_role_that_may_only_read_is_told_so(whom: str, servers: Servers, mart: Mart) -> None:
    mart(segments(USERS))

    with _set_for(servers, whom, {"default_transaction_read_only": "on"}):
        for dry_run in (False, True):
            with pytest.raises(SyncError, match="who set default_transaction_read_only") as raised:
                user_segments.sync(dry_run=dry_run)
            assert "\n" not in str(raised.value)
        status(Flags(), dt.datetime.now(dt.UTC))  # which only reads


def test_a_server_that_takes_no_writes_is_told_by_libpq_as_well(
    servers: Servers, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(USERS))

    with (
        _set_for(servers, "ROLE airflow", {"default_transaction_read_only": "on"}),
        monkeypatch.context() as given,
    ):
        given.setenv("PGTARGETSESSIONATTRS", "read-write")
        with pytest.raises(SyncError, match="session is read-only; it takes no writes: let POST"):
            user_segments.sync()


@pytest.mark.parametrize("wanted", ["standby", "read-only"])
def test_a_server_that_takes_writes_where_none_was_wanted_is_not_blamed(
    wanted: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(USERS))

    with monkeypatch.context() as given:
        given.setenv("PGTARGETSESSIONATTRS", wanted)
        with pytest.raises(SyncError, match="; let PGTARGETSESSIONATTRS be read-write"):
            user_segments.sync()


def test_triggers_that_an_admin_switched_off_are_not_passed_over(
    servers: Servers, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A superuser's session has them on again; another's cannot, and says so."""
    mart(segments(USERS))

    off = {"session_replication_role": "replica"}
    with (
        _set_for(servers, "ROLE airflow", off),
        pytest.raises(SyncError, match="session_replication_role") as raised,
    ):
        user_segments.sync()
    monkeypatch.setenv("POSTGRES_USER", "postgres")
    with _set_for(servers, "ROLE postgres", off):
        (row,) = _rows("SELECT current_setting('session_replication_role') AS is")

    assert "\n" not in str(raised.value)
    assert row == {"is": "origin"}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "table", ["crm.user_segments", "crm.email_queue", "crm.email_suppressions", "etl.sync_runs"]
)
def test_a_policy_that_hides_rows_fails_the_run(table: str, mart: Mart, select: Select) -> None:
    mart(segments(USERS))
    email_triggers.sync(force=True)
    execute(
        f"CREATE POLICY hides ON {table} USING (false) WITH CHECK (true)",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",  # for its owner, too
    )

    module: Any = user_segments if table == "crm.user_segments" else email_triggers
    for dry_run in (False, True):
        with pytest.raises(SyncError, match="hides rows from airflow: give it BYPASSRLS") as raised:
            module.sync(dry_run=dry_run)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("table", ["crm.email_queue", "etl.sync_runs", "etl.rejected_rows"])
def test_a_policy_that_hides_rows_fails_prune(table: str, database: Any) -> None:
    execute(
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
    )

    with pytest.raises(SyncError, match="hides rows from airflow: give it BYPASSRLS"):
        prune(30)


def test_what_the_server_says_of_a_login_is_not_printed(servers: Servers, mart: Mart) -> None:
    """The library of the driver prints it as it comes, control characters and all."""
    mart(segments(USERS))

    with _set_for(servers, "ROLE airflow", {"client_min_messages": "debug5"}):
        finished = command("etl.user_segments", "--json", LOG_FORMAT="text")

    assert finished.returncode == 0
    assert "DEBUG" not in finished.stderr


def test_pgbouncer_lets_a_session_in(
    servers: Servers, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses what only libpq's `options` can say, which session.sql then says alone."""
    mart(segments(USERS))
    right = _day(select)

    with (
        _pgbouncer(servers) as port,
        _set_for(servers, "ROLE airflow", {"client_encoding": "LATIN1", "datestyle": "German"}),
        monkeypatch.context() as setting,
    ):
        setting.setenv("POSTGRES_PORT", str(port))
        came_out = _day(select)
        (path,) = _rows("SELECT current_setting('search_path') AS path")

    assert came_out == right
    assert path == {"path": "pg_catalog, pg_temp"}


# Helpers

USERS = """
    ('kävijä_1', 'at_risk', 3, 1, 12.345), ('ann', 'abandoned_search', 1, 0, 0),
    ('bob', 'high_value', 9, 9, 999999999999.99), ('suppressed_ä', 'at_risk', 1, 1, 1),
    ('never', 'regular', 0, 0, 0.1)
"""
SETTINGS = """
    SELECT name, vartype AS type, setting, min_val, max_val, enumvals
    FROM pg_settings
    -- Those of a transaction are no settings of a role.
    WHERE context IN ('user', 'superuser') AND name NOT LIKE 'transaction\\_%' ORDER BY name
"""
STRINGS = {
    "DateStyle": ["SQL, DMY", "German, YMD"],
    "TimeZone": ["Pacific/Kiritimati", "America/St_Johns"],
    "application_name": ["another"],
    "client_encoding": ["LATIN1", "SQL_ASCII", "WIN1252"],
    "createrole_self_grant": ["set, inherit"],
    "default_text_search_config": ["pg_catalog.german"],
    "restrict_nonsystem_relation_kind": ["view, foreign-table"],
    "search_path": ["", '"$user", public, pg_catalog'],
    "timezone_abbreviations": ["India"],
    "wal_consistency_checking": ["all"],
}
ROWS = """
    SELECT user_id, segment, total_searches, lifetime_value::text, previous_segment
    FROM crm.user_segments ORDER BY user_id
"""
MAILS = """
    SELECT user_id, template, status, payload - 'last_seen_at' AS payload,
        extract(epoch FROM episode_at - now())::int / 7200 AS hours
    FROM crm.email_queue ORDER BY user_id
"""


def _worst(setting: dict[str, Any]) -> list[str]:
    """Values that are unlike the one that the tests' server has."""
    now = setting["setting"]
    if setting["name"] in (*REFUSED, *TIMEOUTS):
        return []
    match setting["type"]:
        case "bool":
            return ["off" if now == "on" else "on"]
        case "enum":
            return [value for value in setting["enumvals"] if value != now]
        case "string":
            return STRINGS.get(setting["name"], [])
    return [setting["min_val"] if now != setting["min_val"] else setting["max_val"]]


def _day(select: Select) -> Any:
    """What a run of the syncs over the same tables says, and what is there then."""
    execute(
        "TRUNCATE crm.user_segments, crm.email_queue, crm.email_suppressions",
        "INSERT INTO crm.email_suppressions VALUES ('suppressed_ä')",
        "INSERT INTO crm.user_segments VALUES"
        " ('never', 'regular', 0, 0, 0.1), ('ann', 'regular', 1, 1, 1)",
    )
    results = [
        user_segments.sync(dry_run=True, force=True),
        user_segments.sync(force=True),
        email_triggers.sync(force=True),
    ]
    for result in results:
        result["run_id"], result["seconds"] = "", 0
    return results, select(ROWS), select(MAILS)


def _rows(sql: str) -> list[dict[str, Any]]:
    with postgres.session(Settings.from_environment(), "tests") as connection:
        return postgres.select(connection, sql)


@contextmanager
def _set_for(servers: Servers, whom: str, settings: dict[str, str]) -> Iterator[None]:
    alter = [f"ALTER {whom} SET {name} = '{value}'" for name, value in settings.items()]
    as_superuser(servers, *alter)
    try:
        yield
    finally:
        # By psql, because a session of ours begins with a query, after which it stays read-only.
        commands = ("SET default_transaction_read_only = off", f"ALTER {whom} RESET ALL")
        subprocess.run([*_psql(servers), *(f"-c{each}" for each in commands)], check=True)


def _psql(servers: Servers) -> list[str]:
    return [*shlex.split(servers.psql.replace("//airflow@", "//postgres@")), "-Xq"]


@contextmanager
def _database(servers: Servers, encoding: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another database, which holds only characters of that encoding, for the block's length."""
    psql = _psql(servers)
    made = f"ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0 OWNER airflow"
    subprocess.run([*psql, "-c", f"CREATE DATABASE other {made}"], check=True)
    try:
        with monkeypatch.context() as setting:
            setting.setenv("POSTGRES_DB", "other")
            init_db()
            yield
    finally:
        subprocess.run([*psql, "-c", "DROP DATABASE other WITH (FORCE)"], check=True)


@contextmanager
def _pgbouncer(servers: Servers) -> Iterator[int]:
    """PgBouncer in session pooling before the tests' Postgres."""
    folder, port = servers.postgres.data.parent, free_port(range(20_000, 26_000))
    users = folder / "bouncer_users.txt"
    users.write_text(f'"airflow" "{servers.environment["POSTGRES_PASSWORD"]}"\n')
    ini = folder / "bouncer.ini"
    ini.write_text(
        f"[databases]\nsearchflow = host=127.0.0.1 port={servers.postgres_port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = trust\n"
        f"auth_file = {users}\nunix_socket_dir =\npool_mode = session\n"
    )
    account = servers.postgres.account
    bouncer = subprocess.Popen([needs("pgbouncer"), "-q", ini], **account)
    try:
        _wait_for(port)
        yield port
    finally:
        bouncer.terminate()
        bouncer.wait(10)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
