"""etl.explain: what a run would decide about a user's mails, why, and until when."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from conftest import segments
from destinations import execute
from fixture_types import Mart
from mails import DAY, HOUR, NOW, audience, user

from etl import email_triggers, postgres, user_segments
from etl.explain import explain, page, words
from etl.mail import rules
from etl.postgres import Connection

# Of each user the outcome of a run, and words of the page.
KINDS: dict[str, tuple[str | None, str]] = {
    "fresh": ("queued", "A run now: win_back would be queued."),
    "cooled": (
        "held back: cooldown",
        "no win_back again, because the user got it before: win_back,",
    ),
    "greeted": ("held back: cooldown", "It is sent once and never again."),
    "mailed": ("held back: gap", "another mail just before: loyalty, 3 hours ago ("),
    "busy": ("held back: open", "no win_back yet, because another mail is on its way: loyalty,"),
    "silent": ("suppressed", "no win_back, because the user has unsubscribed."),
    "old": ("old news", "no win_back, because the visit is too long ago."),
    "unseen": ("held back: no episode", "because nobody knows when the visit was."),
    "plain": (None, "no mail, because there is no template for the segment regular."),
    "gone": (
        "cancelled: left_mart",
        "because the user is no longer in the mart.",
    ),
    "bad": (None, "no mail, because the mart's row is rejected."),
    "waits": ("waiting", "win_back waits for a mail worker, and would stay as it is."),
    "done": ("sent", "no win_back, because it was sent for this visit."),
}
PEOPLE = (
    *(user(name, "at_risk") for name in ("fresh", "cooled", "mailed", "busy", "silent", "waits")),
    user("greeted", "new_user"),
    user("old", "at_risk", last=NOW - 400 * DAY),
    user("unseen", "at_risk", last=None),
    user("plain", "regular"),
    user("bad", "at_risk", searches=-1),
    user("done", "at_risk"),
)
VISIT = f"'{NOW - HOUR:%Y-%m-%d %H:%M:%S}+00'::timestamptz"
MAILS = f"""
    INSERT INTO crm.email_queue
        (user_id, template, episode_at, priority, payload, status, sent_at, claimed_at, expires_at)
    VALUES
        ('cooled', 'win_back', 'epoch', 3, '{{}}', 'sent', now() - interval '9 days', NULL, NULL),
        ('greeted', 'welcome', 'epoch', 2, '{{}}', 'sent', now() - interval '900 days', NULL, NULL),
        ('mailed', 'loyalty', 'epoch', 4, '{{}}', 'sent', now() - interval '3 hours', NULL, NULL),
        ('busy', 'loyalty', 'epoch', 4, '{{}}', 'processing', NULL, now(), NULL),
        ('done', 'win_back', {VISIT}, 3, '{{}}', 'sent', now() - interval '1 hour', NULL, NULL),
        ('gone', 'win_back', {VISIT}, 3, '{{}}', 'pending', NULL, NULL, NULL)
