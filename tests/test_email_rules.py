"""The rules of mails are checked where they are read, and a template may change its name."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from conftest import ROOT, command
from destinations import execute, in_shards
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, counts, queue, user

from etl import email_triggers, postgres
from etl.errors import Refused, UsageError
from etl.explain import explain
from etl.mail import rules, warnings
from etl.mail.rules import RULES
from etl.settings import Settings


def ask(name: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run a statement of a worker that waits for no lock longer than a second, and commit."""
    with postgres.session(Settings.from_environment(), "worker") as connection:
        postgres.execute(connection, "SET LOCAL lock_timeout = '1s'")
        rows = postgres.query(connection, name, *parameters)
        connection.commit()
    return rows


@pytest.fixture
def win_back(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Change the rule of at_risk."""

    def change(**fields: Any) -> None:
        changed = [replace(r, **fields) if r.segment == "at_risk" else r for r in RULES]
        monkeypatch.setattr(rules, "RULES", tuple(changed))

    return change


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"segment": "new_user"}, "two rules have the segment 'new_user'"),
        ({"template": "welcome"}, "two rules have the template 'welcome'"),
        ({"payload": ("age", "segment")}, "win_back: no column age; there are "),
        ({"episode": "seen_at"}, "win_back: no column seen_at; "),
        ({"episode": "platform"}, "platform is no visit"),
        ({"max_age": dt.timedelta(0)}, "win_back: max age 0:00:00 is not above 0"),
        ({"cooldown": dt.timedelta(-1)}, "win_back: cooldown -1 day"),
        ({"priority": 0}, "win_back: priority 0 is not from 1"),
        ({"template": ""}, "both need a name"),
        ({"renamed_from": "welcome"}, "'welcome' is a rule's and a former name as well"),
    ],
)
def test_rules_that_cannot_be_meant_are_told_before_anything_is_read(
    fields: dict[str, Any], said: str, win_back: Any, environment: object
) -> None:
    win_back(**fields)

    with pytest.raises(UsageError) as raised:
        email_triggers.sync()

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# A mail says four columns more, of which one is missing from the mart unless it is given.
MORE_COLUMNS = """
import dataclasses, sys
from etl.mail import rules
rules.MORE_COLUMNS = {
    "points": "integer", "since": "date", "is_vip": "boolean", "motto": "text", "saved": "decimal"
}
rules.RULES = tuple(
    dataclasses.replace(rule, payload=("segment", *rules.MORE_COLUMNS)) for rule in rules.RULES
)
from etl import cli
cli.main("email_triggers")
"""


def test_a_payload_may_say_any_column_of_the_mart(
    mart: Mart, environment: object, select: Select
) -> None:
    mart(
        audience(user("a", "at_risk", last=NOW - 40 * DAY)),
        "ALTER TABLE mart_user_segments ADD COLUMN points SMALLINT DEFAULT 7",
        "ALTER TABLE mart_user_segments ADD COLUMN since DATE DEFAULT '2026-02-03'",
        "ALTER TABLE mart_user_segments ADD COLUMN is_vip BOOLEAN DEFAULT true",
        "ALTER TABLE mart_user_segments ADD COLUMN motto VARCHAR DEFAULT 'to \"go\"'",
    )

    def run() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", MORE_COLUMNS, "--json", "--force"]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)

    missing = run()
    mart("ALTER TABLE mart_user_segments ADD COLUMN saved DOUBLE DEFAULT 1.25")
    first, second = run(), run()

    assert "saved is missing" in missing.stdout
    assert (json.loads(first.stdout)["inserted"], json.loads(second.stdout)["unchanged"]) == (1, 1)
    (mail,) = select("SELECT payload::text AS said FROM crm.email_queue")
    assert json.loads(mail["said"]) == {
        "segment": "at_risk",
        "points": 7,
        "since": "2026-02-03",
        "is_vip": True,
        "motto": 'to "go"',
        "saved": "1.2500",
        "version": 1,
    }


def test_a_type_that_no_column_has_is_told(
    environment: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MORE_COLUMNS", {"points": "float"})

    with pytest.raises(UsageError, match="MORE_COLUMNS: points is 'float', not text, integer"):
        email_triggers.sync()


def test_a_template_that_was_renamed_without_a_word_mails_nobody(
    mart: Mart, select: Select, win_back: Any
) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(4)), user("zoe", "at_risk")))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'sent' WHERE user_id <> 'zoe'")
    before = queue(select)

    win_back(template="win_back_v2")
    for dry_run in (True, False):
        with pytest.raises(Refused, match="win_back, which no rule has, has 5 mails of"):
            email_triggers.sync(dry_run=dry_run)
    assert queue(select) == before


def test_a_template_that_says_its_former_name_keeps_its_history_and_its_reins(
    mart: Mart, select: Select, win_back: Any
) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(4)), user("zoe", "at_risk")))
    email_triggers.sync()
    execute(
        "UPDATE crm.email_queue SET status = 'sent', sent_at = now() WHERE user_id <> 'zoe'",
        "UPDATE crm.email_templates SET paused = true WHERE template = 'win_back'",
    )

    win_back(template="win_back_v2", renamed_from="win_back")
    result = email_triggers.sync()

    assert counts(result) == {"unchanged": 5}
    assert queue(select)[-1] == "zoe win_back_v2 pending"
    assert select("SELECT paused FROM crm.email_templates WHERE template = 'win_back_v2'") == [
        {"paused": True}
    ]
    mart(audience(user("u1", "at_risk", last=NOW - HOUR / 2), user("zoe", "at_risk")))
    assert counts(email_triggers.sync(force=True)) == {"unchanged": 1, "held_back": 1}


def test_who_unsubscribed_from_a_template_has_done_so_under_its_new_name(
    mart: Mart, select: Select, win_back: Any
) -> None:
    """Also who does so later by the old name, which the link in an old mail may bear."""
    mart(audience(*(user(name, "at_risk") for name in ("ann", "bob", "eve"))))
    execute("INSERT INTO crm.email_suppressions VALUES ('ann', 'asked', now(), 'win_back')")
    email_triggers.sync()

    win_back(template="win_back_v2", renamed_from="win_back")
    dry = email_triggers.sync(dry_run=True)
    kept = select("SELECT template FROM crm.email_suppressions")
    result = email_triggers.sync()

    assert counts(dry) == counts(result) == {"unchanged": 2, "suppressed": 1}
    assert len(kept) == 1
    unsubscribed = "SELECT user_id, template, reason FROM crm.email_suppressions ORDER BY template"
    assert [tuple(row.values()) for row in select(unsubscribed)] == [
        ("ann", "win_back", "asked"),
        ("ann", "win_back_v2", "asked"),
    ]
    execute("INSERT INTO crm.email_suppressions (user_id, template) VALUES ('bob', 'win_back')")
    assert counts(email_triggers.sync()) == {"unchanged": 1, "suppressed": 1, "cancelled": 1}


def test_shards_side_by_side_give_their_own_mails_the_new_name_and_mail_nobody_again(
    mart: Mart, select: Select, win_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(40))))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'sent', sent_at = now() - INTERVAL '3 days'")
    win_back(template="win_back_v2", renamed_from="win_back")
    results = []
    look = warnings.look

    def let_the_other_go_first(run: Any, *told: Any) -> None:
        look(run, *told)
        if run.job.shard == (0, 2):
            results.append(email_triggers.sync(shard=(1, 2)))

    monkeypatch.setattr(warnings, "look", let_the_other_go_first)
    results.append(email_triggers.sync(shard=(0, 2)))

    assert [counts(result) for result in results] == [{"unchanged": 18}, {"unchanged": 22}]
    assert [mail.partition(" ")[2] for mail in queue(select)] == ["win_back_v2 sent"] * 40


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry", "wet"])
def test_a_worker_does_not_wait_for_a_run_that_renames_its_mail(
    dry_run: bool, mart: Mart, select: Select, win_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    (mail,) = ask("claim_emails", 1, "worker")
    win_back(template="win_back_v2", renamed_from="win_back")
    look, done = warnings.look, []

    def report(*told: Any) -> None:
        look(*told)
        done.extend(ask("complete_email", mail["id"], "worker", mail["claimed_at"], True, None))

    monkeypatch.setattr(warnings, "look", report)
    email_triggers.sync(dry_run=dry_run)

    assert [row["status"] for row in done] == ["sent"]
    assert queue(select) == [f"ann win_back{'' if dry_run else '_v2'} sent"]


def test_a_mail_that_a_worker_holds_gets_the_new_name_too(
    mart: Mart, select: Select, win_back: Any
) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))
    email_triggers.sync()
    ask("claim_emails", 1, "worker")

    win_back(template="win_back_v2", renamed_from="win_back")
    email_triggers.sync()

    names = "SELECT template, status FROM crm.email_queue ORDER BY status"
    assert [(row["template"], row["status"]) for row in select(names)] == [
        ("win_back_v2", "pending"),
        ("win_back_v2", "processing"),
    ]


def test_waiting_mails_of_the_former_name_count_for_the_guard(mart: Mart, win_back: Any) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(300))))
    email_triggers.sync()

    win_back(template="win_back_v2", renamed_from="win_back")
    mart(audience(*(user(f"u{n}", "at_risk" if n < 100 else "regular") for n in range(300))))

    with pytest.raises(Refused, match="wipe: 200 of 300 pending mails would be cancelled"):
        email_triggers.sync()


def test_visits_of_mails_of_the_former_name_speak_against_a_mart_without(
    mart: Mart, win_back: Any
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    execute("DELETE FROM etl.sync_runs")

    win_back(template="win_back_v2", renamed_from="win_back")
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")

    with pytest.raises(Refused, match="1 mail of the queue has a visit"):
        email_triggers.sync()


def test_explain_knows_a_template_by_its_former_name(mart: Mart, win_back: Any) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))
    execute("INSERT INTO crm.email_suppressions (user_id, template) VALUES ('bob', 'win_back')")
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'sent', sent_at = now() - INTERVAL '3 days'")

    win_back(template="win_back_v2", renamed_from="win_back")

    told = [explain(name)["mails"]["next_run"]["decisions"][0] for name in ("ann", "bob")]
    assert [(one["template"], one["outcome"]) for one in told] == [
        ("win_back_v2", "sent"),
        ("win_back_v2", "suppressed"),
    ]


def test_two_mails_of_one_visit_under_both_names_are_decided_upon_once(
    mart: Mart, select: Select, win_back: Any
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    execute(
        "UPDATE crm.email_queue SET status = 'sent', sent_at = now() - INTERVAL '40 days'",
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status)"
        " SELECT user_id, 'win_back_v2', episode_at, 3, '{}', 'cancelled' FROM crm.email_queue",
    )

    win_back(template="win_back_v2", renamed_from="win_back")

    assert counts(email_triggers.sync()) == {"updated": 1}
    assert queue(select) == ["ann win_back sent", "ann win_back_v2 pending"]


def test_a_retired_template_does_not_count(
    mart: Mart, win_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'sent', sent_at = now() - INTERVAL '2 days'")

    win_back(template="come_back")
    monkeypatch.setattr(rules, "RETIRED", frozenset({"win_back"}))

    assert counts(email_triggers.sync()) == {"inserted": 1}


def test_mails_of_other_programs_are_no_former_template(mart: Mart) -> None:
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
        " sent_at) VALUES ('ann', 'receipt', 'epoch', 1, '{}', 'sent', 'epoch')"
    )
    mart(audience(user("bob", "at_risk")))

    assert email_triggers.sync()["inserted"] == 1


# Marts without visits


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("last", "becomes"),
    [
        (NOW - HOUR, ["ann win_back cancelled: superseded", "ann win_back pending"]),
        (NOW - 400 * DAY, ["ann win_back cancelled: unknown_visit"]),
        (None, ["ann win_back cancelled: unknown_visit"]),
    ],
    ids=["fresh", "old news", "unknown"],
)
def test_a_mail_of_a_mart_without_visits_gives_way_when_the_mart_has_them(
    last: dt.datetime | None, becomes: list[str], mart: Mart, select: Select
) -> None:
    mart(audience(user("ann", "at_risk")))
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")
    assert counts(email_triggers.sync()) == {"inserted": 1}

    mart(audience(user("ann", "at_risk", last=last)))
    dry = email_triggers.sync(dry_run=True)
    wet = email_triggers.sync()

    assert queue(select) == becomes
    assert counts(dry) == counts(wet)
    assert wet["cancelled"] == 1


@pytest.mark.few(2)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        (["last_seen_at"], {"ann win_back", "eve loyalty"}),
        (["first_seen_at"], {"bob welcome"}),
        (["first_seen_at", "last_seen_at"], {"ann win_back", "bob welcome", "eve loyalty"}),
    ],
)
def test_mails_without_a_visit_give_way_whichever_column_was_missing_and_in_shards(
    missing: list[str], gone: set[str], shards: int, mart: Mart, select: Select
) -> None:
    users = {"ann": "at_risk", "bob": "new_user", "eve": "high_value"}
    whole = audience(*(user(name, segment) for name, segment in users.items()))
    mart(whole, *(f"ALTER TABLE mart_user_segments DROP COLUMN {name}" for name in missing))
    assert in_shards(email_triggers.sync, shards)["inserted"] == 3

    mart(whole)
    result = in_shards(email_triggers.sync, shards)

    mails = queue(select)
    assert {m.removesuffix(" cancelled: superseded") for m in mails if "superseded" in m} == gone
    assert sorted(m for m in mails if m.endswith("pending")) == [
        "ann win_back pending",
        "bob welcome pending",
        "eve loyalty pending",
    ]
    assert (result["cancelled"], result["inserted"]) == (len(gone), len(gone))


def test_taking_back_mails_without_a_visit_is_no_reason_to_refuse(mart: Mart) -> None:
    mart(audience(*(user(f"u{n:03}", "at_risk") for n in range(200))))
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")
    email_triggers.sync()
    mart(audience(*(user(f"u{n:03}", "at_risk", last=NOW - 400 * DAY) for n in range(200))))

    assert counts(email_triggers.sync()) == {"cancelled": 200}


def test_a_mail_of_a_mart_without_visits_counts_for_the_cooldown(mart: Mart) -> None:
    mart(audience(user("ann", "at_risk")))
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'sent', sent_at = now() - INTERVAL '29 days'")

    mart(audience(user("ann", "at_risk")))

    assert counts(email_triggers.sync()) == {"held_back": 1}


# The status page


def test_the_status_page_tells_who_holds_mails_back(mart: Mart) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))
    email_triggers.sync()
    execute(
        "UPDATE crm.email_queue SET status = 'processing', claimed_at = now() - INTERVAL '25 min'"
        " WHERE user_id = 'ann'",
        "INSERT INTO crm.email_allowlist (user_id) VALUES ('bob')",
        "UPDATE crm.email_templates SET paused = true WHERE template = 'loyalty'",
        "UPDATE crm.email_templates SET daily_cap = 9 WHERE template = 'welcome'",
    )

    page = " ".join(command("etl.status").stdout.split())

    assert "1 processing (oldest 25 min ago)" in page
    assert "a worker claimed a mail 25 min ago and has not reported it" in page
    assert "only 1 user is mailed: crm.email_allowlist is on" in page
    assert "paused templates: loyalty" in page
    assert "mails a day at most: welcome 9" in page


def test_the_status_page_says_nothing_of_a_claim_within_its_lease(mart: Mart) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'processing', claimed_at = now()")

    assert "has not reported" not in command("etl.status").stdout
