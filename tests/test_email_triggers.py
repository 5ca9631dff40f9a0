"""email_triggers: mart_user_segments -> crm.email_queue; the rules are in docs/email-queue.md."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from conftest import ROOT
from destinations import in_shards
from mails import DAY, HOUR, NOW, audience, counts, queue, user
from polars.testing import assert_frame_equal

from etl import email_triggers, postgres
from etl.email_triggers import transform
from etl.mail import rules
from etl.mail.rules import NO_EPISODE_DATE, RULES, Rule
from etl.warehouse import stream

if TYPE_CHECKING:
    from etl.postgres import Connection

Mart = Callable[..., None]
Select = Callable[..., list[dict[str, Any]]]

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


@pytest.mark.few(3)
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


# Rule 5: cancelled, and back


def test_who_is_no_longer_in_the_segment_is_not_mailed(mart: Mart, select: Select) -> None:
    mart(audience(*(user(name, "at_risk") for name in ("ann", "bob", "eve"))))
    email_triggers.sync()

    mart(audience(user("ann", "at_risk"), user("bob", "regular")))
    result = email_triggers.sync()

    assert counts(result) == {"unchanged": 1, "cancelled": 2}
    assert queue(select) == [
        "ann win_back pending",
        "bob win_back cancelled: left_segment",
        "eve win_back cancelled: left_mart",
    ]


def test_a_cancelled_mail_waits_again_when_its_episode_holds_again(
    mart: Mart, select: Select
) -> None:
    bob = user("bob", "regular")
    mart(audience(user("ann", "at_risk", searches=5), bob))
    email_triggers.sync()
    mart(audience(user("ann", "regular"), bob))
    email_triggers.sync()

    mart(audience(user("ann", "at_risk", searches=8), bob))
    result = email_triggers.sync()

    (row,) = select("SELECT status, reason, payload->>'total_searches' AS n FROM crm.email_queue")
    assert counts(result) == {"updated": 1}
    assert row == {"status": "pending", "reason": None, "n": "8"}


def test_a_cancelled_mail_comes_back_under_the_same_rules_as_a_new_one(
    mart: Mart, database: Connection, select: Select
) -> None:
    names = ("aged", "rested", "suppressed", "free")
    mart(audience(*(user(name, "abandoned_search") for name in names)))
    email_triggers.sync()
    mart(audience(*(user(name, "regular") for name in names)))
    email_triggers.sync()
    mailed_lately(database, "rested")
    suppress(database, "suppressed")

    back = [user(name, "abandoned_search") for name in names[1:]]
    aged = user("aged", "abandoned_search", last=NOW - 73 * HOUR)
    mart(audience(aged, *back))
    result = email_triggers.sync()

    assert counts(result) == {"updated": 1, "suppressed": 1, "held_back": 1}
    assert "free abandoned_search pending" in queue(select)


def test_who_is_in_the_mart_with_a_bad_row_has_not_left_it(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))
    email_triggers.sync()

    mart(audience(user("ann", "at_risk", searches=-1), user("bob", "at_risk"), user("bob", "")))
    result = email_triggers.sync()

    assert (result["rejected"], counts(result)) == (3, {})
    assert queue(select) == ["ann win_back pending", "bob win_back pending"]


# Rule 6: suppression


def test_a_suppressed_user_is_not_mailed_until_that_is_lifted(
    mart: Mart, database: Connection, select: Select
) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))
    suppress(database, "bob")

    first = email_triggers.sync()
    suppress(database, "ann")
    second = email_triggers.sync()
    execute(database, "DELETE FROM crm.email_suppressions")
    third = email_triggers.sync()

    assert counts(first) == {"inserted": 1, "suppressed": 1}
    assert counts(second) == {"cancelled": 1, "suppressed": 1}
    assert counts(third) == {"inserted": 1, "updated": 1}
    assert queue(select) == ["ann win_back pending", "bob win_back pending"]


def test_a_suppressed_mail_says_so(mart: Mart, database: Connection, select: Select) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "regular")))
    email_triggers.sync()
    suppress(database, "ann")
    mart(audience(user("ann", "high_value"), user("bob", "regular")))

    result = email_triggers.sync()

    assert counts(result) == {"cancelled": 1, "suppressed": 1}
    assert queue(select) == ["ann win_back cancelled: suppressed"]


# Other programs, shards


def test_a_template_that_is_not_ours_is_left_alone(
    mart: Mart, database: Connection, select: Select
) -> None:
    execute(
        database,
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        " VALUES ('ann', 'receipt', 'epoch', 1, '{}'), ('gone', 'receipt', 'epoch', 1, '{}')",
    )
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))

    result = email_triggers.sync()

    assert counts(result) == {"inserted": 1, "held_back": 1}
    assert queue(select) == ["ann receipt pending", "gone receipt pending", "bob win_back pending"]


def test_shards_together_do_what_a_whole_run_does(
    mart: Mart, database: Connection, select: Select
) -> None:
    names = [f"user{number}" for number in range(20)]
    mart(audience(*(user(name, "at_risk") for name in names)))
    whole = email_triggers.sync()
    mart(audience(*(user(name, "at_risk", searches=9) for name in names[:15])))

    parts = [email_triggers.sync(shard=(index, 3), dry_run=True) for index in range(3)]
    walked = in_shards(email_triggers.sync, 3)

    assert counts(whole) == {"inserted": 20}
    assert counts(walked) == {"updated": 15, "cancelled": 5}
    assert sum(part["cancelled"] or 0 for part in parts) == 5
    assert max(part["cancelled"] or 0 for part in parts) < 5


# Rules 8 and 9: payload, transform

FULL = {
    "version": 1,
    "segment": "",
    "last_seen_at": "2026-03-01T08:30:00.000000+00:00",
    "platform": 'i"o\\s\n',
    "country": None,
    "total_searches": 42,
    "total_conversions": 3,
    "lifetime_value": "1234.50",
}
PAYLOADS = {
    "abandoned_search": FULL,
    "win_back": FULL,
    "loyalty": FULL,
    "welcome": {key: FULL[key] for key in list(FULL)[:5]},
}


@EACH_RULE
def test_a_payload_holds_what_the_mail_needs_and_no_more(rule: Rule) -> None:
    visit = dt.datetime(2026, 3, 1, 8, 30, tzinfo=dt.UTC)
    mart = frame(rule.segment, visit, platform='i"o\\s\n', country=None)

    (payload,) = transform(mart, visit)["payload"]

    assert json.loads(payload) == {**PAYLOADS[rule.template], "segment": rule.segment}


@EACH_RULE
def test_a_payload_survives_the_way_into_the_queue(rule: Rule, mart: Mart, select: Select) -> None:
    mart(audience(user("ann", rule.segment, platform='Tür 🧳 \\ "')))

    email_triggers.sync()

    (row,) = select("SELECT payload FROM crm.email_queue")
    assert json.loads(row["payload"])["platform"] == 'Tür 🧳 \\ "'
    assert set(json.loads(row["payload"])) == {"version", *rule.payload}


def test_a_new_template_is_a_new_rule_and_nothing_else(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Rule("regular", "digest", 5, "first_seen_at", 9 * DAY, DAY, ("first_seen_at",))
    monkeypatch.setattr(rules, "RULES", (*RULES, digest))
    mart(audience(user("ann", "regular", first=NOW - DAY)))

    email_triggers.sync()

    (row,) = select("SELECT template, priority, payload FROM crm.email_queue")
    assert (row["template"], row["priority"]) == ("digest", 5)
    assert json.loads(row["payload"]) == {
        "version": 1,
        "first_seen_at": f"{NOW - DAY:%Y-%m-%dT%H:%M:%S}.000000+00:00",
    }


def test_every_segment_has_one_template_and_every_template_one_segment() -> None:
    assert len({rule.segment for rule in RULES}) == len(RULES)
    assert len({rule.template for rule in RULES}) == len(RULES)


def test_transform_tells_whom_we_would_mail_without_a_server() -> None:
    mart = pl.concat(
        [
            frame("new_user", NOW - DAY, user_id="ann"),
            frame("at_risk", NOW - 181 * DAY, user_id="bob"),
            frame("regular", NOW, user_id="eve"),
            frame("high_value", None, user_id="zoe"),
        ]
    )
    untouched = mart.clone()

    triggers = transform(mart, NOW)

    assert triggers.select("user_id", "template", "due").rows() == [
        ("ann", "welcome", True),
        ("bob", "win_back", False),
        ("zoe", "loyalty", False),
    ]
    assert_frame_equal(transform(mart, NOW), triggers)
    assert_frame_equal(mart, untouched)


# Rule 10: dry run


def test_a_dry_run_tells_the_same_and_changes_nothing(
    mart: Mart, database: Connection, select: Select
) -> None:
    mixed_queue(mart, database)
    before = select("SELECT ctid::text, * FROM crm.email_queue ORDER BY id")
    dry = email_triggers.sync(dry_run=True)
    after = select("SELECT ctid::text, * FROM crm.email_queue ORDER BY id")

    real = email_triggers.sync()

    assert after == before
    assert counts(dry) == counts(real)
    assert {f"{one['template']} {one['outcome']}": one["mails"] for one in dry["outcomes"]} == {
        "abandoned_search old news": 1,
        "loyalty cancelled: superseded": 1,
        "welcome cancelled: left_mart": 1,
        "welcome held back: no episode": 1,
        "welcome queued": 6,
        "welcome suppressed": 1,
        "win_back held back: gap": 1,
        "win_back pending again": 1,
        "win_back queued": 1,
        "win_back refreshed": 1,
        "win_back waiting": 1,
    }


@pytest.mark.parametrize(
    ("status", "word"),
    [("pending", "waiting"), ("processing", "being sent"), ("sent", "sent"), ("failed", "failed")],
)
def test_a_dry_run_says_where_a_mail_is_that_it_leaves_alone(
    status: str, word: str, mart: Mart, database: Connection
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    change(database, f"status = '{status}'")

    result = email_triggers.sync(dry_run=True)

    assert counts(result) == {"unchanged": 1}
    assert result["outcomes"] == [{"template": "win_back", "outcome": word, "mails": 1}]


def test_every_outcome_and_reason_is_explained_on_the_page() -> None:
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    sql = (ROOT / "sql/warehouse/email_decisions.sql").read_text(encoding="utf-8")
    words = set(re.findall(r"(?:THEN|ELSE|reason =) '([a-z_: ]+)'", sql)) - {"held back: "}

    assert {"waiting", "being sent", "gap", "unknown_visit", "old news"} <= words
    assert [word for word in sorted(words) if f"`{word}`" not in page] == []


def test_an_outcome_names_five_of_its_users_on_request_alone(
    mart: Mart, database: Connection
) -> None:
    mixed_queue(mart, database)

    told = email_triggers.sync(dry_run=True, name_users=True)["outcomes"]
    unasked = email_triggers.sync(dry_run=True)

    assert {name for one in unasked["outcomes"] for name in one} == {"template", "outcome", "mails"}
    assert "new1" not in str(unasked)  # an orchestrator keeps and shows what it is given
    users = {f"{one['template']} {one['outcome']}": one["users"] for one in told}
    assert users["welcome queued"] == [f"new{number}" for number in range(5)]
    assert users["win_back held back: gap"] == ["lately"]


# The page


def test_the_page_shows_the_rules_as_they_are() -> None:
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if re.match(r"\| `\w+` \| `\w+` \| \d", line)
    ]

    assert rows == [
        [
            rule.segment,
            rule.template,
            str(rule.priority),
            rule.episode,
            in_words(rule.max_age),
            in_words(rule.cooldown) if rule.cooldown else "never again",
            ", ".join(rule.payload),
        ]
        for rule in RULES
    ]


# Builders


def frame(
    segment: str,
    visit: dt.datetime | None,
    *,
    user_id: str = "ann",
    platform: str | None = "ios",
    country: str | None = "PT",
) -> pl.DataFrame:
    """One row as transform gets it."""
    return pl.DataFrame(
        {
            "user_id": [user_id],
            "segment": [segment],
            "total_searches": [42],
            "total_conversions": [3],
            "lifetime_value": pl.Series(["1234.5"]).cast(pl.Decimal(14, 2)),
            "first_seen_at": pl.Series([visit], dtype=pl.Datetime("us", "UTC")),
            "last_seen_at": pl.Series([visit], dtype=pl.Datetime("us", "UTC")),
            "platform": pl.Series([platform], dtype=pl.String),
            "country": pl.Series([country], dtype=pl.String),
        }
    )


def mixed_queue(mart: Mart, database: Connection) -> None:
    """A queue and a mart between which nearly every outcome comes up."""
    queued = ("same", "other", "back", "replaced", "left")
    segments = dict(zip(queued, ["at_risk"] * 3 + ["high_value", "new_user"], strict=True))
    mart(audience(*(user(name, segment) for name, segment in segments.items())))
    email_triggers.sync()
    change(database, "status = 'cancelled', reason = 'left_segment'", of="back")
    mailed_lately(database, "lately")
    suppress(database, "silent")
    mart(
        audience(
            user("same", "at_risk"),
            user("other", "at_risk", searches=6),
            user("back", "at_risk"),
            user("replaced", "at_risk"),
            user("lately", "at_risk"),
            user("silent", "new_user"),
            user("unknown", "new_user", first=None),
            user("ancient", "abandoned_search", last=NOW - 9 * DAY),
            *(user(f"new{number}", "new_user") for number in range(6)),
        )
    )


def mailed_lately(database: Connection, user_id: str) -> None:
    execute(
        database,
        "INSERT INTO crm.email_queue"
        " (user_id, template, episode_at, priority, payload, status, sent_at)"
        f" VALUES ('{user_id}', 'receipt', 'epoch', 1, '{{}}', 'sent', now())",
    )


def suppress(database: Connection, user_id: str) -> None:
    execute(database, f"INSERT INTO crm.email_suppressions (user_id) VALUES ('{user_id}')")


def change(database: Connection, what: str, *, of: str = "%") -> None:
    execute(database, f"UPDATE crm.email_queue SET {what} WHERE user_id LIKE '{of}'")


def execute(database: Connection, sql: str) -> None:
    postgres.execute(database, sql)
    database.commit()


def in_words(time: dt.timedelta) -> str:
    return f"{time // HOUR} h" if time <= 3 * DAY else f"{time // DAY} days"
