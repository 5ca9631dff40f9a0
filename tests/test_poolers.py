"""Behind PgBouncer, whose sessions belong to everybody: right, alone, and nothing left behind."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from conftest import command, segments
from destinations import as_superuser, last_run
from fixture_types import Mart, Select
from refusing import pgbouncer

from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import AlreadyRunning, SyncError
from etl.init_db import init_db
from etl.prune import prune
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers

SESSIONS = 3  # that the pooler has with Postgres
POOL = f"default_pool_size = {SESSIONS}\nserver_lifetime = 3600\nmax_client_conn = 60"

SEEN = f"{dt.datetime.now(dt.UTC) - dt.timedelta(hours=1):%Y-%m-%d %H:%M}"

# What a program may do to a session and leave there.
MESS = (
    "SET search_path = pg_temp, public",
    "SET statement_timeout = '2s'",
    "SET datestyle = 'German'",
    "SET row_security = on",
    "SET default_transaction_isolation = 'serializable'",
    "SET work_mem = '64kB'",
)

LEFT = """
    SELECT
        current_setting('search_path') AS search_path,
        current_setting('statement_timeout') AS statement_timeout,
        current_setting('lock_timeout') AS lock_timeout,
        current_setting('row_security') AS row_security,
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory') AS locks,
        (SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS tables,
        (SELECT count(*) FROM pg_prepared_statements) AS statements
"""


@pytest.fixture
def pooled(servers: Servers, monkeypatch: pytest.MonkeyPatch, select: Select) -> Iterator[int]:
    """Runs go through PgBouncer in transaction pooling; `select` does not."""
    with pgbouncer(servers, "transaction", POOL) as port, monkeypatch.context() as setting:
        setting.setenv("POSTGRES_PORT", str(port))
        yield port


def test_all_syncs_are_right_behind_transaction_pooling_beside_other_programs(
    pooled: int, mart: Mart, select: Select
) -> None:
    for segment, searches, updated in (("at_risk", 1, 0), ("at_risk", 2, 3_000)):
        mart(users(segment, searches))
        with traffic():
            result = user_segments.sync()
            mails = email_triggers.sync(force=True)

        assert (result["inserted"], result["updated"]) == (3_000 - updated, updated)
        assert (mails["inserted"], mails["updated"]) == (3_000 - updated, updated)
    assert select(
        "SELECT count(*) AS rows, sum(total_searches)::int AS n FROM crm.user_segments"
    ) == [{"rows": 3_000, "n": 6_000}]
    assert prune(30)["etl.sync_runs"] == 0
    assert init_db() == []
    assert command("etl.status").returncode == 0


def test_nothing_is_left_in_the_sessions_of_the_pool(
    pooled: int, mart: Mart, select: Select
) -> None:
    before = each_session(LEFT)
    mart(users("at_risk", 1), "INSERT INTO mart_user_segments (user_id) VALUES (NULL)")

    user_segments.sync(delete_missing=True)
    user_segments.sync(shard=(0, 2), dry_run=True)
    email_triggers.sync(force=True)
    mart(users("at_risk", 2))
    user_segments.sync()
    mart("DELETE FROM mart_user_segments")
    with pytest.raises(SyncError, match="empty"):
        user_segments.sync()

    assert each_session(LEFT) == before


def test_temporary_tables_that_others_left_are_not_in_the_way(pooled: int, mart: Mart) -> None:
    mart(users("at_risk", 1))
    user_segments.sync()
    for name in ("shard", "staging", "gone"):
        each_session(f"CREATE TEMP TABLE {name} AS SELECT 1 AS one")
    mart(users("at_risk", 2))

    assert user_segments.sync(delete_missing=True)["updated"] == 3_000


def test_a_role_that_another_program_left_is_not_that_of_a_run(
    pooled: int, mart: Mart, servers: Servers
) -> None:
    mart(users("at_risk", 1))
    as_superuser(servers, "CREATE ROLE stranger", "GRANT stranger TO airflow")
    try:
        each_session("SET ROLE stranger")

        assert user_segments.sync()["inserted"] == 3_000
        left = each_session("SELECT current_role::text AS role")
        assert left == [[{"role": "stranger"}]] * SESSIONS
    finally:
        each_session("RESET ROLE")
        as_superuser(servers, "DROP ROLE stranger")


def test_two_runs_of_a_sync_never_overlap_in_a_pool(
    pooled: int, mart: Mart, select: Select
) -> None:
    mart(users("regular", 1))

    def one(_: int) -> str:
        try:
            return user_segments.sync()["status"]
        except AlreadyRunning:
            return "busy"

    with ThreadPoolExecutor(6) as threads:
        ended = list(threads.map(one, range(18)))

    assert set(ended) <= {"ok", "busy"}
    assert "ok" in ended
    assert select("SELECT sum(inserted)::int AS n FROM etl.sync_runs") == [{"n": 3_000}]
    assert not select("SELECT FROM etl.sync_runs WHERE status NOT IN ('ok', 'failed')")


def test_a_merge_that_meets_another_writer_is_tried_again_in_a_pool(
    pooled: int, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its savepoint is of the transaction, whichever session that has."""
    mart(users("regular", 1))
    merge = postgres.merge

    def late(connection: postgres.Connection, what: postgres.Merge, *rest: Any) -> dict[str, int]:
        if rest == (True,):
            add_user("u7")
        return merge(connection, what, *rest)

    monkeypatch.setattr(postgres, "merge", late)

    result = user_segments.sync()

    assert (result["inserted"], result["updated"]) == (2_999, 1)
    assert last_run(select)["status"] == "ok"


def test_recommendations_keep_their_ledger_in_a_pool(
    pooled: int, mart: Mart, keys: Any, select: Select
) -> None:
    mart(
        "CREATE TABLE mart_recommendations AS SELECT 'u' || n AS user_id, 'Rome' AS destination,"
        " 0.9 AS score FROM range(10) AS r(n)"
    )

    assert recommendations.sync()["written"] == 10
    assert last_run(select, "recommendations")["status"] == "ok"


def test_session_pooling_serves_as_well(
    servers: Servers, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(users("at_risk", 1))
    with pgbouncer(servers, "session", POOL) as port, monkeypatch.context() as setting:
        setting.setenv("POSTGRES_PORT", str(port))

        assert user_segments.sync()["inserted"] == 3_000
        assert email_triggers.sync()["inserted"] == 3_000


@pytest.mark.parametrize("module", ["etl.user_segments", "etl.init_db", "etl.status"])
def test_statement_pooling_is_refused_in_one_line(
    servers: Servers, mart: Mart, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    mart(users("at_risk", 1))
    with pgbouncer(servers, "statement", POOL) as port:
        finished = command(module, POSTGRES_PORT=str(port), LOG_FORMAT="text")

    assert finished.returncode == 1
    (line,) = [text for text in finished.stderr.splitlines() if text.startswith("etl: ")]
    assert "transaction blocks not allowed in statement pooling mode" in line
    assert "pool_mode = transaction" in line


def users(segment: str, searches: int) -> str:
    """A mart of 3,000 users who were last seen an hour ago."""
    return segments("('x', 'x', 1, 0, 0)") + (
        "; CREATE OR REPLACE TABLE mart_user_segments AS SELECT * EXCLUDE n REPLACE ("
        f"'u' || n AS user_id, '{segment}' AS segment, {searches} AS lifetime_searches,"
        f" TIMESTAMP '{SEEN}' AS last_seen_at, TIMESTAMP '{SEEN}' AS first_seen_at)"
        " FROM mart_user_segments, range(3000) AS r(n)"
    )


def add_user(user_id: str) -> None:
    with postgres.session(Settings.from_environment(), "tests") as other:
        postgres.execute(
            other,
            "INSERT INTO crm.user_segments (user_id, segment, total_searches, total_conversions,"
            " lifetime_value) VALUES ($1, 'x', 0, 0, 0)",
            user_id,
        )
        other.commit()


def each_session(query: str) -> list[Any]:
    """The answers of all sessions of the pool, which are asked at the same time."""
    together = threading.Barrier(SESSIONS)

    def ask(_: int) -> Any:
        with raw() as run:
            run("BEGIN")
            together.wait(30)
            rows = run(query)
            together.wait(30)
            run("COMMIT")
            return rows

    with ThreadPoolExecutor(SESSIONS) as threads:
        return list(threads.map(ask, range(SESSIONS)))


@contextmanager
def raw() -> Iterator[Callable[[str], list[Any]]]:
    """A client that pins nothing, as other programs are."""
    from adbc_driver_postgresql import dbapi

    s = Settings.from_environment()
    uri = (
        f"host={s.postgres_host} port={s.postgres_port} dbname={s.postgres_db}"
        f" user={s.postgres_user} password={s.postgres_password}"
    )

    def run(sql: str) -> list[Any]:
        with connection.cursor() as cursor:
            if not sql.lstrip().startswith("SELECT"):
                cursor.executescript(sql)
                return []
            cursor.execute(sql)
            return list(cursor.fetch_arrow_table().to_pylist())

    quick = {"adbc.postgresql.type_resolver_mode": "builtin"}
    connection = dbapi.connect(uri, db_kwargs=quick, autocommit=True)
    try:
        yield run
    finally:
        connection.close()


@contextmanager
def raw_transaction(run: Callable[[str], list[Any]]) -> Iterator[None]:
    run("BEGIN")
    yield
    run("COMMIT")


@contextmanager
def traffic() -> Iterator[None]:
    """Other programs use the pool meanwhile, and leave their settings in its sessions."""
    over = threading.Event()

    def work() -> None:
        with raw() as run:
            while not over.is_set():
                with raw_transaction(run):
                    for statement in MESS:
                        run(statement)
                with raw_transaction(run):
                    run("SET statement_timeout = 0")
                    run("CREATE TEMP TABLE pg_temp.staging AS SELECT 1 AS user_id")
                    run("DROP TABLE pg_temp.staging")

    with ThreadPoolExecutor(2) as threads:
        working = [threads.submit(work) for _ in range(2)]
        try:
            yield
        finally:
            over.set()
        for one in working:
            one.result(60)
