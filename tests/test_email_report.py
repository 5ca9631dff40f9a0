"""What mails do can be measured: a holdout that is stable, and a report that prune keeps right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from destinations import execute, in_shards
from fixture_types import Mart, Select
from mails import HOUR, NOW, audience, counts, user

from etl import email_triggers
from etl.init_db import init_db
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


def test_a_mail_is_also_counted_in_the_week_in_which_it_was_sent(
    mart: Mart, select: Select
) -> None:
    """The week is UTC's: the first mail was sent in the last second of a Sunday."""
    send("2020-01-08", "2020-01-12 23:59:59+00", "2020-01-13 00:00+00", "2020-01-20 09:00+00")
    weeks = "SELECT week::text, queued, sent, sent_in_week FROM crm.email_report ORDER BY week"
    expected = [("2020-01-06", 3, 3, 1), ("2020-01-13", 0, 0, 1), ("2020-01-20", 0, 0, 1)]

    assert [tuple(row.values()) for row in select(weeks)] == expected
    assert prune(1)["crm.email_queue"] == 3
    assert [tuple(row.values()) for row in select(weeks)] == expected
    send("2020-01-08", "2020-01-15 09:00+00")
    assert [row["sent_in_week"] for row in select(weeks)] == [1, 2, 1]


def test_a_report_of_before_gets_the_column_and_keeps_its_figures(
    mart: Mart, select: Select
) -> None:
    """What was pruned before knows no week of sending: it counts in that of queueing."""
    execute(
        "DROP VIEW crm.email_report",
        "DROP FUNCTION crm.email_weekly_counts",
        *OLD_REPORT,
        "INSERT INTO crm.email_counts VALUES ('win_back', '2020-01-06', 'sent', '', 5)",
    )
    send("2020-01-08", "2020-01-15 09:00+00")
    before = select(REPORT)

    made = init_db()

    assert made == ["crm.email_weekly_counts", "crm.email_report.sent_in_week"]
    after = select(REPORT)
    assert [{name: row[name] for name in before[0]} for row in after][:1] == before
    assert [row["sent_in_week"] for row in after] == [5, 1]
    assert init_db() == []


OLD_REPORT = (
    "CREATE FUNCTION crm.email_queue_counts()"
    " RETURNS TABLE (template text, week date, status text, reason text, mails bigint)"
    " LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$"
    " SELECT template, '2020-01-06'::date, status, '', count(*) FROM crm.email_queue"
    " GROUP BY template, status $$",
    "CREATE VIEW crm.email_report AS SELECT template, week, sum(mails)::bigint AS queued,"
    " 0::bigint AS waiting, sum(mails)::bigint AS sent, 0::bigint AS failed,"
    " 0::bigint AS cancelled, '{}'::jsonb AS cancelled_by_reason, 0::bigint AS held_out"
    " FROM (SELECT * FROM crm.email_counts UNION ALL SELECT * FROM crm.email_queue_counts()) AS m"
    " GROUP BY template, week",
)
REPORT = "SELECT * FROM crm.email_report ORDER BY template, week"


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    values = list(row.values())
    return (values[0], *values[2:7], json.loads(row["cancelled_by_reason"]), row["held_out"])


def send(queued: str, *sent: str) -> None:
    """Mails of one template that were queued at one time, each sent at its own."""
    execute(
        *(
            "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
            " created_at, updated_at, sent_at)"
            f" VALUES ('{at}', 'win_back', 'epoch', 3, '{{}}', 'sent', '{queued}', '{at}', '{at}')"
            for at in sent
        )
    )


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
