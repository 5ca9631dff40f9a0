"""What the commands say of a run that did not go through: the cause, once, and the next step."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from conftest import command, results, segments
from destinations import execute, last_run
from fixture_types import Mart, Select

from etl.errors import Refused
from etl.run import guards
from etl.run.guards import Metrics
from etl.settings import Settings

USERS = segments("('a', 'regular', 1, 0, 0), ('b', 'at_risk', 1, 0, 0)")


# Guards


@pytest.mark.parametrize(
    ("figures", "step"),
    [
        (Metrics(), "Look at dbt's last run"),
        (Metrics(), "DUCKDB_PATH and MART_SCHEMA"),
        (Metrics(mart_rows=1, previous_mart_rows=10), "Look at dbt's last run"),
        (Metrics(mart_rows=9, extracted=9, rejected=9), "etl.rejected_rows"),
        (Metrics(mart_rows=9, target_rows=9, deleted=9), "without --delete-missing"),
        (Metrics(mart_rows=9, target_rows=1_001, changed_segment=1_001), "model of the segments"),
        (Metrics(mart_rows=9, queue_rows=1_001, extracted=9, queued=9), "--dry-run"),
        (Metrics(mart_rows=9, pending=101, cancelled_by_mart=101), "--dry-run"),
        (Metrics(mart_rows=9, no_visits=("x_at",), visits_queued=1), "Was the column renamed?"),
    ],
)
def test_a_guard_says_its_own_next_step_before_force(figures: Metrics, step: str) -> None:
    with pytest.raises(Refused) as refusal:
        guards.check(figures, Settings())

    said = str(refusal.value)
    assert step in said
    assert said.endswith("If this is meant, run again with --force (in Python: force=True)")
    assert said.index(step) < said.index("--force")


def test_what_two_guards_advise_is_said_once() -> None:
    cancelled = Metrics(mart_rows=9, pending=101, cancelled_by_mart=101)
    figures = replace(cancelled, queue_rows=1_001, extracted=9, queued=9)

    with pytest.raises(Refused, match=r"^flood: .*; wipe: ") as refusal:
        guards.check(figures, Settings())

    assert str(refusal.value).count("--dry-run") == 1


def test_an_empty_mart_is_not_called_shrunk_as_well() -> None:
    with pytest.raises(Refused, match=r"^empty: the mart has no rows\. Look at dbt's last run"):
        guards.check(Metrics(mart_rows=0, previous_mart_rows=10), Settings())


@pytest.mark.few(1)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_refusal_is_told_once(log_format: str, mart: Mart, select: Select) -> None:
    mart(USERS, "UPDATE mart_user_segments SET segmented_at = now() - INTERVAL 49 HOUR")

    ended = command("etl.user_segments", COLUMNS="500", LOG_FORMAT=log_format)

    last = ended.stdout if log_format == "json" else ended.stderr
    assert "user_segments refused: stale: the mart was built 49 hours ago" in last
    assert "refused: refused" not in ended.stdout + ended.stderr
    assert last_run(select)["error"].startswith("stale: ")


# Syncs that are not begun


def test_mails_are_not_queued_on_a_mart_that_was_refused(mart: Mart) -> None:
    mart("CREATE TABLE mart_recommendations AS SELECT 1 AS x", USERS)
    mart("DELETE FROM mart_user_segments")

    mails = results(command("etl", "--json"))[1]

    assert mails["status"] == "refused"
    assert mails["error"] == (
        "not run, because user_segments was refused: empty: the mart has no rows"
    )


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"POSTGRES_PASSWORD": "wrong"}, "password authentication failed"),
        ({"POSTGRES_DB": "nowhere"}, 'database "nowhere" does not exist'),
        ({"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1"}, "127.0.0.1:1"),
        ({"DUCKDB_PATH": "/nowhere/file.duckdb"}, "/nowhere/file.duckdb: no such file"),
        ({"MART_SCHEMA": "elsewhere"}, "is not in schema elsewhere but in main"),
    ],
)
def test_a_sync_that_is_not_begun_says_what_really_failed(
    settings: dict[str, str], cause: str, mart: Mart
) -> None:
    mart(USERS)

    segments_failed, mails, *_ = results(command("etl", "--json", **settings))

    assert segments_failed["status"] == "failed"
    assert mails["error"].startswith("not run, because user_segments failed: ")
    assert cause in mails["error"]
    assert (
        mails["error"].removeprefix("not run, because user_segments failed: ")
        in (segments_failed["error"])
    )
    assert "such a mart" not in mails["error"]


# Dry runs


def test_a_dry_run_says_what_each_sync_did(mart: Mart) -> None:
    mart(USERS)

    said = " ".join(command("etl", "--dry-run").stdout.split())

    done = "all was done in Postgres and rolled back, with the locks and the time that takes"
    (of_postgres,) = re.findall(f"nothing was changed. ([^:]*): {done}", said)
    names = set(re.findall(r"\w+", of_postgres))
    assert names >= {"user_segments", "email_triggers"}
    assert "recommendations" not in names
    assert "recommendations: ended on the way; Redis was at most read" in said
    assert not re.search("recommendations[^:]*: Redis was only read", said)


def test_a_failed_dry_run_does_not_say_that_all_was_done(mart: Mart) -> None:
    mart(USERS)

    said = " ".join(command("etl", "--dry-run", POSTGRES_PASSWORD="wrong").stdout.split())

    assert "Dry run: nothing was changed." in said
    assert "all was done" not in said
    assert re.search(r"user_segments[\w ,]*: ended on the way", said)
    assert "email_triggers: not begun" in said


def test_a_refused_dry_run_was_done_to_its_end(mart: Mart) -> None:
    mart(USERS, "UPDATE mart_user_segments SET segmented_at = now() - INTERVAL 49 HOUR")

    said = " ".join(command("etl.user_segments", "--dry-run").stdout.split())

    assert "user_segments: all was done in Postgres and rolled back" in said


def test_one_of_a_thing_is_told_in_the_singular(mart: Mart) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    command("etl", "--sync", "user_segments")
    execute("INSERT INTO crm.email_allowlist (user_id) VALUES ('tester')")
    mart(segments("('b', 'at_risk', -1, 0, 0)"))

    told = "".join(
        command(*words).stdout.replace("\n", " ")
        for words in (
            ("etl.check",),
            ("etl.status", "--max-age", "1"),
            ("etl.prune", "--days", "0", "--dry-run"),
            ("etl", "--dry-run"),
        )
    )

    assert "only 1 user is mailed" in re.sub(" +", " ", told)
    assert re.search(r"\b1 row\b", told)
    assert not re.findall(
        r"(?<![\d.,])(?<!of )1 (?:rows|users|mails|keys|tables|hours|warnings)\b", told
    )
