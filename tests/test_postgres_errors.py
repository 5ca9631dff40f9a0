"""What Postgres says to a statement: names stay, values go, and each cause has its next step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pytest
from conftest import segments
from destinations import committed, execute
from fixture_types import Mart
from pace import HANG, soon
from refusing import german as start_german

from etl import postgres, user_segments, warehouse
from etl.errors import ConnectionLost, SyncError
from etl.settings import Settings

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection as Raw

    from demo.embedded import Servers
    from etl.postgres import Connection

USER = "anna.test@example.com"
BIG = "987654321012345"

SETUP = f"""
CREATE TYPE pg_temp.mood AS ENUM ('ok');

CREATE DOMAIN pg_temp.plain AS text CONSTRAINT no_at CHECK (VALUE !~ '@');

CREATE TEMP TABLE t (
    id text CONSTRAINT t_key PRIMARY KEY, n int NOT NULL CONSTRAINT positive CHECK (n > 0)
);

CREATE TEMP TABLE child (id text CONSTRAINT parent REFERENCES t);

CREATE TEMP TABLE part (id text) PARTITION BY LIST (id);

INSERT INTO t VALUES ('{USER}', 1);

CREATE FUNCTION pg_temp.raises() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION E'\\x1b[2J% is odd', NEW.id USING ERRCODE = NEW.code, DETAIL = NEW.id;
END $$;

CREATE TEMP TABLE raising (id text, code text);

CREATE TRIGGER raises BEFORE INSERT ON raising FOR EACH ROW EXECUTE FUNCTION pg_temp.raises();

