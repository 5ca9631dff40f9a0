"""`etl.cancel()` ends the runs of this process: rolled back at once, `cancelled` in the ledger."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from conftest import segments
from fixture_types import Mart, Select
from pace import HANG, soon, within

import etl
from demo import sample
from demo.embedded import Servers
from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import Cancelled, SyncError
from etl.plumbing.threads import in_thread
from etl.settings import Settings
from etl.warehouse import file

if TYPE_CHECKING:
    from pathlib import Path

    from etl.postgres import Connection


STATUS = "SELECT sync, status, error FROM etl.sync_runs ORDER BY started_at"


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("module", "table"),
    [(user_segments, "crm.user_segments"), (email_triggers, "crm.email_queue")],
)
def test_a_run_that_waits_for_a_lock_is_cancelled_from_another_thread(
    module: ModuleType, table: str, environment: Path, database: Connection, select: Select
) -> None:
    sample.build(environment, 300)
    with locked(database, table):
        run = in_thread(module.sync)
        assert soon(lambda: waiting(database), HANG)
        with within(3):
            assert etl.cancel() == 1
            stopped = run.exception(HANG)

    assert isinstance(stopped, Cancelled)
    assert stopped.result is not None
    assert stopped.result["status"] == "cancelled"
    name = module.__name__.removeprefix("etl.")
    assert [tuple(row.values()) for row in select(STATUS)] == [
        (name, "cancelled", "cancelled by etl.cancel()")
    ]
    assert select(f"SELECT FROM {table}") == []
    assert module.sync()["status"] == "ok"  # no lock is left


def test_a_handler_of_a_signal_cancels_the_run_in_its_own_thread(
    mart: Mart, database: Connection, select: Select
) -> None:
    """Airflow calls `on_kill` so: on top of the sync, in the thread that it runs in."""
    mart(segments("('a', 'regular', 1, 0, 0)"))
    me = threading.get_ident()
    with locked(database, "crm.user_segments"), handled(lambda: etl.cancel("Airflow")):
        in_thread(lambda: kill_once_it_waits(me, database))
        with pytest.raises(Cancelled, match="Airflow"):
            user_segments.sync()

    assert [row["error"] for row in select(STATUS)] == ["cancelled by Airflow"]
    assert select("SELECT FROM crm.user_segments") == []


def test_a_run_that_waits_for_another_is_cancelled(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    other = postgres.connect(Settings.from_environment(), "other")
    lock = "SELECT pg_advisory_lock(hashtextextended('etl.user_segments', 0)) IS NULL AS none"
    postgres.select(other, lock)
    other.commit()
    run = in_thread(lambda: user_segments.sync(wait=HANG))
    try:
        assert soon(lambda: etl.cancel() == 1, HANG)
        with within(3):
            assert isinstance(run.exception(HANG), Cancelled)
    finally:
        other.close()
    assert select("SELECT FROM crm.user_segments") == []


def test_a_run_that_waits_for_a_lost_server_is_cancelled(
    environment: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.build(environment, 300)
    monkeypatch.setenv("RETRY_SECONDS", f"{HANG}")
    servers.stop_redis()
    try:
        run = in_thread(recommendations.sync)
        assert soon(lambda: etl.cancel() == 1, HANG)
        with within(3):
            assert isinstance(run.exception(HANG), Cancelled)
    finally:
        servers.start_redis()


def test_a_run_that_reads_its_mart_is_cancelled_between_two_parts(
    environment: Path, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.build(environment, 300)
    transform = user_segments.transform
    monkeypatch.setattr(
        user_segments, "transform", lambda part: in_thread(etl.cancel).result() and transform(part)
    )
    with pytest.raises(Cancelled):
        user_segments.sync()

    assert [row["status"] for row in select(STATUS)] == ["cancelled"]
    assert select("SELECT FROM crm.user_segments") == []


def test_a_run_whose_mart_takes_long_to_compute_is_cancelled_at_once(mart: Mart) -> None:
    mart(
        segments("('a', 'regular', 1, 0, 0)").replace("mart_user_segments", "made"),
        """
        CREATE VIEW mart_user_segments AS
        SELECT made.* REPLACE (at_last AS user_id)
        FROM made, (SELECT max(hash(range))::VARCHAR AS at_last FROM range(1000000000000))
        """,
    )
    run = in_thread(user_segments.sync)
    assert soon(file._OPEN_LOCK.locked, HANG)

    assert etl.cancel() == 1
    with within(2):
        assert isinstance(run.exception(HANG), Cancelled)


def test_without_a_run_nothing_is_cancelled(mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))

    assert etl.cancel() == 0
    assert user_segments.sync()["inserted"] == 1
    assert etl.cancel() == 0


@contextmanager
def locked(database: Connection, table: str) -> Iterator[None]:
    """Hold a lock that lets a sync come as far as its merge."""
    postgres.execute(database, f"LOCK TABLE {table} IN SHARE MODE")
    try:
        yield
    finally:
        database.rollback()


@contextmanager
def handled(work: Callable[[], object]) -> Iterator[None]:
    """Let SIGUSR1 do this work."""
    before = signal.signal(signal.SIGUSR1, lambda *_: work())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def waiting(database: Connection) -> bool:
    """Whether somebody waits for a lock."""
    return bool(postgres.select(database, "SELECT FROM pg_locks WHERE NOT granted"))


def kill_once_it_waits(thread: int, database: Connection) -> None:
    """Send the signal that `handled` listens to."""
    if soon(lambda: waiting(database), HANG):
        signal.pthread_kill(thread, signal.SIGUSR1)


def test_a_run_that_is_cancelled_while_a_large_mart_is_read_ends_in_peace(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that are not read to their end nothing stays behind."""
    mart(
        segments("('u', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        " FROM mart_user_segments, range(200000) AS r(n)",
    )
    monkeypatch.setattr("etl.warehouse.stream.BATCH_ROWS", 2_048)
    reshape, calls = user_segments.transform, iter(range(100))

    def cancels(rows: Any) -> Any:
        if next(calls) % 10 == 3:
            in_thread(etl.cancel).result()
        return reshape(rows)

    def fails(rows: Any) -> Any:
        if next(calls) % 10 == 3:
            raise ValueError("no")
        return reshape(rows)

    for each in (cancels, fails, cancels):
        monkeypatch.setattr(user_segments, "transform", each)
        with pytest.raises((Cancelled, SyncError)):
            user_segments.sync()
    monkeypatch.setattr(user_segments, "transform", reshape)

    assert user_segments.sync()["inserted"] == 200_001
