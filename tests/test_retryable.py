"""`retryable` on errors: whether a scheduler does well to try again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import redis
from conftest import segments
from fixture_types import Mart

from demo import sample
from demo.embedded import Servers
from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import SyncError
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection

Sync = Callable[[], Any]


def test_a_lost_postgres_is_retryable(environment: Path, servers: Servers) -> None:
    sample.build(environment, 30)
    servers.stop_postgres()
    try:
        assert failure(user_segments.sync).retryable
    finally:
        servers.start_postgres()


def test_a_lost_redis_is_retryable(environment: Path, servers: Servers) -> None:
    sample.build(environment, 30)
    servers.stop_redis()
    try:
        assert failure(recommendations.sync).retryable
    finally:
        servers.start_redis()


def test_a_run_beside_another_is_retryable(mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    other = postgres.connect(Settings.from_environment(), "other")
    lock = "SELECT pg_advisory_lock(hashtextextended('etl.user_segments', 0)) IS NULL AS none"
    postgres.select(other, lock)
    other.commit()
    try:
        assert failure(user_segments.sync).retryable
    finally:
        other.close()


def test_a_locked_warehouse_is_retryable(environment: Path) -> None:
    sample.build(environment, 30)
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(environment)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        try:
            assert failure(user_segments.sync).retryable
        finally:
            writer.stdin.close()


def test_a_held_lock_is_retryable(
    mart: Mart, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    monkeypatch.setenv("POSTGRES_STATEMENT_TIMEOUT", "2")
    postgres.execute(database, "LOCK TABLE crm.user_segments IN SHARE MODE")

    error = failure(user_segments.sync)

    database.rollback()
    assert error.sqlstate in ("55P03", "57014")
    assert error.retryable


@pytest.mark.parametrize(
    "variables",
    [
        {"POSTGRES_PASSWORD": "wrong"},
        {"POSTGRES_USER": "nobody_of_that_name"},
        {"POSTGRES_DB": "none"},
        {"GUARD_MAX_SHRINK": "much"},
        {"DUCKDB_PATH": "/nowhere.duckdb"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_what_somebody_has_to_correct_is_not_retryable(
    variables: dict[str, str], mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert not failure(user_segments.sync).retryable


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE crm.user_segments ADD CONSTRAINT none CHECK (segment <> 'regular')",
        "DROP TABLE crm.user_segments",
        "ALTER TABLE crm.user_segments ALTER COLUMN segment TYPE varchar(2)",
    ],
    ids=["constraint", "no table", "type"],
)
def test_what_the_database_forbids_is_not_retryable(
    sql: str, mart: Mart, database: Connection
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    postgres.execute(database, sql)
    database.commit()

    assert not failure(user_segments.sync).retryable


def test_a_missing_right_is_not_retryable(
    environment: Path, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.build(environment, 30)
    keys.acl_setuser("reader", enabled=True, passwords=["+p"], keys=["*"], commands=["+ping"])
    monkeypatch.setenv("REDIS_USERNAME", "reader")
    for password in ("p", "wrong"):
        monkeypatch.setenv("REDIS_PASSWORD", password)
        assert not failure(recommendations.sync).retryable
    keys.acl_deluser("reader")


def test_a_refusal_and_an_argument_are_not_retryable(environment: Path) -> None:
    sample.build(environment, 30)
    with duckdb.connect(str(environment)) as connection:
        connection.execute("DELETE FROM main_marketing.mart_user_segments")

    assert not failure(email_triggers.sync).retryable
    assert not failure(lambda: email_triggers.sync(dry_run="False")).retryable  # type: ignore[arg-type]


def failure(sync: Sync) -> SyncError:
    """The error of a run that does not go through."""
    with pytest.raises(SyncError) as raised:
        sync()
    return raised.value
