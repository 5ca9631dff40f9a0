"""init_db: what is missing is made, what is there is left alone, and nobody waits for it."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import redis
from conftest import command, segments
from fixture_types import Mart, Select
from pace import HANG, in_time

from demo.embedded import Servers
from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import SyncError
from etl.init_db import init_db
from etl.plumbing import queries
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection


@pytest.mark.every_sync
def test_an_empty_database_gets_every_table(database: Connection, select: Select) -> None:
    _do(database, "DROP SCHEMA crm, etl CASCADE")

    made = init_db()

    tables = select(
        "SELECT schemaname || '.' || tablename AS name FROM pg_tables"
        " WHERE schemaname IN ('crm', 'etl') ORDER BY name"
    )
    schema = queries.load("postgres", "schema")
    told = re.findall(r"^CREATE TABLE IF NOT EXISTS (\S+)", schema, re.MULTILINE)
    assert [table["name"] for table in tables] == sorted(told)
    assert {"crm.email_queue", "crm.user_segments", "etl.sync_runs"} <= set(told)
    assert {"crm", "etl", "crm.user_segments", "crm.email_queue_open"} <= set(made)
    assert "crm.user_segments.synced_at" not in made  # it came with its table


def test_the_columns_of_user_segments_are_those_the_crm_was_promised(select: Select) -> None:
    columns = select(
        "SELECT column_name AS name, udt_name AS type, is_nullable AS null"
        " FROM information_schema.columns"
        " WHERE table_schema = 'crm' AND table_name = 'user_segments' ORDER BY ordinal_position"
    )

    assert [tuple(column.values()) for column in columns] == [
        ("user_id", "text", "NO"),
        ("segment", "text", "NO"),
        ("total_searches", "int8", "NO"),
        ("total_conversions", "int8", "NO"),
        ("lifetime_value", "numeric", "NO"),
        ("previous_segment", "text", "YES"),
        ("segment_changed_at", "timestamptz", "NO"),
        ("synced_at", "timestamptz", "NO"),
    ]


def test_an_older_table_gets_its_columns_and_keeps_its_rows(
    database: Connection, mart: Mart, select: Select
) -> None:
    _do(database, "DROP TABLE crm.user_segments", OLD_TABLE, OLD_ROWS)
    before = select("SELECT ctid::text, * FROM crm.user_segments ORDER BY user_id")

    made = init_db()

    assert made == ADDED_COLUMNS
    assert {"crm.user_segments.previous_segment", "crm.user_segments.synced_at"} <= set(made)
    after = select("SELECT ctid::text, * FROM crm.user_segments ORDER BY user_id")
    assert [{name: row[name] for name in before[0]} for row in after] == before

    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'at_risk', 2, 1, 3.5), ('c', 'new', 1, 0, 0)"))
    result = user_segments.sync()

    assert (result["inserted"], result["updated"], result["unchanged"]) == (1, 1, 1)
    assert select("SELECT previous_segment FROM crm.user_segments WHERE user_id = 'b'") == [
        {"previous_segment": "high_value"}
    ]


def test_an_older_ledger_gets_its_columns_and_a_run_needs_them(
    database: Connection, mart: Mart
) -> None:
    columns = ("unmapped", "warning")
    _do(database, *(f"ALTER TABLE etl.sync_runs DROP COLUMN {column}" for column in columns))
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    with pytest.raises(SyncError, match="init_db"):
        email_triggers.sync()

    assert init_db() == [f"etl.sync_runs.{column}" for column in columns]

    assert email_triggers.sync()["inserted"] == 1


def test_a_queue_of_before_is_brought_up_beside_a_worker_that_has_not_committed(
    database: Connection, mart: Mart, select: Select
) -> None:
    _do(
        database,
        "DROP TABLE crm.email_queue, crm.email_suppressions, crm.email_templates,"
        " crm.email_allowlist",
        *(f"DROP FUNCTION crm.{name}" for name in ("email_cap_left", "email_retry_wait")),
        "DROP FUNCTION crm.email_idempotency_key, crm.record_sent_email",
        *OLD_QUEUE,
    )

    made = init_db()
    again = init_db()

    assert {"crm.email_queue.not_before", "crm.email_queue_due", "crm.email_templates"} <= set(made)
    assert again == []
    assert select("SELECT template FROM crm.email_suppressions") == [{"template": "*"}]
    claimed = postgres.query(database, "claim_emails", 9, "w")
    database.commit()
    assert [(mail["user_id"], len(mail["idempotency_key"])) for mail in claimed] == [("b", 64)]
    mart(segments("('a', 'at_risk', 1, 0, 0), ('c', 'at_risk', 1, 0, 0)"))
    assert email_triggers.sync()["inserted"] == 1


def test_an_index_of_a_table_in_use_makes_no_writer_wait(
    database: Connection, servers: Servers
) -> None:
    """A worker's transaction is open all the while, and another worker claims meanwhile."""
    _do(database, "DROP INDEX crm.email_queue_due, crm.email_queue_key")
    _do(
        database,
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        " SELECT 'u' || n, 'x', 'epoch', 1, '{}' FROM generate_series(1, 5) AS n",
    )
    (first,) = postgres.query(database, "claim_emails", 1, "w1")

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(init_db)
        with postgres.session(Settings.from_environment(), "w2") as other:
            postgres.execute(other, "SET LOCAL lock_timeout = '5s'")
            while not making.done() and not postgres.query(other, "claim_emails", 1, "w2"):
                time.sleep(0.05)
            (second,) = postgres.select(other, "SELECT count(*) AS n FROM crm.email_queue")
            other.commit()
        database.commit()
        made = making.result(60)

    assert made == ["crm.email_queue_due", "crm.email_queue_key"]
    assert (first["user_id"], second["n"]) == ("u1", 5)
    assert init_db() == []


