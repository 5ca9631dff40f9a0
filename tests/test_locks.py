"""Two runs of one sync never overlap; nobody else ever waits."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest
from conftest import command, results, segments
from destinations import Mart, Select, last_run, lock_held, stuck

from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import SyncError, UsageError
from etl.ledger import Busy
from etl.options import Options
from etl.run import Run
from etl.settings import Settings

HOLDER = rf"pid {os.getpid()} on {socket.gethostname()}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"


def test_a_second_run_ends_with_1_and_names_the_first(mart: Mart, select: Select) -> None:
    ready_to_merge(mart)

    with stuck(select, "u0") as first:
        second = command("etl.user_segments", "--json")

    (result,) = results(second)
    assert second.returncode == 1
    assert result["status"] == "failed"
    assert f"user_segments is already running: etl.user_segments pid {first.pid}" in result["error"]
    assert f" on {socket.gethostname()}, since 20" in result["error"]
    assert "--wait SECONDS" in result["error"]
    assert last_run(select)["error"] == result["error"]


def test_a_run_that_may_wait_runs_when_the_other_is_through(mart: Mart, select: Select) -> None:
    ready_to_merge(mart)
    with stuck(select, "u0"):
        second = threading.Thread(target=user_segments.sync, kwargs={"wait": 30})
        second.start()
        time.sleep(0.7)  # it has asked for the lock more than once
        assert second.is_alive()
    second.join(30)

    rows = select("SELECT status, updated, unchanged FROM etl.sync_runs ORDER BY started_at")
    assert [tuple(row.values()) for row in rows[1:]] == [("ok", 1, 0), ("ok", 0, 1)]


def test_a_run_that_is_through_lets_the_next_in_while_its_session_winds_up(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server drops big staging tables before it ends a session, locks and all."""
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    lingering: list[Run] = []
    with monkeypatch.context() as patched:
        patched.setattr("etl.run._close", lingering.append)
        user_segments.sync()
    first = lingering[-1]

    try:
        assert user_segments.sync()["unchanged"] == 1
    finally:
        first.postgres.close()


def test_waiting_ends_when_its_time_is_up(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    begun = time.monotonic()

    with lock_held("user_segments"), pytest.raises(Busy, match=HOLDER):
        user_segments.sync(wait=0.6)

    assert 0.6 <= time.monotonic() - begun < 5


def test_a_dry_run_and_a_real_one_do_not_overlap_either(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))

    with lock_held("user_segments"), pytest.raises(Busy):
        user_segments.sync(dry_run=True)


def test_recommendations_wait_their_turn_as_well(mart: Mart) -> None:
    mart(RECOMMENDED)

    with lock_held("recommendations"), pytest.raises(Busy, match=HOLDER):
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

    with lock_held("user_segments", held), pytest.raises(Busy, match=HOLDER):
        user_segments.sync(shard=wanted)


def test_different_shards_run_side_by_side(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0), ('u1', 'regular', 1, 0, 0)"))

    with lock_held("user_segments", (0, 3)), lock_held("user_segments", (2, 3)):
        assert user_segments.sync(shard=(1, 3))["status"] == "ok"


def test_a_shard_that_waits_does_not_stand_in_the_way(mart: Mart, select: Select) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    failed: list[Any] = []

    def wait_in_vain() -> None:
        with pytest.raises(Busy) as busy:
            user_segments.sync(shard=(0, 2), wait=2)
        failed.append(busy.value)

    with lock_held("user_segments", (1, 3)):
        waiting = threading.Thread(target=wait_in_vain)
        waiting.start()
        time.sleep(0.7)
        assert user_segments.sync(shard=(0, 3))["status"] == "ok"
        waiting.join()
    assert len(failed) == 1


def test_a_holder_that_is_not_of_this_service_is_named_too(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    with postgres.session(Settings.from_environment(), "tests") as connection:
        postgres.select(connection, "SELECT set_config('application_name', 'psql', false)")
        postgres.select(
            connection,
            "SELECT pg_advisory_lock(hashtextextended('etl.user_segments', 0))::text AS done",
        )
        connection.commit()

        with pytest.raises(Busy, match="already running: a session named psql, since 20"):
            user_segments.sync()


@pytest.mark.parametrize(
    "options",
    [
        {"wait": float("nan")},
        {"wait": float("inf")},
        {"wait": -1},
        {"wait": True},
        {"shards": 0},
        {"shard": (2, 2)},
        {"shard": (0, 2), "shards": 2},
        {"dry_run": "False"},
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**options)


def ready_to_merge(mart: Mart) -> None:
    """Sync one user and change it in the mart."""
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('u0', 'at_risk', 1, 0, 0)"))


RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS recommended_destination, 0.9::DOUBLE AS recommendation_score,
        5::BIGINT AS supporting_users, 1::BIGINT AS rank, now() AS generated_at
"""
