"""etl.sync_runs and etl.rejected_rows: what became of every run, and why."""

from __future__ import annotations

import getpass
import signal
import socket
from typing import Any

import pytest
import redis
from conftest import command, results, segments
from destinations import digest, dump, execute, last_run, lock_held, stuck
from fixture_types import Mart, Select
from pace import HANG

from etl import (
    __version__,
    cache,
    email_triggers,
    postgres,
    recommendations,
    user_segments,
)
from etl.errors import AlreadyRunning, Refused, SyncError
from etl.options import Options
from etl.run import Run, ledger
from etl.run.job import Job
from etl.run.tally import Tally
from etl.settings import Settings
from etl.warehouse import stream

COUNTS = ("mart_rows", "extracted", "rejected", "inserted", "updated", "unchanged", "deleted")


def test_an_ok_run_has_every_count_of_its_result(mart: Mart, select: Select) -> None:
    mart(segments(f"('gone', 'regular', 1, 0, 0), {regular(10)}"))
    user_segments.sync()
    mart(segments(f"('new', 'regular', 1, 0, 0), ('u0', 'regular', 9, 0, 0), {regular(9, 1)}"))

    result: Any = user_segments.sync(delete_missing=True)

    row = last_run(select)
    assert [row[name] for name in COUNTS] == [11, 11, 0, 1, 1, 9, 1]
    assert [result[name] for name in COUNTS[1:]] == [row[name] for name in COUNTS[1:]]
    assert (row["run_id"], row["status"]) == (result["run_id"], "ok")
    assert (row["shard"], row["shards"], row["forced"], row["error"]) == (0, 1, False, None)
    assert (row["version"], row["host"]) == (__version__, socket.gethostname())
    assert row["started_by"] == getpass.getuser()
    assert row["started_at"] < row["finished_at"]
    assert 0 < row["seconds"] <= result["seconds"]


def test_mails_and_keys_are_counted_in_the_same_table(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0)"), RECOMMENDED)

    mails, keys = email_triggers.sync(), recommendations.sync()

    row = last_run(select, "email_triggers")
    told = ("inserted", "updated", "unchanged", "cancelled", "suppressed", "held_back")
    assert [row[name] for name in told] == [mails.get(name) for name in told]
    assert (row["inserted"], row["written"]) == (1, None)
    row = last_run(select, "recommendations")
    assert (row["written"], row["extracted"]) == (keys["written"], keys["extracted"]) == (1, 1)


def test_airflows_run_is_named_as_the_one_that_started_it(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(regular(1)))
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "scheduled__2026-01-01")

    user_segments.sync()

    assert last_run(select)["started_by"] == "airflow scheduled__2026-01-01"


def test_a_dry_run_leaves_no_row(mart: Mart, select: Select) -> None:
    mart(segments(f"{regular(2)}, ('bad', NULL, 1, 0, 0)"))
    with pytest.raises(Refused):
        user_segments.sync(dry_run=True)
    user_segments.sync(dry_run=True, force=True)

    mart("DROP TABLE mart_user_segments")
    with pytest.raises(SyncError):
        user_segments.sync(dry_run=True)

    assert select("SELECT * FROM etl.sync_runs") == []
    assert select("SELECT * FROM etl.rejected_rows") == []


def test_a_failed_run_is_recorded_with_its_rejects_and_undone(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "0.5")
    mart(segments(regular(2)))
    user_segments.sync()
    before = digest(select)
    execute("ALTER TABLE crm.user_segments ADD CHECK (segment <> 'forbidden')")
    mart(segments("('u0', 'regular', 7, 0, 0), ('u1', 'forbidden', 1, 0, 0), ('', 'x', 1, 0, 0)"))

    with pytest.raises(SyncError, match="violates check constraint") as failed:
        user_segments.sync()

    row = last_run(select)
    assert failed.value.result is not None
    assert (row["run_id"], row["status"]) == (failed.value.result["run_id"], "failed")
    assert (row["extracted"], row["rejected"], row["inserted"]) == (3, 1, None)
    assert row["error"] == str(failed.value)
    assert row["finished_at"] is not None
    assert digest(select) == before
    assert [kept["run_id"] for kept in rejects(select)] == [row["run_id"]]


def test_a_run_that_reads_nothing_knows_no_counts(mart: Mart, select: Select) -> None:
    mart("CREATE TABLE something_else (x INT)")

    with pytest.raises(SyncError, match="mart_user_segments"):
        user_segments.sync()

    row = last_run(select)
    assert row["status"] == "failed"
    assert [row[name] for name in COUNTS] == [None] * len(COUNTS)


