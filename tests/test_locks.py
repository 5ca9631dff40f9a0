"""Two runs of one sync never overlap; nobody else ever waits."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, command, results, segments
from destinations import execute, last_run, lock_held, stuck
from examples import examples
from fixture_types import Mart, Select
from pace import HANG, soon

from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import AlreadyRunning, SyncError, UsageError
from etl.options import Options
from etl.plumbing.threads import in_thread
from etl.postgres import sessions
from etl.run import Attempt, ledger
from etl.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from demo.embedded import Servers
    from etl.postgres import Connection
    from etl.run import Job

HOLDER = (
    r"its lock is held by pid \d+, role airflow, [a-z ]+,"
    r" since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC,"
    rf' which calls itself "etl\.\w+ {os.getpid()}@{socket.gethostname()}"; wait for it'
)


def test_a_second_run_ends_with_1_and_names_the_first(mart: Mart, select: Select) -> None:
    ready_to_merge(mart)

    with stuck(select, "u0") as first:
        second = command("etl.user_segments", "--json")

    (result,) = results(second)
    assert second.returncode == 1
    assert result["status"] == "failed"
    assert "user_segments is already running: its lock is held by pid " in result["error"]
    assert f'"etl.user_segments {first.pid}@{socket.gethostname()}"' in result["error"]
    assert "--wait SECONDS" in result["error"]
    assert last_run(select)["error"] == result["error"]


@pytest.mark.slow
def test_the_lock_of_a_closed_session_is_free_at_once(environment: Path) -> None:
    """Whatever became of its run: the server does away with a session only after a moment."""
    settings = Settings.from_environment()

    held = []
    with postgres.session(settings, "tests") as next_run:
        for _ in range(examples(25, 100)):
            with postgres.session(settings, "tests") as run:
                assert _locked(run)
            held.append(_locked(next_run))
            execute("SELECT 1")  # time for what the server has still to do
            next_run.rollback()

    assert held == [True] * len(held)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The runs of this process that asked for their lock, each as often as it did."""
    jobs: list[Job] = []
    ask = ledger._try_lock

    def watched(session: Connection, job: Job) -> str | None:
        jobs.append(job)
        return ask(session, job)

    monkeypatch.setattr(ledger, "_try_lock", watched)
    return jobs


def test_a_run_that_may_wait_runs_when_the_other_is_through(
    mart: Mart, select: Select, asked: list[Job]
) -> None:
    ready_to_merge(mart)
    asked.clear()
    with stuck(select, "u0"):
        second = in_thread(lambda: user_segments.sync(wait=HANG))
        assert soon(lambda: len(asked) > 1, HANG)
    second.result(HANG)

    rows = select("SELECT status, updated, unchanged FROM etl.sync_runs ORDER BY started_at")
    assert [tuple(row.values()) for row in rows[1:]] == [("ok", 1, 0), ("ok", 0, 1)]


