"""etl.explain: what a run would decide about a user's mails, why, and until when."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from conftest import segments
from destinations import execute
from fixture_types import Mart
from mails import DAY, HOUR, NOW, audience, user

from etl import email_triggers
from etl.explain import explain, page, words

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
