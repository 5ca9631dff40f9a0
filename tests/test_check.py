"""`python -m etl.check` as its user sees it: the page, JSON, exit codes, settings, alerts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import test_alerts
from checks import GOOD, states
from conftest import command
from fixture_types import Mart
from test_alerts import Inbox

from etl.check import check
from etl.syncs import SYNCS

inbox = test_alerts.inbox


def _check(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command("etl.check", *flags, **environment)


def test_a_sound_system_is_ok_in_80_columns_without_colours(mart: Mart) -> None:
    mart(*GOOD)

    finished = _check()

    lines = finished.stdout.splitlines()
    assert (finished.returncode, finished.stderr) == (0, "")
    assert lines[-1] == "Nothing stops a run. Next: python -m etl --dry-run"
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in finished.stdout
    for name in ("settings", "warehouse", *SYNCS, "Postgres", "Redis", "alerts"):
        assert any(line.startswith(f"ok  {name} ") for line in lines), name


def test_everything_that_is_wrong_is_told_at_once_in_the_order_in_which_to_mend_it(
    environment: Path,
) -> None:
    finished = _check("--json", POSTGRES_PORT="1", REDIS_PORT="1", GUARD_MAX_AGE_HOURS="soon")

    found = json.loads(finished.stdout)
    failed = [one["name"] for one in found if one["state"] == "fail"]
    assert (finished.returncode, finished.stderr) == (1, "")
    assert failed == ["settings", "warehouse", "Postgres", "Redis"]
    assert {one["state"] for one in found} == {"ok", "fail", "skipped"}
    assert all(sorted(one) == ["advice", "found", "name", "state"] for one in found)
    assert all(one["advice"] for one in found if one["state"] == "fail")


def test_each_wrong_setting_is_told_in_a_runs_words_and_its_place_is_skipped(mart: Mart) -> None:
    mart(*GOOD)
    wrong = {"POSTGRES_PORT": "db", "REDIS_TLS": "maybe", "LOG_FORMAT": "xml"}

    found = json.loads(_check("--json", **wrong).stdout)
    run = command("etl", **wrong)

    told = [one["found"] for one in found if one["state"] == "fail"]
    assert [one["name"] for one in found if one["state"] == "skipped"] == ["Postgres", "Redis"]
    assert [one.partition(" is ")[0] for one in told] == [
        "settings: POSTGRES_PORT: 'db'",
        "settings: REDIS_TLS: 'maybe'",
        "settings: LOG_FORMAT: 'xml'",
    ]
    assert told[2] in run.stderr


def test_a_warning_alone_stops_nobody(mart: Mart) -> None:
    mart(*GOOD)

    finished = _check(ALERT_URLS="nonsense://somewhere")

    assert finished.returncode == 0
    assert "URL 1 of ALERT_URLS (nonsense) is none that Apprise knows" in " ".join(
        finished.stdout.split()
    )
    assert finished.stdout.splitlines()[-1].startswith("Nothing stops a run; 1 warning.")


def test_one_thing_that_stops_a_run_is_one(mart: Mart) -> None:
    mart(*GOOD, "DROP TABLE mart_recommendations")

    last = _check().stdout.splitlines()[-1]

    assert last == "1 thing stops a run. Mend it; then check again."


def test_a_flag_that_is_not_known_is_wrong_usage(environment: Path) -> None:
    finished = _check("--bogus")

    assert finished.returncode == 2
    assert finished.stderr == "etl: unknown flag '--bogus'; --help lists the flags\n"


def test_alert_sends_one_message(mart: Mart, inbox: Inbox) -> None:
    mart(*GOOD)

    findings = check(alert=True)

    (message,) = inbox.messages
    assert message["title"] == "searchflow-etl: a test"
    assert states(findings) == {}


def test_an_alert_that_is_not_taken_fails(mart: Mart, inbox: Inbox) -> None:
    mart(*GOOD)
    inbox.status = 500

    finished = _check("--alert", "--json")

    (alert,) = [one for one in json.loads(finished.stdout) if one["name"] == "alerts"]
    assert finished.returncode == 1
    assert alert["found"] == "URL 1 of ALERT_URLS (json) did not take it"
    assert "hush-hush-1" not in finished.stdout + finished.stderr


def test_no_message_is_sent_unless_that_is_asked_for(mart: Mart, inbox: Inbox) -> None:
    mart(*GOOD)

    check()

    assert inbox.messages == []


@pytest.mark.every_sync
def test_each_sync_is_looked_at(mart: Mart) -> None:
    mart(*GOOD)

    assert [one.name for one in check() if one.name in SYNCS] == list(SYNCS)