def test_a_run_that_is_through_lets_the_next_in_while_its_session_winds_up(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server drops big staging tables before it ends a session, locks and all."""
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    lingering: list[Attempt] = []
    with monkeypatch.context() as patched:
        patched.setattr(Attempt, "close", lambda one: lingering.append(one))  # noqa: PLW0108  (a method)
        user_segments.sync()

    try:
        assert user_segments.sync()["unchanged"] == 1
    finally:
        lingering[-1].close()


def test_waiting_ends_when_its_time_is_up(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    begun = time.monotonic()

    with lock_held("user_segments"), pytest.raises(AlreadyRunning, match=HOLDER):
        user_segments.sync(wait=0.6)

    assert time.monotonic() - begun >= 0.6


def test_a_dry_run_and_a_real_one_do_not_overlap_either(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))

    with lock_held("user_segments"), pytest.raises(AlreadyRunning):
        user_segments.sync(dry_run=True)


def test_recommendations_wait_their_turn_as_well(mart: Mart) -> None:
    mart(RECOMMENDED)

    with lock_held("recommendations"), pytest.raises(AlreadyRunning, match=HOLDER):
        recommendations.sync()


def test_the_lock_is_free_after_success_and_after_failure(mart: Mart) -> None:
    mart("CREATE TABLE nothing_of_use (x INT)")
    with pytest.raises(SyncError):
        user_segments.sync()

    mart(segments("('u0', 'regular', 1, 0, 0)"))
    user_segments.sync()

    with lock_held("user_segments"):
        pass


def test_other_syncs_and_readers_do_not_wait_for_a_merge(mart: Mart, select: Select) -> None:
    ready_to_merge(mart)
    mart(RECOMMENDED)

    with stuck(select, "u0"):
        assert email_triggers.sync()["status"] == "ok"
        assert recommendations.sync()["status"] == "ok"
        (row,) = select("SELECT segment FROM crm.user_segments")
        select("SELECT * FROM crm.email_queue")
        select("SELECT * FROM etl.sync_runs")

    assert row == {"segment": "regular"}


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ((0, 2), (0, 2)),  # the same shard
        ((0, 2), None),  # the whole
        (None, (0, 2)),
        ((0, 2), (1, 3)),  # a shard of another cut, which has users of both
        ((0, 1), (1, 2)),  # the one shard of one is the whole
        ((1, 2), (0, 1)),
    ],
)
def test_runs_that_could_meet_a_user_exclude_each_other(
    mart: Mart, held: tuple[int, int] | None, wanted: tuple[int, int] | None
) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))

    with lock_held("user_segments", held), pytest.raises(AlreadyRunning, match=HOLDER):
        user_segments.sync(shard=wanted)


def test_different_shards_run_side_by_side(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0), ('u1', 'regular', 1, 0, 0)"))

    with lock_held("user_segments", (0, 3)), lock_held("user_segments", (2, 3)):
        assert user_segments.sync(shard=(1, 3))["status"] == "ok"


def test_a_shard_that_waits_does_not_stand_in_the_way(mart: Mart, asked: list[Job]) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    with lock_held("user_segments", (1, 3)):
        waiting = in_thread(lambda: user_segments.sync(shard=(0, 2), wait=HANG))
        assert soon(lambda: len(asked) > 1, HANG)
        assert user_segments.sync(shard=(0, 3))["status"] == "ok"
        assert not waiting.done()
    assert waiting.result(HANG)["status"] == "ok"


def test_a_run_asks_twice_because_one_that_waits_has_locks_while_it_asks(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    for wanted in ((0, 3), None):
        with ExitStack() as asking, monkeypatch.context() as patched:
            asking.enter_context(lock_held("user_segments", (0, 2)))
            patched.setattr("etl.run.ledger.cancellation.pause", lambda _: asking.close())

            assert user_segments.sync(shard=wanted)["status"] == "ok"


def test_a_holder_is_told_by_pid_and_role_whatever_it_calls_itself(
    mart: Mart, servers: Servers
) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    forged = "etl.user_segments 4711@worker-3"
    with reader(servers, forged) as connection:
        (its,) = postgres.select(
            connection,
            "SELECT pg_backend_pid() AS pid,"
            " pg_advisory_lock(hashtextextended('etl.user_segments', 0))::text AS done",
        )

        with pytest.raises(AlreadyRunning) as busy:
            user_segments.sync()

    said = str(busy.value)
    assert f"is held by pid {its['pid']}, role nosy, " in said
    assert f'calls itself "{forged}"' in said
    assert f"SELECT pg_terminate_backend({its['pid']})" in said


@pytest.mark.few(1)
@pytest.mark.parametrize("may_see", [False, True])
def test_a_mailer_that_does_not_commit_is_named_with_what_to_do(
    mart: Mart, servers: Servers, monkeypatch: pytest.MonkeyPatch, may_see: bool
) -> None:
    # Locks are waited for no longer than 30 s and 4/5 of this.
    monkeypatch.setenv("POSTGRES_STATEMENT_TIMEOUT", "2")
    mart(segments("('u0', 'at_risk', 1, 0, 0)"))
    email_triggers.sync()
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    if may_see:
        superuser(servers, "GRANT pg_read_all_stats TO airflow")
    with reader(servers, "mailer 4711@worker-3") as mailer:
        superuser(
            servers,
            "GRANT USAGE ON SCHEMA crm TO nosy",
            "GRANT SELECT, UPDATE ON crm.email_queue TO nosy",
        )
        (its,) = postgres.select(mailer, "SELECT pg_backend_pid() AS pid")
        postgres.execute(mailer, "UPDATE crm.email_queue SET status = 'sent' WHERE true")

        with pytest.raises(SyncError) as failed:
            email_triggers.sync()
        mailer.rollback()
        superuser(servers, "DROP OWNED BY nosy", "REVOKE pg_read_all_stats FROM airflow")

    said = str(failed.value)
    assert f"pid {its['pid']}, role nosy, " in said
    assert 'which calls itself "mailer 4711@worker-3" holds a lock that is needed' in said
    assert "let it commit, or end it with pg_terminate_backend" in said
    assert ("idle in transaction, since 20" in said) is may_see
    assert ("its state and time shown to pg_read_all_stats alone" in said) is not may_see
    assert "UPDATE" not in said


def test_a_prepared_transaction_that_holds_the_lock_is_named() -> None:
    told = sessions.described(
        {"pid": None, "role": None, "name": None, "state": None, "since": None}
    )

    assert told == "a prepared transaction (see pg_prepared_xacts)"


def test_no_login_can_take_the_locks_where_the_docs_are_followed(
    mart: Mart, servers: Servers
) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    page = (ROOT / "docs" / "deployment.md").read_text()
    (forbid,) = re.findall(r"```sql\n-- No login but these.*?\n(.*?)```", page, re.DOTALL)
    forbid = forbid.replace("searchflow_etl, airflow", "airflow")
    take = "SELECT pg_advisory_lock(hashtextextended('etl.user_segments', 0))::text AS done"
    superuser(servers, forbid)
    try:
        with (
            reader(servers, "psql") as connection,
            pytest.raises(SyncError, match="permission denied for function pg_advisory_lock"),
        ):
            postgres.select(connection, take)

        assert user_segments.sync()["status"] == "ok"
    finally:
        superuser(servers, forbid.replace("REVOKE", "GRANT").replace("FROM PUBLIC", "TO PUBLIC"))


@pytest.mark.parametrize(
    "options",
    [
        {"wait": float("nan")},
        {"wait": float("inf")},
        {"wait": -1},
        {"wait": True},
        {"shard": (2, 2)},
        {"dry_run": "False"},
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**options)


def _locked(connection: Connection) -> bool:
    """Try for the lock of a whole run."""
    (row,) = postgres.query(connection, "lock", "etl.user_segments", None, None)
    return bool(row["held"])


def ready_to_merge(mart: Mart) -> None:
    """Sync one user and change it in the mart."""
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('u0', 'at_risk', 1, 0, 0)"))


@contextmanager
def reader(servers: Servers, name: str) -> Iterator[postgres.Connection]:
    """A session of somebody who may only log in, and calls itself what it likes."""
    password = servers.environment["POSTGRES_PASSWORD"]
    superuser(servers, f"CREATE ROLE nosy LOGIN PASSWORD '{password}'")
    nosy = Settings.from_environment({**os.environ, "POSTGRES_USER": "nosy"})
    try:
        with postgres.session(nosy, "tests") as connection:
            postgres.select(connection, "SELECT set_config('application_name', $1, false)", name)
            connection.commit()
            yield connection
    finally:
        superuser(servers, "DROP ROLE nosy")


def superuser(servers: Servers, *statements: str) -> None:
    admin = {**os.environ, "POSTGRES_USER": "postgres"}
    with postgres.session(Settings.from_environment(admin), "tests") as connection:
        for statement in statements:
            postgres.execute(connection, statement)
        connection.commit()


RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS recommended_destination, 0.9::DOUBLE AS recommendation_score,
        5::BIGINT AS supporting_users, 1::BIGINT AS rank, now() AS generated_at
"""