def test_an_index_whose_building_was_cut_is_built_anew(
    database: Connection, servers: Servers, select: Select
) -> None:
    superuser = postgres.connect(_superuser(servers), "tests")
    spoil = (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'crm.email_queue_due'::regclass"
    )
    _do(superuser, spoil)
    superuser.close()

    assert init_db() == ["crm.email_queue_due"]
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'crm.email_queue_due'::regclass"
    assert select(valid) == [{"indisvalid": True}]


def test_what_is_missing_is_made_alone(database: Connection) -> None:
    _do(database, "DROP INDEX crm.email_queue_due", "DROP TABLE etl.rejected_rows")

    assert init_db() == [
        "crm.email_queue_due",
        "etl.rejected_rows",
        "etl.rejected_rows_run",
        "etl.rejected_rows_key",
    ]
    assert init_db() == []


def test_a_run_with_nothing_to_do_waits_for_no_lock(database: Connection) -> None:
    for table in TABLES:
        postgres.execute(database, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")

    finished = command("etl.init_db")  # to wait for a lock ends in an error

    assert (finished.returncode, finished.stdout) == (0, "nothing to do\n")
    assert init_db() == []
    database.rollback()


def test_a_run_with_nothing_to_do_takes_no_lock(
    database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []
    monkeypatch.setattr(postgres, "execute", lambda _, sql, *__: executed.append(sql))

    init_db()

    assert executed == []


def test_ddl_behind_a_long_lock_gives_up_after_two_seconds(
    database: Connection, select: Select
) -> None:
    _do(database, "DROP TABLE crm.user_segments", OLD_TABLE, OLD_ROWS, "DROP TABLE etl.sync_runs")
    postgres.execute(database, "LOCK TABLE crm.user_segments IN ACCESS SHARE MODE")

    begun = time.monotonic()
    with pytest.raises(SyncError) as raised:
        init_db()
    waited = time.monotonic() - begun
    database.rollback()

    assert 1.9 < waited < 20  # others give up after 30
    assert "gave up making crm.user_segments.previous_segment" in str(raised.value)
    assert "nothing was made, run it again later" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1
    assert select("SELECT to_regclass('etl.sync_runs')::text AS made") == [{"made": None}]
    assert init_db() == [*ADDED_COLUMNS, "etl.sync_runs", "etl.sync_runs_recent"]


def test_two_at_once_do_not_get_in_each_others_way(
    database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.init_db._PATIENCE", HANG)  # the one that makes all takes its time
    for _ in range(5):
        _do(database, "DROP SCHEMA crm, etl CASCADE")
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: init_db(), range(4)))

        assert sorted(map(bool, made)) == [False, False, False, True]


def test_a_role_without_rights_is_told_so(
    database: Connection, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    _do(database, "DROP SCHEMA crm, etl CASCADE")
    superuser = postgres.connect(_superuser(servers), "tests")
    _do(superuser, "CREATE ROLE plain LOGIN PASSWORD 'x'")
    try:
        with monkeypatch.context() as other:
            other.setenv("POSTGRES_USER", "plain")
            other.setenv("POSTGRES_PASSWORD", "x")
            finished = command("etl.init_db")
    finally:
        _do(superuser, "DROP ROLE plain")
        superuser.close()

    assert (finished.returncode, finished.stdout, finished.stderr.count("\n")) == (1, "", 1)
    assert "permission denied for database searchflow" in finished.stderr
    assert "plain" in finished.stderr


def test_a_database_of_before_is_brought_up_without_a_wait_that_anybody_notices(
    database: Connection, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads the old table for a second; who comes meanwhile hardly waits."""
    _do(database, "DROP TABLE crm.email_queue, crm.email_suppressions", *OLD_QUEUE)
    monkeypatch.setattr("etl.init_db._PATIENCE", HANG)  # the reader stays as long as that takes
    settings = Settings.from_environment()
    with (
        postgres.session(settings, "reader") as reader,
        postgres.session(settings, "writer") as writer,
        ThreadPoolExecutor() as pool,
    ):
        postgres.select(reader, "SELECT user_id FROM crm.email_suppressions")
        postgres.select(reader, "SELECT user_id FROM crm.email_queue")
        making = pool.submit(init_db)
        waits = []
        for number in range(6):
            for insert in WRITES:
                begun = time.monotonic()
                postgres.execute(writer, "SET LOCAL lock_timeout = '5s'")
                postgres.execute(writer, insert.format(number))
                writer.commit()
                waits.append(time.monotonic() - begun)
            time.sleep(0.1)
        assert not making.done()
        reader.rollback()

        made = making.result(HANG)

    in_time(median(waits), 0.1)
    assert "crm.email_suppressions.email_suppressions_key" in made
    assert init_db() == []
    key = "SELECT pg_get_constraintdef(oid) AS key FROM pg_constraint WHERE conname = '{}'"
    assert select(key.format("email_suppressions_key")) == [
        {"key": "PRIMARY KEY (user_id, template)"}
    ]
    assert select(key.format("email_suppressions_pkey")) == []
    assert select("SELECT count(*) AS n FROM crm.email_suppressions") == [{"n": 7}]


WRITES = (
    "INSERT INTO crm.email_suppressions (user_id) VALUES ('n{}')",
    "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
    " VALUES ('n{}', 'win_back', 'epoch', 3, '{{}}')",
)


# The command


def test_the_command_says_what_it_made(database: Connection) -> None:
    _do(database, "DROP TABLE crm.email_suppressions")

    first, second = command("etl.init_db"), command("etl.init_db")

    assert (first.returncode, first.stdout) == (0, "made crm.email_suppressions\n")
    assert (second.returncode, second.stdout) == (0, "nothing to do\n")
    assert first.stderr == second.stderr == ""


@pytest.mark.parametrize(("word", "code"), [("--dry-run", 2), ("crm", 2), ("--help", 0)])
def test_the_command_takes_no_arguments(
    word: str, code: int, database: Connection, select: Select
) -> None:
    _do(database, "DROP TABLE crm.email_suppressions")

    finished = command("etl.init_db", word)

    assert finished.returncode == code
    assert (finished.stdout == "") == (code == 2)
    assert finished.stderr.count("\n") == (1 if code == 2 else 0)
    assert select("SELECT to_regclass('crm.email_suppressions')::text AS t") == [{"t": None}]


# Syncs without their tables

ADDED_COLUMNS = re.findall(
    r"^-- makes: (crm\.user_segments\.\w+)$", queries.load("postgres", "schema"), re.MULTILINE
)

# As the first version of the service made it.
OLD_TABLE = """
    CREATE TABLE crm.user_segments (
        user_id text PRIMARY KEY, segment text, total_searches bigint, total_conversions bigint,
        lifetime_value numeric(14, 2)
    )
"""


# As 0.1.0 made it.
OLD_QUEUE = (
    """CREATE TABLE crm.email_queue (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text COLLATE "C" NOT NULL,
        template text COLLATE "C" NOT NULL, episode_at timestamptz NOT NULL,
        priority smallint NOT NULL, payload jsonb NOT NULL, status text NOT NULL DEFAULT 'pending',
        reason text, attempts integer NOT NULL DEFAULT 0, worker text, claimed_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(), sent_at timestamptz,
        UNIQUE (user_id, template, episode_at))""",
    "CREATE INDEX email_queue_claim ON crm.email_queue (priority, created_at, id)"
    " WHERE status = 'pending'",
    """CREATE TABLE crm.email_suppressions (user_id text COLLATE "C" PRIMARY KEY, reason text,
        since timestamptz NOT NULL DEFAULT now())""",
    "INSERT INTO crm.email_suppressions (user_id) VALUES ('a')",
    "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
    " VALUES ('a', 'win_back', 'epoch', 3, '{}'), ('b', 'win_back', 'epoch', 3, '{}')",
)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param("DROP SCHEMA crm, etl CASCADE", id="no schema"),
        pytest.param("DROP TABLE crm.user_segments, crm.email_queue", id="no target"),
        pytest.param("DROP TABLE etl.sync_runs", id="no ledger"),
        pytest.param(
            f"DROP TABLE crm.user_segments; {OLD_TABLE}; DROP TABLE crm.email_queue",
            id="old tables",
        ),
    ],
)
@pytest.mark.parametrize("module", [user_segments, email_triggers])
def test_a_sync_without_its_tables_names_init_db(
    module: Any, spoil: str, mart: Mart, database: Connection
) -> None:
    mart(segments("('a', 'abandoned_search', 3, 1, 9.5)"))
    _do(database, *spoil.split("; "))

    with pytest.raises(SyncError) as raised:
        module.sync()

    assert "run `python -m etl.init_db`" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (raised.value.exit_code, raised.value.status) == (1, "failed")

    init_db()
    assert module.sync()["inserted"] == 1


def test_recommendations_do_without_tables(
    mart: Mart, database: Connection, keys: redis.Redis
) -> None:
    mart(
        "CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Rome' AS destination, 1 score"
    )
    _do(database, "DROP SCHEMA crm, etl CASCADE")

    assert recommendations.sync()["written"] == 1
    assert keys.keys() == [b"reco:a"]


# The file by itself


def test_the_schema_runs_with_psql_as_well_and_twice(
    servers: Servers, database: Connection, select: Select
) -> None:
    made_by_init_db = _shape(select)
    _do(database, "DROP SCHEMA crm, etl CASCADE")
    psql = [*shlex.split(servers.psql), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-q"]
    psql += ["-f", str(queries.ROOT / "postgres" / "schema.sql")]

    runs = [subprocess.run(psql, capture_output=True, text=True, check=False) for _ in range(2)]

    assert [(run.returncode, run.stdout) for run in runs] == [(0, ""), (0, "")], runs
    assert "ERROR" not in runs[0].stderr + runs[1].stderr
    assert _shape(select) == made_by_init_db
    assert init_db() == []


# Helpers

TABLES = (
    *("crm.user_segments", "crm.email_queue", "crm.email_suppressions"),
    *("etl.sync_runs", "etl.rejected_rows"),
)

OLD_ROWS = """
    INSERT INTO crm.user_segments VALUES ('a', 'regular', 1, 0, 0), ('b', 'high_value', 2, 1, 3.5)
"""


def _do(connection: Connection, *statements: str) -> None:
    for statement in statements:
        postgres.execute(connection, statement)
    connection.commit()


def _superuser(servers: Servers) -> Settings:
    return Settings.from_environment({**servers.environment, "POSTGRES_USER": "postgres"})


def _shape(select: Select) -> list[dict[str, Any]]:
    """Every column, constraint and index of the service's tables."""
    return select("""
        SELECT attrelid::regclass::text AS of, attname::text AS what,
               format_type(atttypid, atttypmod) || ' ' || attnotnull AS how
        FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('crm', 'etl') AND attnum > 0
        UNION ALL
        SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(c.oid)
        FROM pg_constraint AS c JOIN pg_namespace AS n ON n.oid = c.connamespace
        WHERE n.nspname IN ('crm', 'etl')
        UNION ALL
        SELECT tablename::text, indexname::text, indexdef FROM pg_indexes
        WHERE schemaname IN ('crm', 'etl')
        ORDER BY 1, 2, 3
    """)
