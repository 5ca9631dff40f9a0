"""email_triggers: mart_user_segments -> crm.email_queue; the rules are in docs/email-queue.md."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, counts, queue, user

from etl import email_triggers
from etl.mail import rules
from etl.mail.rules import NO_EPISODE_DATE, RULES, Rule
from etl.warehouse import stream

if TYPE_CHECKING:
    from etl.postgres import Connection


from mails import change, suppress

EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.template)


# Rule 1: episodes


def test_each_segment_is_mailed_its_template(mart: Mart, select: Select) -> None:
    mart(audience(*(user(rule.segment, rule.segment) for rule in RULES), user("dull", "regular")))

    result = email_triggers.sync()

    assert (result["extracted"], counts(result)) == (5, {"inserted": 4})
    assert select(
        "SELECT user_id, template, priority, status FROM crm.email_queue ORDER BY id"
    ) == [
        {"user_id": segment, "template": template, "priority": priority, "status": "pending"}
        for segment, template, priority in [
            ("abandoned_search", "abandoned_search", 1),
            ("at_risk", "win_back", 3),
            ("high_value", "loyalty", 4),
            ("new_user", "welcome", 2),
        ]
    ]


@pytest.mark.few(2)
@EACH_RULE
def test_an_episode_is_the_visit_that_opened_the_occasion(
    rule: Rule, mart: Mart, select: Select
) -> None:
    mart(audience(user("ann", rule.segment, last=NOW - HOUR, first=NOW - 3 * DAY)))

    email_triggers.sync()

    opened = NOW - 3 * DAY if rule.template == "welcome" else NOW - HOUR
    assert select("SELECT episode_at FROM crm.email_queue") == [{"episode_at": opened}]


def test_a_rebuilt_mart_queues_nothing_again(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "new_user")))
    email_triggers.sync()
    before = select("SELECT ctid::text, * FROM crm.email_queue ORDER BY id")

    mart(audience(user("ann", "at_risk"), user("bob", "new_user"), built_at=NOW + HOUR))
    result = email_triggers.sync()

    assert counts(result) == {"unchanged": 2}
    assert select("SELECT ctid::text, * FROM crm.email_queue ORDER BY id") == before


@pytest.mark.few(1)
@pytest.mark.parametrize("status", ["processing", "sent", "failed"])
def test_an_episode_is_queued_once_whatever_became_of_it(
    status: str, mart: Mart, database: Connection, select: Select
) -> None:
    mart(audience(user("ann", "abandoned_search")))
    email_triggers.sync()
    change(database, f"status = '{status}', created_at = now() - INTERVAL '2 days'")

    assert counts(email_triggers.sync()) == {"unchanged": 1}
    assert len(queue(select)) == 1


def test_a_visit_that_nobody_knows_is_held_back(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "at_risk", last=None), user("bob", "new_user", last=None)))

    result = email_triggers.sync()

    assert counts(result) == {"inserted": 1, "held_back": 1}
    assert queue(select) == ["bob welcome pending"]


def test_a_mart_without_visits_has_one_episode_for_ever(
    mart: Mart, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk"), user("eve", "new_user")))
    mart("ALTER TABLE mart_user_segments DROP COLUMN first_seen_at")
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")

    first = email_triggers.sync()
    warnings = [record for record in caplog.records if "defaulted" in record.message]
    again = email_triggers.sync()

    assert counts(first) == {"inserted": 3}
    assert counts(again) == {"unchanged": 3}
    assert select(
        "SELECT DISTINCT episode_at, payload->>'last_seen_at' AS seen FROM crm.email_queue"
    ) == [{"episode_at": NO_EPISODE_DATE, "seen": None}]
    assert len(warnings) == 1


def test_a_mart_read_in_batches_queues_the_same(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    mart(
        audience(user("u", "at_risk")),
        "INSERT INTO mart_user_segments SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        " FROM mart_user_segments, range(9999) AS r(n)",
    )
    first = email_triggers.sync()
    mart(
        "UPDATE mart_user_segments SET segment = 'regular' WHERE user_id = 'u3'",
        "DELETE FROM mart_user_segments WHERE user_id = 'u7777'",
    )
    second = email_triggers.sync()

    assert counts(first) == {"inserted": 10_000}
    assert counts(second) == {"unchanged": 9_998, "cancelled": 2}
    assert select(
        "SELECT user_id, reason FROM crm.email_queue WHERE status = 'cancelled' ORDER BY 1"
    ) == [
        {"user_id": "u3", "reason": "left_segment"},
        {"user_id": "u7777", "reason": "left_mart"},
    ]


# Rule 2: old news


@pytest.mark.few(2)
@EACH_RULE
def test_old_news_is_not_mailed(rule: Rule, mart: Mart, select: Select) -> None:
    mart(
        audience(
            user("fresh", rule.segment, first=NOW - rule.max_age, last=NOW - rule.max_age),
            user(
                "stale",
                rule.segment,
                first=NOW - rule.max_age - HOUR,
                last=NOW - rule.max_age - HOUR,
            ),
        )
    )

    assert counts(email_triggers.sync()) == {"inserted": 1}
    assert queue(select) == [f"fresh {rule.template} pending"]


def test_age_is_measured_against_the_marts_build_time(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "abandoned_search", last=NOW - 30 * DAY), built_at=NOW - 29 * DAY))

    email_triggers.sync(force=True)

    assert queue(select) == ["ann abandoned_search pending"]


def test_a_waiting_mail_that_grew_old_is_cancelled(mart: Mart, select: Select) -> None:
    ann = user("ann", "abandoned_search", last=NOW - 73 * HOUR)
    mart(audience(ann, built_at=NOW - 2 * HOUR))
    email_triggers.sync()

    mart(audience(ann, built_at=NOW))
    result = email_triggers.sync()

    assert counts(result) == {"cancelled": 1}
    assert queue(select) == ["ann abandoned_search cancelled: expired"]


# Rule 3: refresh


def test_a_waiting_mail_says_what_the_mart_says_now(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "at_risk", searches=5), user("bob", "at_risk")))
    email_triggers.sync()
    before = select("SELECT * FROM crm.email_queue ORDER BY user_id")

    mart(audience(user("ann", "at_risk", searches=6), user("bob", "at_risk")))
    result = email_triggers.sync()

    after = select("SELECT * FROM crm.email_queue ORDER BY user_id")
    assert counts(result) == {"updated": 1, "unchanged": 1}
    assert json.loads(after[0]["payload"])["total_searches"] == 6
    assert after[0]["updated_at"] > before[0]["updated_at"]
    assert after[0]["created_at"] == before[0]["created_at"]
    assert after[1] == before[1]


def test_a_waiting_mail_takes_over_a_new_priority(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()

    monkeypatch.setattr(rules, "RULES", [replace(rule, priority=7) for rule in RULES])

    assert counts(email_triggers.sync()) == {"updated": 1}
    assert select("SELECT priority FROM crm.email_queue") == [{"priority": 7}]


@pytest.mark.few(1)
@pytest.mark.parametrize("status", ["processing", "sent", "failed"])
def test_a_mail_that_does_not_wait_is_never_touched(
    status: str, mart: Mart, database: Connection, select: Select
) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk"), user("eve", "at_risk")))
    email_triggers.sync()
    change(database, f"status = '{status}'")
    suppress(database, "eve")
    before = select("SELECT ctid::text, * FROM crm.email_queue ORDER BY id")

    mart(audience(user("ann", "at_risk", searches=99), user("eve", "at_risk")))
    result = email_triggers.sync()

    assert counts(result) == {"unchanged": 2}
    assert select("SELECT ctid::text, * FROM crm.email_queue ORDER BY id") == before


# Rule 4: cooldown, gap, one open mail


@pytest.mark.few(1)
@EACH_RULE
@pytest.mark.parametrize("over", [False, True], ids=["within", "after"])
def test_a_template_rests_for_its_cooldown(
    over: bool, rule: Rule, mart: Mart, database: Connection, select: Select
) -> None:
    mart(audience(user("ann", rule.segment, first=NOW - 2 * HOUR, last=NOW - 2 * HOUR)))
    email_triggers.sync()
    rest = rule.cooldown or 1000 * DAY
    ago = rest + HOUR if over else rest - HOUR
    change(database, f"status = 'sent', sent_at = now() - INTERVAL '{ago.total_seconds()} s'")

    mart(audience(user("ann", rule.segment, first=NOW - HOUR, last=NOW - HOUR)))
    result = email_triggers.sync()

    due = over and rule.cooldown is not None
    assert counts(result) == ({"inserted": 1} if due else {"held_back": 1})


def test_a_user_gets_no_two_mails_within_the_gap(
    mart: Mart, database: Connection, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(audience(user("ann", "new_user")))
    email_triggers.sync()
    change(database, "status = 'sent', sent_at = now() - INTERVAL '23 hours'")
    mart(audience(user("ann", "high_value")))

    within = email_triggers.sync()
    monkeypatch.setenv("EMAIL_MIN_GAP_HOURS", "22.5")
    after = email_triggers.sync()

    assert counts(within) == {"held_back": 1}
    assert counts(after) == {"inserted": 1}
    assert queue(select) == ["ann welcome sent", "ann loyalty pending"]


def test_a_mail_that_failed_counts_from_when_it_was_queued(
    mart: Mart, database: Connection
) -> None:
    mart(audience(user("ann", "new_user"), user("bob", "new_user")))
    email_triggers.sync()
    change(database, "status = 'failed', created_at = now() - INTERVAL '23 hours'")
    change(database, "created_at = now() - INTERVAL '25 hours'", of="bob")

    mart(audience(user("ann", "high_value"), user("bob", "high_value")))

    assert counts(email_triggers.sync()) == {"inserted": 1, "held_back": 1}


def test_a_mail_that_was_cancelled_does_not_count(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "abandoned_search"), user("bob", "regular")))
    email_triggers.sync()
    mart(audience(user("ann", "regular"), user("bob", "regular")))
    email_triggers.sync()

    mart(audience(user("ann", "abandoned_search", last=NOW), user("bob", "regular")))
    result = email_triggers.sync()

    assert counts(result) == {"inserted": 1}
    assert queue(select) == [
        "ann abandoned_search cancelled: left_segment",
        "ann abandoned_search pending",
    ]


def test_a_newer_visit_replaces_the_waiting_mail(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "at_risk", last=NOW - 9 * DAY)))
    email_triggers.sync()

    mart(audience(user("ann", "at_risk", last=NOW - 8 * DAY)))
    result = email_triggers.sync()

    assert counts(result) == {"inserted": 1, "cancelled": 1}
    assert queue(select) == ["ann win_back cancelled: superseded", "ann win_back pending"]


def test_a_visit_that_is_taken_back_replaces_nothing(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "at_risk", last=NOW - 8 * DAY)))
    email_triggers.sync()

    mart(audience(user("ann", "at_risk", last=NOW - 9 * DAY)))
    result = email_triggers.sync()

    assert counts(result) == {"updated": 1}
    assert queue(select) == ["ann win_back pending"]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "last", [NOW - 9 * DAY, NOW - 400 * DAY, None], ids=["earlier", "old news", "unknown"]
)
def test_a_waiting_mail_keeps_up_with_a_visit_that_moved_back(
    last: dt.datetime | None, mart: Mart, select: Select
) -> None:
    mart(audience(user("ann", "at_risk", last=NOW - 8 * DAY, searches=10)))
    email_triggers.sync()
    (before,) = select("SELECT id, episode_at FROM crm.email_queue")

    mart(audience(user("ann", "at_risk", last=last, searches=99)))
    dry = email_triggers.sync(dry_run=True)
    wet, again = email_triggers.sync(), email_triggers.sync()

    (row,) = select("SELECT id, episode_at, payload FROM crm.email_queue")
    said = json.loads(row["payload"])
    assert {name: row[name] for name in before} == before
    assert (said["total_searches"], said["last_seen_at"] is None) == (99, last is None)
    assert counts(dry) == counts(wet) == {"updated": 1}
    assert [one["outcome"] for one in dry["outcomes"]] == ["refreshed"]
    assert "updated" not in counts(again)


def test_another_template_replaces_the_waiting_mail_and_back(mart: Mart, select: Select) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    mart(audience(user("ann", "high_value")))

    there = email_triggers.sync()
    mart(audience(user("ann", "at_risk")))
    back = email_triggers.sync()

    assert counts(there) == {"inserted": 1, "cancelled": 1}
    assert counts(back) == {"updated": 1, "cancelled": 1}
    assert queue(select) == ["ann win_back pending", "ann loyalty cancelled: superseded"]


def test_a_mail_waits_for_one_that_is_being_sent(
    mart: Mart, database: Connection, select: Select
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    change(database, "status = 'processing', created_at = now() - INTERVAL '2 days'")
    mart(audience(user("ann", "high_value")))

    meanwhile = email_triggers.sync()
    change(database, "status = 'failed'")
    afterwards = email_triggers.sync()

    assert counts(meanwhile) == {"held_back": 1}
    assert counts(afterwards) == {"inserted": 1}
    assert queue(select) == ["ann win_back failed", "ann loyalty pending"]
