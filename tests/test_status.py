"""`python -m etl.status`: how the syncs fare, for people and for health checks."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import re
from pathlib import Path
from typing import Any, Protocol

import pytest
from conftest import command, segments
from destinations import lock_held, stuck
from fixture_types import Mart, Select

from etl import email_triggers, postgres, user_segments
from etl.cli.advice import next_command
from etl.cli.arguments import parse
from etl.errors import AlreadyRunning, Refused, UsageError
from etl.recommendations import TTL_SECONDS
from etl.settings import Settings
from etl.status import Flags, page, status
from etl.status.flags import OVERDUE_HOURS, TREND
from etl.syncs import SYNCS

NOW = dt.datetime.now(dt.UTC)


def test_a_sync_is_overdue_when_the_keys_of_its_last_run_are_gone() -> None:
    assert OVERDUE_HOURS * 3600 == TTL_SECONDS


@pytest.mark.every_sync
def test_a_new_database_says_that_nothing_ever_ran(environment: object) -> None:
    known = status(Flags(), NOW)

    assert [sync["last"] for sync in known["syncs"]] == [None] * len(SYNCS)
    assert known["overdue"] == list(SYNCS)
    page = command("etl.status")
    assert page.returncode == 0
    assert "recommendations  never run" in page.stdout
    assert "Overdue, no ok run for 24 hours: user_segments, email_triggers" in page.stdout


@pytest.mark.every_sync
def test_the_page_tells_the_last_run_of_each_sync_within_80_columns(
    mart: Mart, tmp_path: Path
) -> None:
    two_users = segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0)")
    mart(two_users, RECOMMENDED)
    for sync in SYNCS:
        importlib.import_module(f"etl.{sync}").sync()
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', NULL, 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    with pytest.raises(Refused):
        user_segments.sync()

    finished = command("etl.status", "--history", "9")

    page = finished.stdout
    assert finished.returncode == 0
    assert [line for line in page.splitlines() if len(line) > 80] == []
    assert head(page, "user_segments")[:3] == ["user_segments", "refused", "just"]
    assert "█x" in page
    assert "rejects: 2 of 3 rows break the contract" in page
    assert "rejected: duplicate 2, segment:null 1 (etl.rejected_rows)" in " ".join(page.split())
    assert "last ok run just now" in page
    assert head(page, "recommendations")[1] == "ok"
    assert "1 written" in page
    assert "mail queue: 1 pending (oldest just now)" in page
    assert "Nothing is overdue" in page
    assert page.count(f"{dt.datetime.now(dt.UTC):%m-%d} ") == len(SYNCS) + 1
    assert "\x1b" not in page


def test_colours_are_for_terminals(mart: Mart) -> None:
    assert "\x1b[1;31m" in command("etl.status", FORCE_COLOR="1").stdout
    assert "\x1b" not in command("etl.status").stdout


@pytest.mark.parametrize(
    ("ages", "overdue"),
    [
        ([1.9], False),
        ([2.1], True),
        ([], True),
        ([("failed", 1.0), 2.1], True),
        ([("failed", 1.0), 1.5], False),
    ],
)
def test_a_sync_without_a_recent_ok_run_is_overdue(
    ran: Ran, ages: list[Any], overdue: bool
) -> None:
    for age in ages:
        outcome, hours = ("ok", age) if isinstance(age, float) else age
        ran(outcome, hours)

    known = status(Flags(sync="user_segments", max_age=2), dt.datetime.now(dt.UTC))

    assert known["overdue"] == (["user_segments"] if overdue else [])


def test_a_sync_spread_over_shards_is_as_old_as_its_oldest_shard(ran: Ran) -> None:
    ran("ok", 1, 0, 2)
    assert status(Flags(sync="user_segments"), NOW)["overdue"] == ["user_segments"]

    ran("ok", 30, 1, 2)
    assert status(Flags(sync="user_segments"), NOW)["overdue"] == ["user_segments"]

    ran("ok", 2, 1, 2)
    known = status(Flags(sync="user_segments"), NOW)
    assert known["overdue"] == []
    assert round((NOW - known["syncs"][0]["ok_at"]).total_seconds() / 3600) == 2


def test_max_age_makes_it_a_health_check(ran: Ran) -> None:
    ran("ok", 3)

    one = ("etl.status", "--sync", "user_segments")
    codes = [command(*one, "--max-age", hours).returncode for hours in ("2", "4")]
    assert codes == [1, 0]
    assert command("etl.status", "--max-age", "4").returncode == 1  # the others never ran


@pytest.mark.every_sync
def test_check_says_what_is_wrong_and_nothing_else(mart: Mart, tmp_path: Path) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0)"), RECOMMENDED)
    never = command("etl.status", "--check")
    for sync in SYNCS:
        importlib.import_module(f"etl.{sync}").sync()
    well = command("etl.status", "--check")
    mart(segments("('a', NULL, 1, 0, 0)"))
    with pytest.raises(Refused):
        user_segments.sync()
    ill = command("etl.status", "--check")
    in_json = command("etl.status", "--check", "--json")

    assert (never.returncode, len(never.stdout.splitlines())) == (1, len(SYNCS))
    assert "user_segments is overdue: no ok run for 24 hours, there was none" in never.stdout
    assert (well.returncode, well.stdout) == (0, f"ok: {', '.join(SYNCS)}\n")
    (line,) = ill.stdout.splitlines()
    assert ill.returncode == in_json.returncode == 1
    assert line.startswith("user_segments refused just now: rejects: 1 of 1 rows")
    assert line.endswith("(next: python -m etl.user_segments --dry-run)")
    (problem,) = json.loads(in_json.stdout)["problems"]
    assert problem["next"] == "python -m etl.user_segments --dry-run"
    assert "next: python -m etl.user_segments --dry-run" in command("etl.status").stdout


@pytest.mark.parametrize(
    ("outcomes", "wrong"),
    [
        (["ok"], False),
        (["ok", "failed"], True),
        (["ok", "cancelled"], True),
        (["failed", "ok"], False),
        (["failed"], True),
    ],
)
def test_check_judges_by_the_last_run_that_ended(
    ran: Ran, outcomes: list[str], wrong: bool
) -> None:
    for hours, outcome in zip(range(9, 0, -1), outcomes, strict=False):
        ran(outcome, hours)

    known = status(Flags(sync="user_segments", check=True), dt.datetime.now(dt.UTC))

    assert bool(known["problems"]) is wrong
    assert command("etl.status", "--check", "--sync", "user_segments").returncode == wrong


def test_a_shard_that_failed_is_not_hidden_by_the_others(ran: Ran) -> None:
    ran("failed", 3, 1, 20)
    for shard in (0, *range(2, 20)):
        ran("ok", 2, shard, 20)

    known = status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))

    (problem,) = known["problems"]
    assert problem["what"].startswith("shard (1, 20) failed 3 hours ago")
    assert problem["next"] == "python -m etl.user_segments --shard 1/20"
    ran("ok", 1, 1, 20)
    assert status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))["problems"] == []


def test_an_attempt_that_found_the_lock_taken_is_not_the_syncs_state(mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()
    with lock_held("user_segments"), pytest.raises(AlreadyRunning):
        user_segments.sync()

    known = status(Flags(sync="user_segments", history=5), dt.datetime.now(dt.UTC))
    page = command("etl.status").stdout

    (sync,) = known["syncs"]
    assert (sync["last"]["status"], known["problems"]) == ("ok", [])
    assert [run["status"] for run in sync["trend"]] == ["ok"]
    assert [run["status"] for run in known["history"]] == ["failed", "ok"]
    assert head(page, "user_segments")[1] == "ok"
    assert "an attempt just now found the lock is held by " in page
    with lock_held("user_segments"):
        for _ in range(TREND + 1):
            with pytest.raises(AlreadyRunning):
                user_segments.sync()
    (sync,) = status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))["syncs"]
    assert sync["last"]["status"] == "ok"
    user_segments.sync()
    assert "an attempt" not in command("etl.status").stdout


def test_a_name_of_any_length_leaves_the_columns_where_they_are(mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()
    known = status(Flags(sync="user_segments", history=2), dt.datetime.now(dt.UTC))
    long = "a_sync_of_" + "many_words_" * 7
    for run in (known["syncs"][0], *known["history"]):
        run["sync"] = long

    lines = page.page(known, 24).splitlines()

    assert [line for line in lines if len(line) > 80] == []
    assert lines[1] + lines[2] == long
    assert lines[3].startswith(f"{'':17}ok         just now")
    assert any(line.endswith("1 inserted") for line in lines)


@pytest.mark.parametrize(
    ("status", "error", "command"),
    [
        ("failed", "warehouse /w: no such file; run dbt", "python -m etl.user_segments"),
        ("refused", "stale: built long ago", "python -m etl.user_segments --dry-run"),
        ("failed", "no table crm.x; run python -m etl.init_db", "python -m etl.init_db"),
        ("failed", "it may (python -m etl.status tells): no", "python -m etl.user_segments"),
        ("refused", "not run, because user_segments failed: x", "python -m etl"),
        ("cancelled", "cancelled by SIGTERM", "python -m etl.user_segments"),
        ("failed", None, "python -m etl.user_segments"),
    ],
)
def test_what_went_wrong_names_the_next_command(
    status: str, error: str | None, command: str
) -> None:
    assert next_command("user_segments", status, error) == command


@pytest.mark.every_sync
def test_json_is_one_object_with_everything(mart: Mart) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    result = user_segments.sync()
    email_triggers.sync()
    ran = ("user_segments", "email_triggers")

    finished = command("etl.status", "--json", "--history", "1")

    known = json.loads(finished.stdout)
    last = known["syncs"][0]["last"]
    assert (last["run_id"], last["status"], last["shards_ok"]) == (result["run_id"], "ok", 1)
    assert (last["extracted"], last["inserted"]) == (2, 2)
    assert [run["status"] for run in known["syncs"][0]["trend"]] == ["ok"]
    assert known["queue"]["pending"]["mails"] == 1
    assert known["overdue"] == [sync for sync in SYNCS if sync not in ran]
    assert [run["sync"] for run in known["history"]] == ["email_triggers"]


def test_a_killed_run_is_told_from_one_that_is_under_way(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('a', 'at_risk', 1, 0, 0)"))

    with stuck(select, "a") as process:
        (running,) = status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))["syncs"]
        process.kill()
        process.wait()
    with lock_held("user_segments"):  # taken as soon as the server has noticed
        pass
    (killed,) = status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))["syncs"]

    assert (running["last"]["status"], running["abandoned"]) == ("running", False)
    assert (killed["last"]["status"], killed["abandoned"]) == ("running", True)
    assert "killed" in command("etl.status").stdout


def test_the_trend_looks_back_on_twelve_runs_and_the_history_on_as_many_as_asked(
    ran: Ran,
) -> None:
    for hours in range(20):
        ran("ok", hours)

    known = status(Flags(history=15), NOW)

    assert len(known["syncs"][0]["trend"]) == 12
    begun = [run["started_at"] for run in known["history"]]
    assert len(begun) == 15
    assert begun == sorted(begun, reverse=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-age", "soon"], "--max-age takes a number of hours"),
        (["--max-age=-1"], "--max-age takes a number of hours"),
        (["--max-age"], "--max-age needs a value"),
        (["--history", "1.5"], "--history takes a whole number"),
        (["--sync", "segments"], "unknown sync 'segments'"),
        (["--json=maybe"], "--json is a switch"),
        (["--jsn"], "unknown flag '--jsn' (did you mean --json?)"),
        (["all"], "unknown word 'all'"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse(Flags, words)


def test_a_wrong_flag_ends_with_2_and_one_line_before_anything_is_asked() -> None:
    finished = command("etl.status", "--jsn", POSTGRES_PORT="1")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("etl: unknown flag '--jsn'")
    assert len(finished.stderr.splitlines()) == 1


def test_help_names_every_flag_and_asks_no_database() -> None:
    finished = command("etl.status", "--help", POSTGRES_PORT="1")

    assert finished.returncode == 0
    assert [
        flag for flag in ("--max-age", "--history", "--json") if flag not in finished.stdout
    ] == []
    assert max(map(len, finished.stdout.splitlines())) <= 80


def test_a_database_that_is_away_ends_with_1_and_one_line() -> None:
    finished = command("etl.status", POSTGRES_HOST="127.0.0.1", POSTGRES_PORT="1")

    assert (finished.returncode, len(finished.stderr.splitlines())) == (1, 1)
    assert "cannot connect" in finished.stderr


class Ran(Protocol):
    """Put a run of user_segments into the ledger."""

    def __call__(self, outcome: str, hours: float, shard: int = 0, shards: int = 1) -> None: ...


@pytest.fixture
def ran(environment: object) -> Ran:
    """Put a run of user_segments into the ledger: outcome, hours ago, shard of how many."""

    def put(outcome: str, hours: float, shard: int = 0, shards: int = 1) -> None:
        at = dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)
        with postgres.session(Settings.from_environment(), "tests") as connection:
            postgres.execute(
                connection,
                "INSERT INTO etl.sync_runs (run_id, sync, shard, shards, status, started_at,"
                " finished_at, seconds, forced, version, host, started_by)"
                " VALUES (gen_random_uuid()::text, 'user_segments', $1, $2, $3, $4::timestamptz,"
                " $4::timestamptz, 1.5,"
                " false, '1', 'h', 'me')",
                *(shard, shards, outcome, at),
            )
            connection.commit()

    return put


def head(page: str, sync: str) -> list[str]:
    """The words of a sync's line."""
    (line,) = [line for line in page.splitlines() if line.startswith(sync)]
    return line.split()


RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS recommended_destination, 0.9::DOUBLE AS recommendation_score,
        5::BIGINT AS supporting_users, 1::BIGINT AS rank, now() AS generated_at
"""