"""


@pytest.fixture
def people(mart: Mart) -> None:
    """Users of every kind."""
    mart(audience(user("waits", "at_risk")))
    email_triggers.sync(force=True)
    mart(audience(*PEOPLE))
    execute(MAILS, "INSERT INTO crm.email_suppressions VALUES ('silent', 'asked for it')")


def test_of_every_kind_of_user_the_decision_and_its_reason_are_told(
    people: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    dry = email_triggers.sync(dry_run=True, force=True, name_users=True)
    foretold = {user: one["outcome"] for one in dry["outcomes"] for user in one["users"]}

    told = {name: explain(name) for name in KINDS}

    outcomes = {name: _outcome(one) for name, one in told.items()}
    assert outcomes == {name: outcome for name, (outcome, _) in KINDS.items()}
    assert {name: one for name, one in outcomes.items() if one} == foretold
    for name, (_, sentence) in KINDS.items():
        shown = page.page(told[name])
        assert sentence in " ".join(shown.split()), shown
        assert max(map(len, shown.splitlines())) < 80


def test_what_is_held_back_says_by_which_mail_and_until_when(people: None) -> None:
    cooled, mailed, busy, greeted = (
        explain(name)["mails"]["next_run"]["decisions"][0]
        for name in ("cooled", "mailed", "busy", "greeted")
    )

    assert (cooled["by"]["template"], cooled["by"]["status"]) == ("win_back", "sent")
    assert cooled["until"] - cooled["by"]["at"] == 30 * DAY
    assert mailed["until"] - mailed["by"]["at"] == DAY
    assert (busy["by"]["template"], busy["by"]["status"]) == ("loyalty", "processing")
    assert (busy["until"], greeted["until"]) == (None, None)


def test_where_cooldown_and_gap_hold_a_mail_back_the_later_end_is_told(
    people: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMAIL_MIN_GAP_HOURS", str(40 * 24))

    (cooled,) = explain("cooled")["mails"]["next_run"]["decisions"]
    (greeted,) = explain("greeted")["mails"]["next_run"]["decisions"]

    assert cooled["outcome"] == greeted["outcome"] == "held back: cooldown"
    assert cooled["until"] - cooled["by"]["at"] == 40 * DAY
    assert greeted["until"] is None


def test_a_mail_of_a_mart_without_visits_never_expires(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = [replace(rule, max_age=3_650 * DAY) for rule in rules.RULES]
    monkeypatch.setattr(rules, "RULES", tuple(longest))
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")
    email_triggers.sync(force=True)

    told = explain("a")

    assert _outcome(told) == "waiting"
    assert "expires" not in page.page(told)


def test_moments_of_an_altered_table_are_told_as_far_as_it_has_them(people: None) -> None:
    user_segments.sync(force=True)
    execute(
        "ALTER TABLE crm.user_segments ALTER synced_at TYPE timestamp,"
        " ALTER segment_changed_at TYPE date"
    )

    assert "CRM: what sales and support see" in page.page(explain("waits"))


def test_visits_are_as_old_as_they_were_when_the_mart_was_built(mart: Mart) -> None:
    mart(audience(user("a", "abandoned_search", last=NOW - 80 * HOUR), built_at=NOW - 20 * HOUR))
    email_triggers.sync(force=True)

    (dry,) = email_triggers.sync(dry_run=True, force=True)["outcomes"]

    assert _outcome(explain("a")) == dry["outcome"] == "waiting"


def test_a_mart_without_visits_is_decided_as_by_a_run(mart: Mart) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    mart("ALTER TABLE mart_user_segments DROP COLUMN last_seen_at")

    (dry,) = email_triggers.sync(dry_run=True, force=True)["outcomes"]

    assert _outcome(explain("a")) == dry["outcome"] == "queued"


def test_unsubscribes_pauses_and_the_allowlist_are_told(people: None) -> None:
    execute(
        "UPDATE crm.email_templates SET paused = true WHERE template = 'win_back'",
        "INSERT INTO crm.email_allowlist (user_id) VALUES ('waits')",
    )

    silent, waits = explain("silent"), explain("waits")

    assert [one["template"] for one in silent["mails"]["suppressions"]] == ["*"]
    assert (silent["mails"]["not_on_allowlist"], waits["mails"]["not_on_allowlist"]) == (
        True,
        False,
    )
    shown = " ".join(page.page(silent).split())
    assert "unsubscribed from every mail just now (" in shown
    assert "UTC): asked for it not on the allowlist" in shown
    assert "The template win_back is paused: workers are handed none." in page.page(waits)


# Of each user's waiting mail: why a claim now does not hand it out, for how many hours, and words.
RESTS: dict[str, tuple[str | None, float | None, str]] = {
    "free": (None, None, "a claim now may hand it out"),
    "over": ("expired", None, "does not hand it out: its visit is too long ago"),
    "silent": ("suppressed", None, "does not hand it out: the user has unsubscribed"),
    "mailed": ("gap", 21, "since it was queued. Possible again in 21 hours ("),
    "got": ("cooldown", 27 * 24, "the user got this template since it was queued"),
    "greeted": ("cooldown", None, "does not hand it out: the user got this template since"),
    "failed": ("not due", 4, "tried again later. Possible again in 4 hours ("),
    "stopped": ("paused", None, "does not hand it out: its template is paused"),
    "capped": ("daily cap", None, "the daily cap is reached"),
    "behind": (None, None, "but the daily cap leaves 1, and 2 are due before it"),
}
_TEMPLATES = {
    "greeted": "welcome",
    "stopped": "loyalty",
    "capped": "abandoned_search",
    "behind": "b",
    "ahead": "b",
    "first": "b",
}
WAITING = (
    "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, expires_at,"
    " not_before) VALUES "
    + ", ".join(
        f"('{name}', '{_TEMPLATES.get(name, 'win_back')}', 'epoch', {9 if name == 'behind' else 3},"
        f" '{{}}', now() + interval '{-1 if name == 'over' else 99} hours',"
        f" {'now() + interval $$4 hours$$' if name == 'failed' else '$$epoch$$'})"
        for name in (*RESTS, "ahead", "first")
    ),
    "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
    " sent_at) VALUES"
    " ('mailed', 'phone', now(), 3, '{}', 'sent', now() - interval '3 hours'),"
    " ('got', 'win_back', now(), 3, '{}', 'sent', now() - interval '72 hours'),"
    " ('greeted', 'welcome', now(), 3, '{}', 'sent', now() - interval '900 days'),"
    " ('somebody', 'abandoned_search', now(), 3, '{}', 'processing', NULL)",
    "INSERT INTO crm.email_suppressions (user_id, template) VALUES ('silent', 'win_back')",
    "UPDATE crm.email_templates SET min_gap = '24 hours'",
    "UPDATE crm.email_templates SET paused = true WHERE template = 'loyalty'",
    "UPDATE crm.email_templates SET daily_cap = 1 WHERE template = 'abandoned_search'",
    "INSERT INTO crm.email_templates (template, daily_cap) VALUES ('b', 1)",
)


def test_of_a_waiting_mail_it_is_told_what_a_claim_now_does_with_it_and_why(
    mart: Mart, database: Connection
) -> None:
    mart(audience(user("nobody", "regular")))
    execute(*WAITING)

    told = {name: explain(name) for name in RESTS}
    claimed = {row["user_id"] for row in postgres.query(database, "claim_emails", 99, "w1")}

    waiting = {
        name: next(mail for mail in one["mails"]["mails"] if mail["status"] == "pending")
        for name, one in told.items()
    }
    assert {name: mail["rests"] for name, mail in waiting.items()} == {
        name: reason for name, (reason, _, _) in RESTS.items()
    }
    for name, (reason, hours, said) in RESTS.items():
        until = waiting[name]["rests_until"]
        if reason == "daily cap":
            assert (until.hour, until.minute, until > told[name]["at"]) == (0, 0, True)
        else:
            assert (hours is None) == (until is None)
            assert hours is None or abs(until - told[name]["at"] - hours * HOUR) < HOUR / 60
        assert said in " ".join(page.page(told[name]).split())
    # "behind" may go, but those that are due before it fill the cap.
    assert claimed & RESTS.keys() == {"free"}
    execute("INSERT INTO crm.email_allowlist (user_id) VALUES ('somebody')")
    assert explain("free")["mails"]["mails"][0]["rests"] == "allowlist"


def test_what_is_to_be_queued_of_a_template_whose_cap_is_reached_is_told(people: None) -> None:
    execute(
        "UPDATE crm.email_templates SET daily_cap = 1 WHERE template = 'win_back'",
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
        " sent_at) VALUES ('today', 'win_back', now(), 3, '{}', 'sent', now())",
    )

    assert "The daily cap of win_back is reached" in page.page(explain("fresh"))


def test_moments_are_told_in_words_and_in_utc() -> None:
    now = dt.datetime(2026, 11, 26, 8, tzinfo=dt.UTC)
    moments = {
        dt.timedelta(seconds=-20): "just now (2026-11-26 07:59 UTC)",
        dt.timedelta(minutes=-1): "1 minute ago (2026-11-26 07:59 UTC)",
        dt.timedelta(hours=-3): "3 hours ago (2026-11-26 05:00 UTC)",
        dt.timedelta(days=-3): "3 days ago (2026-11-23 08:00 UTC)",
        dt.timedelta(days=20): "in 20 days (2026-12-16 08:00 UTC)",
    }

    assert {age: words.when(now + age, now) for age in moments} == moments


# Helpers


def _outcome(told: dict[str, Any]) -> str | None:
    decisions = told["mails"]["next_run"]["decisions"]
    assert len(decisions) <= 1
    return decisions[0]["outcome"] if decisions else None