CREATE FUNCTION pg_temp.dynamic(name text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
    EXECUTE format('SELECT %I', name); RETURN 1;
END $$;

CREATE FUNCTION pg_temp.number(text) RETURNS int LANGUAGE sql AS 'SELECT $1::int'
"""

# A statement that fails over a value, and what is told of it in any language.
VALUES = {
    "number": (f"SELECT x::int FROM (VALUES ('{USER}')) v (x)", "SQLSTATE 22P02"),
    "range": (f"SELECT x::int FROM (VALUES ('{BIG}')) v (x)", "out of range for its column"),
    "time": (f"SELECT x::timestamptz FROM (VALUES ('{USER}')) v (x)", "SQLSTATE 22007"),
    "json": (f"SELECT x::jsonb FROM (VALUES ('{USER}')) v (x)", "SQLSTATE 22P02"),
    "enum": (f"SELECT x::pg_temp.mood FROM (VALUES ('{USER}')) v (x)", "SQLSTATE 22P02"),
    "regex": (f"SELECT 'a' ~ x FROM (VALUES ('{USER}[')) v (x)", "SQLSTATE 2201B"),
    "domain": (f"SELECT x::pg_temp.plain FROM (VALUES ('{USER}')) v (x)", "no_at"),
    "unique": (f"INSERT INTO t VALUES ('{USER}', 2)", "t_key"),
    "check": (f"INSERT INTO t VALUES ('{USER}!', -1)", "positive"),
    "null": (f"INSERT INTO t VALUES ('{USER}!', NULL)", "not-null"),
    "foreign": (f"INSERT INTO child VALUES ('{USER}!')", "parent"),
    "partition": (f"INSERT INTO part VALUES ('{USER}')", "part"),
    "in a function": (f"SELECT pg_temp.number('{USER}')", "SQLSTATE 22P02"),
    "dynamic": (f"SELECT pg_temp.dynamic('{USER}')", "dynamic raised an error (SQLSTATE 42703)"),
    # RAISE may bear any code, also one whose messages are safe when they are the server's own.
    **{
        f"raise {code}": (
            f"INSERT INTO raising VALUES ('{USER}', '{code}')",
            f"raises raised an error (SQLSTATE {code})",
        )
        for code in ("P0001", "23514", "42501", "53400", "57014", "XX000", "U0001")
    },
}


@pytest.fixture(scope="module", params=["English", "German"])
def session(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Connection]:
    """A session with tables that refuse what they get, on a server of either language."""
    if request.param == "English":
        yield from _session(servers, servers.postgres_port)
    else:
        with start_german(servers) as german:
            yield from _session(servers, german.port)


@pytest.mark.few(14)
@pytest.mark.parametrize("kind", VALUES)
def test_an_error_names_objects_and_never_a_value(session: Connection, kind: str) -> None:
    statement, told = VALUES[kind]

    with pytest.raises(SyncError) as failed:
        postgres.select(session, statement)
    session.rollback()

    cause = failed.value.__cause__
    everything = f"{failed.value} {failed.value.__dict__} {cause!r} {vars(cause) if cause else ''}"
    assert not [value for value in (USER, "anna", BIG, "\x1b", "DETAIL") if value in everything]
    assert told.lower() in str(failed.value).lower()
    assert "\n" not in str(failed.value)
    assert not isinstance(failed.value, ConnectionLost)


def test_a_column_that_copy_was_at_is_named(database: Connection) -> None:
    batches = warehouse.to_batches([pl.DataFrame({"id": ["a\0b"]})])

    with pytest.raises(SyncError, match=r"encoding does not allow \(column id, SQLSTATE 22021\)"):
        postgres.copy_to_temp(database, "staging", batches)


def test_a_stream_that_breaks_is_told_without_what_it_said(database: Connection) -> None:
    """ADBC puts the traceback of a generator, words and all, into its error."""

    def broken() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"id": ["a"]})
        raise ValueError(f"Connection refused by {USER}")

    reader = pa.RecordBatchReader.from_batches(pa.schema([("id", pa.string())]), broken())

    def copy(raw: Raw) -> None:
        with raw.cursor() as cursor:
            cursor.adbc_ingest("broken", reader, mode="create", temporary=True)

    with pytest.raises(SyncError) as failed:
        database.call(copy)

    assert str(failed.value).endswith("/searchflow): nanoarrow call failed")
    assert USER not in repr(failed.value.__cause__)
    assert not isinstance(failed.value, ConnectionLost)


# What somebody did to the target, and what the run says to that.
COMPARE = "; compare the table with sql/postgres/schema.sql, and alter its column"
TARGETS = {
    "enum": (
        (
            "CREATE TYPE crm.seg AS ENUM ('regular', 'at_risk')",
            "ALTER TABLE crm.user_segments ALTER segment TYPE crm.seg USING segment::crm.seg",
        ),
        COMPARE,
    ),
    "narrow text": (("ALTER TABLE crm.user_segments ALTER segment TYPE varchar(3)",), COMPARE),
    "narrow number": (("ALTER TABLE crm.user_segments ALTER total_searches TYPE int2",), COMPARE),
    "no key": (
        ("ALTER TABLE crm.user_segments DROP CONSTRAINT user_segments_pkey",),
        "; the table lacks the key that sql/postgres/schema.sql gives it",
    ),
    "no table": (("DROP TABLE crm.user_segments",), "; run `python -m etl.init_db`"),
    "no column": (
        ("ALTER TABLE crm.user_segments DROP synced_at",),
        "; run `python -m etl.init_db`",
    ),
    "a rule": (
        ("ALTER TABLE crm.user_segments ADD CONSTRAINT few CHECK (total_searches < 9)",),
        'violates check constraint "few" (crm.user_segments); the mart breaks a rule of the table',
    ),
    "a rule of the ledger": (
        ("ALTER TABLE etl.sync_runs ADD CONSTRAINT few CHECK (extracted <> 1)",),
        'violates check constraint "few" (etl.sync_runs); the constraint is not of sql/postgres/',
    ),
    "no right": (
        ("REVOKE SELECT ON crm.user_segments FROM airflow",),
        "permission denied for table user_segments; grant it to airflow",
    ),
    "a policy": (
        (
            "ALTER TABLE crm.user_segments ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE crm.user_segments FORCE ROW LEVEL SECURITY",
        ),
        "; a policy hides rows from airflow: give it BYPASSRLS, or use another role",
    ),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_does_not_fit_is_told_with_what_to_do(mart: Mart, target: str) -> None:
    changes, said = TARGETS[target]
    execute(*changes)
    mart(segments("('a', 'high_value', 40_000, 0, 0)"))

    with pytest.raises(SyncError) as failed:
        user_segments.sync()

    assert said in str(failed.value)
    assert failed.value.__class__ is SyncError


# A statement that meets a limit, and what to do.
LIMITS = {
    "read-only": (
        ("SET TRANSACTION READ ONLY", "CREATE TABLE crm.x (a int)"),
        "; it takes no writes: let POSTGRES_HOST be the primary",
    ),
    "locks": (
        ("SELECT pg_advisory_xact_lock(n)::text FROM generate_series(1, 200000) AS n",),
        "out of shared memory; give the server memory or, where locks are short, raise max_locks",
    ),
    "time": (
        ("SET LOCAL statement_timeout = '50ms'", "SELECT pg_sleep(5)"),
        "(POSTGRES_STATEMENT_TIMEOUT)",
    ),
    "encoding": (
        ("SELECT convert_to(chr(1103), 'LATIN1')",),
        "; use a database in UTF8 (SHOW server_encoding), or correct the mart",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_is_met_is_told_with_what_to_do(database: Connection, limit: str) -> None:
    (*before, last), said = LIMITS[limit]
    for statement in before:
        postgres.execute(database, statement)

    with pytest.raises(SyncError) as failed:
        postgres.select(database, last)
    database.rollback()

    assert said in str(failed.value)
    assert not isinstance(failed.value, ConnectionLost)  # which a run would try again at once


def test_whoever_is_cancelled_is_told_so(database: Connection) -> None:
    (me,) = postgres.select(database, "SELECT pg_backend_pid() AS pid")
    cancel = f"SELECT pg_cancel_backend({me['pid']})::text AS done"

    sleeps = f"SELECT FROM pg_stat_activity WHERE pid = {me['pid']} AND wait_event = 'PgSleep'"

    def later() -> None:
        assert soon(lambda: bool(committed(sleeps)), HANG)
        execute(cancel)

    threading.Thread(target=later).start()
    with pytest.raises(SyncError, match="; somebody cancelled it"):
        postgres.select(database, "SELECT pg_sleep(60)::text AS done")


# Helpers


def _session(servers: Servers, port: int) -> Iterator[Connection]:
    """Tables that live and die with the session."""
    environment = {**servers.environment, "POSTGRES_PORT": str(port), "DUCKDB_PATH": "none"}
    with postgres.session(Settings.from_environment(environment), "tests") as connection:
        for statement in SETUP.split(";\n\n"):
            postgres.execute(connection, statement)
        connection.commit()
        yield connection