def test_a_refused_run_keeps_its_rejects_by_every_reason(mart: Mart, select: Select) -> None:
    mart(
        segments(
            "('ok', 'regular', 1, 0, 0), ('two', 'regular', 1, 0, 0), ('two', 'at_risk', 2, 0, 0),"
            " ('bad', NULL, -1, 0, 0.5), (NULL, 'regular', 1, 0, 0)"
        )
    )

    with pytest.raises(Refused, match="rejects: 4 of 5 rows"):
        user_segments.sync()

    run = last_run(select)
    assert (run["status"], run["rejected"]) == ("refused", 4)
    assert run["inserted"] == 1  # counted, and rolled back
    assert not select("SELECT FROM crm.user_segments")
    kept = {(row["key"], row["reasons"]) for row in rejects(select)}
    assert kept == {
        ("two", "{duplicate}"),
        ("bad", "{segment:null,total_searches:too_small}"),
        (None, "{user_id:null}"),
    }
    (bad,) = select("SELECT row ->> 'lifetime_value' AS v FROM etl.rejected_rows WHERE key = 'bad'")
    assert bad == {"v": "0.50"}


def test_rejects_are_kept_up_to_the_limit_of_a_run_and_counted_to_the_last(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REJECT_LIMIT", "4")
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    mart(
        segments("('u', NULL, 1, 0, 0)"),
        "INSERT INTO mart_user_segments SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        " FROM mart_user_segments, range(8999) AS r(n)",
    )

    result = user_segments.sync(force=True)

    run = last_run(select)
    assert (result["rejected"], run["rejected"], len(rejects(select))) == (9_000, 9_000, 4)


def test_a_key_that_postgres_cannot_hold_is_kept_escaped(mart: Mart, select: Select) -> None:
    mart(segments("('a' || chr(0) || 'b', 'regular', 1, 0, 0)"))

    user_segments.sync(force=True)

    (row,) = rejects(select)
    assert (row["key"], row["reasons"]) == ("a\\u0000b", "{user_id:nul}")


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_merge_cancels_it_at_once(
    mart: Mart, select: Select, number: signal.Signals
) -> None:
    before = ready_to_merge(mart, select)

    with stuck(select, "u1") as process:
        process.send_signal(number)
        process.wait(HANG)  # it would not end before it is let through

    assert process.returncode == 128 + number
    row = last_run(select)
    assert (row["status"], row["error"]) == ("cancelled", f"cancelled by {number.name}")
    assert row["extracted"] == 3
    assert digest(select) == before


def test_what_stops_python_is_recorded_by_its_name(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    mart(segments(regular(9)))
    user_segments.sync()  # into an empty table, which stages nothing
    monkeypatch.setattr(Run, "stage", stop)

    with pytest.raises(KeyboardInterrupt):
        user_segments.sync()

    run = last_run(select)
    assert (run["status"], run["error"]) == ("cancelled", "cancelled by KeyboardInterrupt")
    assert run["extracted"] == 9


def test_a_stop_right_after_the_commit_does_not_unsay_it(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(f"{regular(200)}, ('bad', NULL, 1, 0, 0)"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tally, "log_warnings", stop)
    with pytest.raises(KeyboardInterrupt):
        user_segments.sync()

    assert last_run(select)["status"] == "ok"
    assert len(rejects(select)) == 1


def test_a_killed_run_leaves_the_target_as_it_was_and_the_next_one_says_so(
    mart: Mart, select: Select
) -> None:
    before = ready_to_merge(mart, select)

    with stuck(select, "u1") as process:
        process.kill()
        process.wait(HANG)
    assert last_run(select)["status"] == "running"
    killed = last_run(select)["run_id"]
    assert digest(select) == before

    finished = command("etl.user_segments", "--json", "--wait", "20", LOG_FORMAT="json")

    assert finished.returncode == 0, finished.stderr
    assert results(finished)[0]["inserted"] == 1
    assert "run.abandoned" in finished.stderr
    assert killed in finished.stderr
    rows = select("SELECT run_id, status, error FROM etl.sync_runs ORDER BY started_at")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["run_id"] == killed
    assert rows[1]["error"].startswith("abandoned: ")


def test_a_run_marks_only_what_its_lock_proves_dead(mart: Mart, select: Select) -> None:
    mart(segments(regular(4)))
    left_running(("whole", 0, 1), ("same", 0, 2), ("other", 1, 2), ("otherwise", 0, 3))

    user_segments.sync(shard=(0, 2))
    running = select("SELECT run_id FROM etl.sync_runs WHERE status = 'running'")
    assert running == [{"run_id": "other"}]

    user_segments.sync()
    assert select("SELECT run_id FROM etl.sync_runs WHERE status = 'running'") == []


def test_the_lock_is_held_until_the_failure_is_recorded(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments("('bad', NULL, 1, 0, 0)"))
    busy = []
    record = ledger.record

    def record_and_look(
        connection: postgres.Connection, tally: Tally, status: str, *error: str
    ) -> bool:
        if status == "refused":
            with pytest.raises(AlreadyRunning), lock_held("user_segments"):
                pass
            busy.append(status)
        return record(connection, tally, status, *error)

    monkeypatch.setattr(ledger, "record", record_and_look)
    with pytest.raises(Refused):
        user_segments.sync()

    assert busy == ["refused"]
    with lock_held("user_segments"):
        pass


def test_a_sync_that_is_not_begun_because_of_another_is_recorded(
    mart: Mart, select: Select
) -> None:
    mart(segments("('bad', NULL, 1, 0, 0)"), RECOMMENDED)

    finished = command("etl", "--json")

    refused = results(finished)[1]
    row = last_run(select, "email_triggers")
    assert (refused["sync"], refused["status"]) == ("email_triggers", "refused")
    assert (row["run_id"], row["status"], row["error"]) == (
        refused["run_id"],
        "refused",
        refused["error"],
    )


def test_recommendations_do_without_postgres_and_say_so_once(
    mart: Mart, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mart(RECOMMENDED)

    with monkeypatch.context() as away:
        away.setenv("POSTGRES_PORT", "1")
        result = recommendations.sync()

    assert (result["status"], result["written"]) == ("ok", 1)
    assert list(dump(keys)) == [b"reco:a"]
    assert warnings(caplog) == ["ledger.unreachable"]


def test_recommendations_do_without_a_ledger_that_is_not_there(
    mart: Mart, keys: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    mart(RECOMMENDED)
    execute("DROP SCHEMA etl CASCADE")

    assert recommendations.sync()["written"] == 1
    assert warnings(caplog) == ["ledger.unreachable"]


def test_recommendations_outlive_a_postgres_that_goes_away(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mart(RECOMMENDED)
    write = cache.write

    def cut_and_write(*arguments: Any) -> Any:
        select(
            "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity"
            " WHERE application_name LIKE 'etl.recommendations %'"
        )
        return write(*arguments)

    monkeypatch.setattr(cache, "write", cut_and_write)

    assert recommendations.sync()["status"] == "ok"
    assert warnings(caplog) == ["ledger.unreachable"]


def test_a_failed_write_to_redis_is_recorded(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(RECOMMENDED)
    monkeypatch.setenv("REDIS_PORT", "1")

    with pytest.raises(SyncError, match="Redis"):
        recommendations.sync()

    row = last_run(select, "recommendations")
    assert (row["status"], row["extracted"], row["written"]) == ("failed", 1, None)


def regular(count: int, start: int = 0) -> str:
    """VALUES for so many regular users u0, u1, ..."""
    return ", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(start, start + count))


def rejects(select: Select) -> list[dict[str, Any]]:
    return select("SELECT run_id, key, reasons::text, row FROM etl.rejected_rows ORDER BY id")


def ready_to_merge(mart: Mart, select: Select) -> list[Any]:
    """Sync two users, then change one and add one in the mart; the digest in between."""
    mart(segments(regular(2)))
    user_segments.sync()
    mart(segments("('u0', 'regular', 1, 0, 0), ('u1', 'at_risk', 1, 0, 0), ('u2', 'x', 1, 0, 0)"))
    return digest(select)


def left_running(*runs: tuple[str, int, int]) -> None:
    """Rows of runs that were killed: run id, shard, of how many."""
    settings = Settings.from_environment()
    with postgres.session(settings, "tests") as connection:
        for run_id, *shard in runs:
            options = Options(shard=(shard[0], shard[1]) if shard[1] > 1 else None)
            job = Job("user_segments", settings, options, run_id=run_id)
            ledger.record(connection, Tally(job), "running")
        connection.commit()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.etl_event for record in caplog.records if record.levelname == "WARNING"]  # type: ignore[attr-defined]


RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS recommended_destination, 0.9::DOUBLE AS recommendation_score,
        5::BIGINT AS supporting_users, 1::BIGINT AS rank, now() AS generated_at
"""
