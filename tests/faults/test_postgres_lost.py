"""Postgres lost at any point of a run: the run goes on when it is back, and loads exactly once."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import command, results
from destinations import committed, execute, last_run
from fixture_types import Select
from pace import HANG, soon, within
from proxy import Proxy
from scenes import (
    FULL,
    clock,
    full_only,
    later,
    nothing_is_left,
    proxied,
    run,
    settled,
    start,
    state,
    statuses_since,
    two_marts,
)

from demo.embedded import Servers, running
from etl import postgres
from etl.errors import SyncError
from etl.init_db import init_db
from etl.result import COMMON_COUNTS, SyncResult
from etl.settings import Settings

USERS = 2_000

# What passes the proxy at each point of a run.
_RUNNING, _OK, _COPY = b'"status":"running"', b'"status":"ok"', b"PGCOPY"
_MERGE = {
    "user_segments": b"UPDATE crm.user_segments",
    "email_triggers": b"approved AS NOT MATERIALIZED",
}

POINTS = (
    "connecting",
    "logging in",
    "taking the lock",
    "reading the warehouse",
    "in the middle of COPY",
    "merging",
    "before COMMIT",
    "after COMMIT",
)

SOME = POINTS if FULL else ("connecting", "in the middle of COPY", "before COMMIT", "after COMMIT")
LOSSES = [("user_segments", "away")]
if FULL:
    LOSSES += [("user_segments", "cut"), ("user_segments", "reset"), ("email_triggers", "away")]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("sync", "failure"), LOSSES)
def test_a_run_that_loses_postgres_goes_on_when_it_is_back(  # noqa: PLR0917
    sync: str,
    failure: str,
    environment: Path,
    servers: Servers,
    select: Select,
    keys: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marts = two_marts(environment.parent, USERS)
    states, _ = settled(sync, marts, select, keys)
    expected = [counts(run(sync, mart)) for mart in marts]

    for number, point in enumerate(SOME):
        before = clock(select)
        with proxied(servers, monkeypatch, RETRY_SECONDS="15") as proxy:
            lost = lose(proxy, sync, point, failure)
            with within(8):
                result = run(sync, marts[number % 2])

        assert lost.is_set(), point
        assert state(sync, select, keys) == states[number % 2], point
        assert counts(result) == expected[number % 2], point
        assert statuses_since(before, select) == ["ok"], point
        row = last_run(select, sync)
        assert [row[name] for name in COMMON_COUNTS] == [
            result.get(name) for name in COMMON_COUNTS
        ], point
        assert (row["run_id"], row["error"]) == (result["run_id"], None), point
        assert soon(lambda: nothing_is_left(select), 3), point


@full_only
def test_a_postgres_that_dies_and_comes_back_is_waited_for(
    own_servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one: killed with all its backends in the middle of a merge, back 3 s later."""
    monkeypatch.setenv("RETRY_SECONDS", "20")
    marts = two_marts(environment.parent, USERS)
    with using(own_servers):
        init_db()
        run("user_segments", marts[0])

        with blocked_merge() as merging:
            process = start("etl.user_segments", "--force", "--json", DUCKDB_PATH=str(marts[1]))
            assert soon(merging, HANG)
            own_servers.postgres.kill()
        time.sleep(3)
        own_servers.start_postgres()
        stdout, stderr = process.communicate(timeout=HANG)

        assert process.returncode == 0, (stdout, stderr)
        rows = committed("SELECT status FROM etl.sync_runs ORDER BY started_at")
        assert [row["status"] for row in rows] == ["ok", "ok"]
        assert run("user_segments", marts[1])["unchanged"] == USERS


