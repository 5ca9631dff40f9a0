"""The words of rules, reasons and moments, for people in support and marketing."""

from __future__ import annotations

import datetime as dt
from typing import Any

from etl.plumbing.counted import counted

# Why a row is rejected: docs/operations.md says more.
_REASONS = {
    "null": "has no value",
    "empty": "is empty",
    "too_long": "is longer than 255 characters",
    "nul": "holds a NUL byte",
    "too_small": "is too small",
    "too_large": "is too large",
    "not_finite": "is no number",
    "unfit": "does not fit the type of its column",
    "in_the_future": "lies in the future",
}

# What becomes of an occasion; the outcomes are those of a dry run (docs/email-queue.md).
_OUTCOMES = {
    "queued": "{} would be queued",
    "pending again": "{} was cancelled and would wait again, because its occasion holds again",
    "refreshed": "{} waits, and would say something else from now on",
    "waiting": "{} waits for a mail worker, and would stay as it is",
    "being sent": "{} is being sent, and would stay as it is",
    "sent": "no {}, because it was sent for this visit",
    "failed": "no {}, because it was given up for this visit",
    "old news": "no {}, because the visit is too long ago",
    "suppressed": "no {}, because the user has unsubscribed",
    "held out": "no {}, because the user gets none, to measure what mails do",
    "held back: holdout": "no {}, because the user gets none, to measure what mails do",
    "held back: no episode": "no {}, because nobody knows when the visit was",
    "held back: cooldown": "no {} again, because the user got it before",
    "held back: gap": "no {} yet, because the user got another mail just before",
    "held back: open": "no {} yet, because another mail is on its way",
}
_CANCELLED = "cancelled: "

# Why a waiting mail is cancelled.
_CANCELS = {
    "left_segment": "the user is no longer in its segment",
    "left_mart": "the user is no longer in the mart",
    "expired": "its visit is too long ago",
    "superseded": "a newer occasion takes its place",
    "suppressed": "the user has unsubscribed",
    "unknown_visit": "nobody knows the visit it was for",
    "holdout": "one of those who get none, to measure what mails do",
}

# Why a claim hands a waiting mail to nobody: crm.email_waiting in sql/postgres/schema.sql.
_RESTS = {
    "expired": "its visit is too long ago",
    "suppressed": "the user has unsubscribed",
    "allowlist": "the user is not on the allowlist",
    "paused": "its template is paused",
    "cooldown": "the user got this template since it was queued",
    "gap": "the user was mailed since it was queued",
    "not due": "it was not sent, or another stood in its way, and is tried again later",
    "daily cap": "the daily cap is reached",
}

# explain_mails.sql counts no further.
_MOST_COUNTED = 1000

# Visits of a mart that has none (rules.NO_EPISODE_DATE).
_NO_VISIT_YEAR = 9999


def when(moment: dt.datetime | None, now: dt.datetime) -> str:
    """A moment in words and in figures: `3 days ago (2026-11-23 08:00 UTC)`."""
    if moment is None:
        return "nobody knows when"
    if moment.year == _NO_VISIT_YEAR:
        return "never known"
    figures = f"({moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC)"
    span = _span(abs(now - moment))
    if not span:
        return f"just now {figures}"
    return f"{span} ago {figures}" if moment <= now else f"in {span} {figures}"


def left(seconds: int | None) -> str:
    """How long a key lasts, as `cache.look_up` tells it."""
    if seconds is None:
        return "for how long is not told (allow +pttl)"
    if seconds < 0:
        return "which never expires"
    return f"{_span(dt.timedelta(seconds=seconds)) or 'less than a minute'} left"


def rejected(reason: str) -> str:
    """Why a row was rejected: `total searches is too small (total_searches:too_small)`."""
    if reason == "duplicate":
        return "several rows have this id, and nobody knows which is right (duplicate)"
    column, _, rule = reason.partition(":")
    return f"{spoken(column)} {_REASONS.get(rule, 'breaks a rule')} ({reason})"


def outcome(word: str, template: str) -> str:
    """What becomes of an occasion or of a waiting mail: `win_back would be queued`."""
    if word.startswith(_CANCELLED):
        reason = cancelled(word.removeprefix(_CANCELLED))
        return f"{template} waits and would be cancelled, because {reason}"
    known = _OUTCOMES.get(word)
    return known.format(template) if known else f"{template} {word}"


def cancelled(reason: str | None) -> str:
    """Why a mail was cancelled."""
    return _CANCELS.get(reason or "", reason or "")


def claim(mail: dict[str, Any], now: dt.datetime) -> str:
    """What a claim now does with a waiting mail, and why: `may hand it out`."""
    if why := mail["rests"]:
        until = mail["rests_until"]
        again = f". Possible again {when(until, now)}" if until else ""
        return f"does not hand it out: {_RESTS.get(why, why)}{again}"
    left, before = mail["cap_left"], mail["due_before"]
    if left is None or before < left:
        return "may hand it out"
    return (
        f"may hand it out, but the daily cap leaves {left:,}, and {_few(before)} are due before it"
    )


def _few(mails: int) -> str:
    return f"{mails:,} or more" if mails == _MOST_COUNTED else f"{mails:,}"


def columns(row: dict[str, Any]) -> str:
    """The figures of a row: `segment at_risk, total searches 12, lifetime value 12.50`."""
    return ", ".join(f"{spoken(name)} {value(one)}" for name, one in row.items())


def change(name: str, values: dict[str, Any]) -> str:
    """What becomes of a column: `total searches 12 -> 13`."""
    return f"{spoken(name)} {value(values['old'])} -> {value(values['new'])}"


def spoken(column: str) -> str:
    """The name of a column as people say it: `first seen` for first_seen_at."""
    return column.removesuffix("_at").replace("_", " ")


def value(one: Any) -> str:
    """A value as people write it."""
    if one is None:
        return "(none)"
    return f"{one:,.2f}" if isinstance(one, float) else f"{one:,}" if isinstance(one, int) else one


def _span(age: dt.timedelta) -> str:
    minutes = age.total_seconds() / 60
    if minutes < 1:
        return ""
    for unit, length, most in (("minute", 1, 120), ("hour", 60, 48 * 60), ("day", 1440, None)):
        if most is None or minutes < most:
            return counted(round(minutes / length), unit)
    return ""
