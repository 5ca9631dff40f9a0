"""Tables of untrusted owners are not touched, and no table's rows are taken for another's."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import command, segments
from destinations import as_superuser, execute
from fixture_types import Mart, Select

from etl import email_triggers, postgres, user_segments
from etl.errors import SyncError
from etl.init_db import init_db
from etl.prune import prune
from etl.status import Flags, status

if TYPE_CHECKING:
    from pathlib import Path

    from demo.embedded import Servers

TABLES = (
    *("crm.user_segments", "crm.email_queue", "crm.email_suppressions"),
    *("etl.sync_runs", "etl.rejected_rows"),
)
PROGRAMS: dict[str, Callable[[], Any]] = {
    "init_db": init_db,
    "user_segments": user_segments.sync,
    "a dry run": lambda: user_segments.sync(dry_run=True),
    "email_triggers": email_triggers.sync,
    "status": lambda: status(Flags(), dt.datetime.now(dt.UTC)),
    "prune": lambda: prune(30),
}


@pytest.fixture
def mallory(servers: Servers, environment: Path, mart: Mart) -> Iterator[None]:
    """A login with CREATE on the database, and a trigger function that tells of its calls."""
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    as_superuser(
        servers,
        "CREATE ROLE mallory LOGIN",
        "GRANT CREATE ON DATABASE searchflow TO mallory",
        "CREATE SCHEMA lair AUTHORIZATION mallory",
        "GRANT ALL ON SCHEMA lair TO PUBLIC",
        "CREATE SEQUENCE lair.called",
        "GRANT ALL ON SEQUENCE lair.called TO PUBLIC",
        "CREATE FUNCTION lair.run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_catalog.nextval('lair.called'); RETURN NULL; END $$",
    )
    yield
    called = "DO $$ BEGIN ASSERT NOT (SELECT is_called FROM lair.called), 'it ran'; END $$"
    try:
        as_superuser(servers, called)
    finally:
        as_superuser(
            servers,
            "DROP SCHEMA lair CASCADE",
            "DROP OWNED BY mallory CASCADE",
            "DROP ROLE mallory",
        )


@pytest.mark.parametrize("schema", ["crm", "etl"])
def test_a_schema_that_somebody_else_made_first_is_not_touched(
    schema: str, servers: Servers, mallory: None
) -> None:
    """Its owner can put another table in the place of any."""
    as_superuser(servers, *_taken_over(schema))

    for program in PROGRAMS:
        assert _refusal(program).startswith(f"schema {schema}, {schema}.")


def test_a_schema_that_somebody_else_makes_just_before_us_is_not_used(
    servers: Servers, mallory: None, monkeypatch: pytest.MonkeyPatch, select: Select
) -> None:
    """init_db has seen that there is none, and then takes what is there for its own."""
    execute("DROP SCHEMA crm CASCADE")
    make = postgres.execute

    def be_second(connection: Any, sql: str) -> None:
        if "CREATE SCHEMA IF NOT EXISTS crm" in sql:
            as_superuser(
                servers,
                "CREATE SCHEMA crm AUTHORIZATION mallory",
                "GRANT ALL ON SCHEMA crm TO PUBLIC",
            )
        make(connection, sql)

    with monkeypatch.context() as race:
        race.setattr(postgres, "execute", be_second)
        assert _refusal("init_db").startswith("schema crm: owned by mallory")

    assert select("SELECT FROM pg_tables WHERE schemaname = 'crm'") == []


@pytest.mark.few(2)
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_an_untrusted_owner_is_not_touched(
    table: str, servers: Servers, mallory: None
) -> None:
    as_superuser(servers, f"ALTER TABLE {table} OWNER TO mallory", _trigger(table))

    for program in PROGRAMS:
        assert _refusal(program).startswith(f"{table}: owned by mallory")


def test_a_function_of_an_untrusted_owner_is_not_called(servers: Servers, mallory: None) -> None:
    as_superuser(servers, "ALTER FUNCTION etl.shard_of OWNER TO mallory")
    try:
        for program in PROGRAMS:
            assert _refusal(program).startswith("function etl.shard_of: owned by mallory")
    finally:
        as_superuser(servers, "ALTER FUNCTION etl.shard_of OWNER TO airflow")


@pytest.mark.parametrize(
    "call", ["EXECUTE FUNCTION lair.run()", "WHEN (lair.is_due()) EXECUTE FUNCTION crm.stamp()"]
)
def test_a_trigger_that_calls_what_an_untrusted_owner_made_is_not_run(
    call: str, servers: Servers, mallory: None
) -> None:
    """Who has the right TRIGGER on a table, as GRANT ALL gives it, can make one."""
    as_superuser(
        servers,
        "CREATE FUNCTION crm.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "ALTER FUNCTION lair.run() OWNER TO mallory",
        "GRANT USAGE ON SCHEMA crm TO mallory",
        "GRANT ALL ON crm.user_segments TO mallory",
        "SET ROLE mallory",
        "CREATE FUNCTION lair.is_due() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_catalog.nextval('lair.called'); RETURN true; END $$",
        f"CREATE TRIGGER t AFTER INSERT ON crm.user_segments FOR EACH ROW {call}",
        "RESET ROLE",
    )

    for program in PROGRAMS:
        assert _refusal(program).startswith("trigger t on crm.user_segments: owned by mallory")


def test_a_partition_of_an_untrusted_owner_is_not_touched(servers: Servers, mallory: None) -> None:
    as_superuser(
        servers,
        "DROP TABLE crm.user_segments",
        "CREATE TABLE crm.user_segments (user_id text PRIMARY KEY) PARTITION BY HASH (user_id)",
        "CREATE TABLE lair.part PARTITION OF crm.user_segments"
        " FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "ALTER TABLE lair.part OWNER TO mallory",
        _trigger("lair.part"),
    )

    assert _refusal("user_segments").startswith("lair.part: owned by mallory")


def test_a_run_that_failed_is_not_recorded_in_an_untrusted_ledger(
    servers: Servers, mallory: None
) -> None:
    """Nor one that was skipped because of it, and recommendations do without their ledger."""
    as_superuser(servers, *_taken_over("etl"))

    finished = command("etl", LOG_FORMAT="text")

    assert finished.returncode == 1
    assert "owned by mallory" in finished.stderr


def test_a_superuser_trusts_no_more_owners(
    servers: Servers, mallory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_superuser(servers, *_taken_over("crm"))
    monkeypatch.setenv("POSTGRES_USER", "postgres")

    assert "owned by mallory" in _refusal("user_segments")


def test_a_role_that_one_may_grant_is_not_trusted_for_that(servers: Servers, mallory: None) -> None:
    """Who makes a role is its member from Postgres 16 on, without its rights."""
    as_superuser(
        servers,
        "GRANT mallory TO airflow WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        *_taken_over("crm"),
    )

    assert "owned by mallory" in _refusal("user_segments")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "trust",
    [
        "ALTER ROLE mallory SUPERUSER",
        "ALTER DATABASE searchflow OWNER TO mallory",
        "GRANT airflow TO mallory",
        "GRANT mallory TO airflow",
        "GRANT searchflow_owner TO mallory",
        "REASSIGN OWNED BY mallory TO pg_database_owner",
    ],
)
def test_an_owner_who_is_trusted_may_be_anybody(
    trust: str, servers: Servers, mallory: None
) -> None:
    as_superuser(
        servers,
        "CREATE ROLE searchflow_owner",
        "ALTER SCHEMA crm OWNER TO mallory",
        "ALTER TABLE crm.email_suppressions OWNER TO mallory",
        trust,
        "GRANT ALL ON SCHEMA crm TO PUBLIC",
        "GRANT ALL ON ALL TABLES IN SCHEMA crm TO PUBLIC",
    )
    try:
        assert init_db() == []
        assert user_segments.sync()["inserted"] == 1
    finally:
        as_superuser(
            servers,
            "ALTER DATABASE searchflow OWNER TO airflow",
            "ALTER SCHEMA crm OWNER TO airflow",
            "ALTER TABLE crm.email_suppressions OWNER TO airflow",
            "DROP ROLE searchflow_owner",
        )


@pytest.mark.few(1)
@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_inherits_from_one_of_ours_is_refused(
    table: str, mart: Mart, select: Select
) -> None:
    """Its rows would be taken for those of the table: counted, compared and deleted."""
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    execute(f"CREATE TABLE crm.archive () INHERITS ({table})")

    for program in PROGRAMS:
        assert _refusal(program).startswith(f"crm.archive inherits from {table}")

    execute(f"ALTER TABLE crm.archive NO INHERIT {table}")
    for run in PROGRAMS.values():
        run()


# Helpers


def _refusal(program: str) -> str:
    """What it says, without its beginning; one line."""
    with pytest.raises(SyncError) as raised:
        PROGRAMS[program]()
    message = str(raised.value)
    assert (raised.value.exit_code, "\n" in message) == (1, False)
    return message.partition("/searchflow): ")[2]


def _trigger(table: str) -> str:
    return (
        f"CREATE TRIGGER run BEFORE INSERT OR UPDATE OR DELETE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION lair.run()"
    )


def _taken_over(schema: str) -> list[str]:
    """A schema as somebody else made it, tables, triggers and all, before the first init_db."""
    tables = [table for table in TABLES if table.startswith(schema)]
    return [
        f"ALTER SCHEMA {schema} OWNER TO mallory",
        *(f"ALTER TABLE {table} OWNER TO mallory" for table in tables),
        *map(_trigger, tables),
        f"GRANT ALL ON SCHEMA {schema} TO PUBLIC",
        f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO PUBLIC",
    ]
