"""The rules of the mail queue: which segment gets which mail, when, and how often.

docs/email-queue.md tells them to people. Every other module reads them here.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Rule:
    """One template: whom it is for, what opens an occasion, and how often it may be sent."""

    segment: str
    template: str
    priority: int  # 1 is the most urgent
    episode: str  # the column with the fact that opens the occasion
    max_age: timedelta  # older occasions are old news: no mail
    cooldown: timedelta | None  # before the same template again; None: never again
    payload: tuple[str, ...]  # what the mail may say
    renamed_from: str | None = None  # the template's former name: its history goes on


_BASE = ("segment", "last_seen_at", "platform", "country")
_FULL = (*_BASE, "total_searches", "total_conversions", "lifetime_value")

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)

# fmt: off
RULES = (
    # segment, template, priority, episode, max age, cooldown, payload
    Rule("abandoned_search", "abandoned_search", 1, "last_seen_at",  72 * _HOUR, 24 * _HOUR, _FULL),
    Rule("new_user",         "welcome",          2, "first_seen_at", 14 * _DAY,  None,       _BASE),
    Rule("at_risk",          "win_back",         3, "last_seen_at",  180 * _DAY, 30 * _DAY,  _FULL),
    Rule("high_value",       "loyalty",          4, "last_seen_at",  90 * _DAY,  90 * _DAY,  _FULL),
)
# fmt: on

# Raise it when a field of a payload changes its meaning: mail templates can tell.
PAYLOAD_VERSION = 1

# The one episode of a user, for ever, where the mart has no visit columns: never old news.
NO_EPISODE_DATE = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)


def templates() -> dict[str, str]:
    """Return the template of each segment that has one."""
    return {rule.segment: rule.template for rule in RULES}


def visits() -> frozenset[str]:
    """Return the columns with the facts that open occasions."""
    return frozenset(rule.episode for rule in RULES)


def limits() -> list[dict[str, str | float | None]]:
    """Return what SQL needs of each rule, times in seconds."""
    return [
        {
            "template": rule.template,
            "max_age": rule.max_age.total_seconds(),
            "cooldown": None if rule.cooldown is None else rule.cooldown.total_seconds(),
            "renamed_from": rule.renamed_from,
        }
        for rule in RULES
    ]