@pytest.mark.slow
@pytest.mark.parametrize("point", ["connecting", "merging"] if FULL else ["merging"])
def test_a_postgres_that_stays_away_fails_the_run_when_the_time_is_up(
    point: str,
    environment: Path,
    servers: Servers,
    select: Select,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marts = two_marts(environment.parent, USERS)
    run("user_segments", marts[0])
    monkeypatch.setenv("DUCKDB_PATH", str(marts[1]))
    before = select("SELECT * FROM crm.user_segments ORDER BY user_id")

    with proxied(servers, monkeypatch, RETRY_SECONDS="2", LOG_FORMAT="text") as proxy:
        at(proxy, "user_segments", point, proxy.refuse)
        begun = time.monotonic()
        with within(8):
            finished = command("etl.user_segments", "--force", "--json")
        seconds = time.monotonic() - begun

    assert finished.returncode == 1
    assert seconds >= 2
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("etl: ") == 1
    error = results(finished)[0]["error"]
    assert finished.stderr.splitlines()[-1] == f"etl: user_segments failed: {error}"
    assert "127.0.0.1" in error
    assert select("SELECT * FROM crm.user_segments ORDER BY user_id") == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"POSTGRES_PASSWORD": "not it"}, "check POSTGRES_USER and POSTGRES_PASSWORD"),
        ({"POSTGRES_USER": "nobody_here"}, "check POSTGRES_USER and POSTGRES_PASSWORD"),
        ({"POSTGRES_DB": "no_such_db"}, "check POSTGRES_DB"),
    ],
)
def test_what_does_not_let_us_in_is_not_tried_again(
    setting: dict[str, str],
    said: str,
    environment: Path,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marts = two_marts(environment.parent, 10)

    with (
        proxied(servers, monkeypatch, RETRY_SECONDS="600", **setting) as proxy,
        within(HANG),
        pytest.raises(SyncError, match=said),
    ):
        run("user_segments", marts[0])

    assert proxy.connections <= 3  # the driver opens two of its own; the ledger is not tried


def test_an_error_that_cannot_heal_is_not_tried_again(
    environment: Path, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRY_SECONDS", "600")
    marts = two_marts(environment.parent, 10)

    for statement, said in INCURABLE.items():
        execute("DROP TABLE IF EXISTS crm.user_segments", "DELETE FROM etl.sync_runs")
        init_db()
        execute(statement)

        with within(HANG), pytest.raises(SyncError, match=said):
            run("user_segments", marts[0])

        assert select("SELECT status FROM etl.sync_runs") == [{"status": "failed"}]


INCURABLE = {
    "DROP TABLE crm.user_segments": "python -m etl.init_db",
    "ALTER TABLE crm.user_segments DROP COLUMN segment": "python -m etl.init_db",
    "ALTER TABLE crm.user_segments ALTER total_searches TYPE text": "text and bigint|bigint",
    "ALTER TABLE crm.user_segments ADD CHECK (total_searches < 5)": "check constraint",
    "ALTER TABLE crm.user_segments ADD COLUMN must int NOT NULL": "not-null constraint",
}


def test_a_run_whose_backend_is_ended_by_a_dba_is_tried_again(
    environment: Path, select: Select, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_terminate_backend, as a restart or a failover does it: SQLSTATE 57P01."""
    monkeypatch.setenv("RETRY_SECONDS", "20")
    marts = two_marts(environment.parent, USERS)
    (_, second), _ = settled("user_segments", marts, select, keys)
    run("user_segments", marts[0])

    with blocked_merge() as merging:
        process = start("etl.user_segments", "--force", "--json", DUCKDB_PATH=str(marts[1]))
        assert soon(merging, HANG)
        select(
            "SELECT pg_terminate_backend(pid)::text AS done FROM pg_stat_activity"
            " WHERE application_name LIKE 'etl.user_segments%'"
        )
    stdout, stderr = process.communicate(timeout=HANG)

    assert process.returncode == 0, (stdout, stderr)
    assert state("user_segments", select, keys) == second


def lose(proxy: Proxy, sync: str, point: str, failure: str) -> threading.Event:
    """Let the connection fail once at that point of the run; `away` stays so for a moment."""
    happened = threading.Event()

    def fail() -> None:
        happened.set()
        if failure == "away":
            proxy.refuse()
            later(1 if FULL else 0.3, proxy.restore)
        else:
            getattr(proxy, failure)()

    at(proxy, sync, point, fail)
    return happened


def at(proxy: Proxy, sync: str, point: str, fail: Callable[[], None]) -> None:
    """Do this when a run that goes through the proxy is at that point."""
    passed: dict[str, tuple[bytes, ...]] = {
        "logging in": (b"application_name",),
        "taking the lock": (b"Try to take what keeps runs",),
        "reading the warehouse": (_RUNNING, b"COMMIT"),
        "in the middle of COPY": (_COPY, b"u1500"),
        "merging": (_MERGE[sync],),
        "before COMMIT": (_OK, b"COMMIT"),
    }
    if point == "connecting":
        fail()
    elif point == "after COMMIT":
        # It is done, and nobody is told: the answer is dropped.
        proxy.when_answered(_OK, b"COMMIT\0", do=fail)
    else:
        proxy.when("client", *passed[point], do=fail, deliver=point != "before COMMIT")


def counts(result: SyncResult) -> dict[str, Any]:
    """A result without what differs in every run."""
    return {name: value for name, value in result.items() if name not in ("run_id", "seconds")}


@pytest.fixture
def own_servers() -> Iterator[Servers]:
    """Servers of this test alone, as durable as they come."""
    with tempfile.TemporaryDirectory(prefix="etl-faults-") as folder:
        os.chmod(folder, 0o755)
        with running(Path(folder)) as servers:
            yield servers


@contextmanager
def using(servers: Servers) -> Iterator[None]:
    """Point the service at these servers."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in servers.environment.items():
            patched.setenv(name, value)
        yield


@contextmanager
def blocked_merge() -> Iterator[Callable[[], bool]]:
    """Let merges into crm.user_segments wait inside the block; returns whether one does."""
    connection = postgres.connect(Settings.from_environment(), "tests")
    postgres.execute(connection, "LOCK TABLE crm.user_segments IN SHARE MODE")
    try:
        yield lambda: bool(committed("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    finally:
        with suppress(Exception):  # its server may be gone
            connection.close()
