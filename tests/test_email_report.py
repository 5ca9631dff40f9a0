"""What mails do can be measured: a holdout that is stable, and a report that prune keeps right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from destinations import execute, in_shards
from fixture_types import Mart, Select
from mails import HOUR, NOW, audience, counts, user

from etl import email_triggers
from etl.prune import prune

HELD_OUT = "SELECT user_id FROM crm.email_queue WHERE reason = 'holdout' ORDER BY user_id"


@pytest.fixture
def holdout(environment: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the users get no mail."""
    monkeypatch.setenv("EMAIL_HOLDOUT", "0.2")
    monkeypatch.setenv("GUARD_MAX_MAILS", "1")


def everybody(segment: str = "at_risk", last: Any = NOW - HOUR) -> str:
    return audience(*(user(f"u{n:03}", segment, last=last) for n in range(400)))


def test_a_part_of_the_users_is_recorded_and_not_mailed(
    holdout: None, mart: Mart, select: Select
) -> None:
    mart(everybody())

    dry = email_triggers.sync(dry_run=True)
    result = email_triggers.sync()
    again = email_triggers.sync()

    held = select(HELD_OUT)
    assert 50 < len(held) < 110
    assert counts(dry) == counts(result)
    assert counts(result) == {"inserted": 400 - len(held), "held_back": len(held)}
    assert counts(again) == {"unchanged": 400}
    assert select("SELECT DISTINCT status FROM crm.email_queue WHERE reason = 'holdout'") == [
        {"status": "cancelled"}
    ]
    words = {one["outcome"]: one["mails"] for one in email_triggers.sync(dry_run=True)["outcomes"]}
    assert words == {"waiting": 400 - len(held), "held out": len(held)}


def test_the_holdout_is_the_same_at_every_visit_and_in_shards(
    holdout: None, mart: Mart, select: Select
) -> None:
    mart(everybody())
    email_triggers.sync()
    first = select(HELD_OUT)
    assert first
    execute("TRUNCATE crm.email_queue")
    mart(everybody(last=NOW - 2 * HOUR))

    in_shards(email_triggers.sync, 4)

    assert select(HELD_OUT) == first


def test_each_template_holds_out_others(holdout: None, mart: Mart, select: Select) -> None:
    mart(everybody())
    email_triggers.sync()
    first = {row["user_id"] for row in select(HELD_OUT)}
    execute("TRUNCATE crm.email_queue")
    mart(everybody("high_value"))
    email_triggers.sync()
    other = {row["user_id"] for row in select(HELD_OUT)}

    assert len(first & other) < len(first) / 2


def test_the_report_counts_what_became_of_mails(mart: Mart, select: Select) -> None:
    fill()

    assert [told(row) for row in select(REPORT)] == [
        ("welcome", 1, 0, 1, 0, 0, {}, 0),
        ("win_back", 6, 1, 1, 1, 3, {"expired": 1, "left_mart": 2}, 1),
    ]


def test_prune_keeps_the_report_as_it_is(mart: Mart, select: Select) -> None:
    fill()
    before = select(REPORT)

    foretold = prune(1, dry_run=True)
    assert select("SELECT FROM crm.email_counts") == []
    dropped = [prune(1)["crm.email_queue"]]
    fill()
    twice = select(REPORT)
    dropped.append(prune(1)["crm.email_queue"])

    assert dropped == [foretold["crm.email_queue"]] * 2
    assert dropped[0] > 0
    assert select(REPORT) == twice
    assert [row["sent"] for row in before] == [1, 1]


REPORT = "SELECT * FROM crm.email_report ORDER BY template, week"


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    values = list(row.values())
    return (values[0], *values[2:7], json.loads(row["cancelled_by_reason"]), row["held_out"])


def fill() -> None:
    """Mails of one week that all ended long ago, but for one that waits."""
    execute(
        "DELETE FROM crm.email_queue",
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
        " reason, created_at, updated_at, sent_at)"
        " SELECT 'u' || row_number() OVER (), template, 'epoch', 1, '{}', status, reason,"
        " '2020-01-07', '2020-01-08', CASE WHEN status = 'sent' THEN '2020-01-08'::timestamptz END"
        " FROM (VALUES ('win_back', 'sent', NULL), ('win_back', 'failed', 'bounced'),"
        " ('win_back', 'cancelled', 'left_mart'), ('win_back', 'cancelled', 'left_mart'),"
        " ('win_back', 'cancelled', 'expired'), ('win_back', 'cancelled', 'holdout'),"
        " ('win_back', 'pending', NULL), ('welcome', 'sent', NULL))"
        " AS v (template, status, reason)",
    )
