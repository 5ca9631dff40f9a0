"""The rules of the mail queue: which segment gets which mail, when, and how often.

docs/email-queue.md tells them to people. Every other module reads them here.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from etl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


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

    @property
    def names(self) -> list[str]:
        """Under which names mails of it are in the queue."""
        return [self.template, *([self.renamed_from] if self.renamed_from else [])]


_BASE = ("segment", "last_seen_at", "platform", "country")
_FULL = (*_BASE, "total_searches", "total_conversions", "lifetime_value")

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)

# The columns with moments that may open an occasion.
VISITS = ("first_seen_at", "last_seen_at")

_LONGEST = 3_650 * _DAY

# fmt: off
RULES = (
    # segment, template, priority, episode, max age, cooldown, payload
    Rule("abandoned_search", "abandoned_search", 1, "last_seen_at",  72 * _HOUR, 24 * _HOUR, _FULL),
    Rule("new_user",         "welcome",          2, "first_seen_at", 14 * _DAY,  None,       _BASE),
    Rule("at_risk",          "win_back",         3, "last_seen_at",  180 * _DAY, 30 * _DAY,  _FULL),
    Rule("high_value",       "loyalty",          4, "last_seen_at",  90 * _DAY,  90 * _DAY,  _FULL),
)
# fmt: on

# Columns of the mart, beside those that every mart has, which a payload says: their types by their
# names, such as {"loyalty_points": "integer"}. Contract and query follow.
MORE_COLUMNS: dict[str, str] = {}
TYPES = ("text", "integer", "decimal", "boolean", "date", "moment")

# Former templates whose mails are not to count for the template of their segment now.
RETIRED: frozenset[str] = frozenset()

# Raise it when a field of a payload changes its meaning: mail templates can tell.
PAYLOAD_VERSION = 1

# The one episode of a user, for ever, where the mart has no visit columns: never old news.
NO_EPISODE_DATE = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)


def check(columns: Collection[str]) -> None:
    """Check the rules against each other and against the columns that a mail can use.

    Raises:
        UsageError: naming everything that cannot be meant.
    """
    problems = [
        f"MORE_COLUMNS: {name} is {kind!r}, not {', '.join(TYPES)}"
        for name, kind in MORE_COLUMNS.items()
        if kind not in TYPES
    ]
    problems += [*_clashes(), *(text for rule in RULES for text in _problems(rule, columns))]
    if problems:
        raise UsageError(f"RULES in etl/mail/rules.py: {'; '.join(problems)}; correct them")


def _clashes() -> Iterator[str]:
    for what in ("segment", "template", "renamed_from"):
        names = Counter(name for rule in RULES if (name := getattr(rule, what)))
        for name in sorted(name for name, n in names.items() if n > 1):
            yield f"two rules have the {what} {name!r}, which can have one"
    current = {rule.template for rule in RULES}
    for name in sorted(current & {*(rule.renamed_from or "" for rule in RULES), *RETIRED}):
        yield f"the template {name!r} is a rule's and a former name as well"


def _problems(rule: Rule, columns: Collection[str]) -> Iterator[str]:
    name = rule.template
    if not (rule.segment and name) or name == "*":
        yield f"segment {rule.segment!r}, template {name!r}: both need a name ('*' is none)"
    if unknown := sorted({rule.episode, *rule.payload} - set(columns)):
        yield f"{name}: no column {', '.join(unknown)}; there are {', '.join(sorted(columns))}"
    elif rule.episode not in VISITS:
        yield f"{name}: {rule.episode} is no visit; an occasion is {' or '.join(VISITS)}"
    if not 1 <= rule.priority <= 32_767:
        yield f"{name}: priority {rule.priority} is not from 1 to 32767"
    times = {"max age": rule.max_age, "cooldown": rule.cooldown}
    for what, time in times.items():
        if time is not None and not timedelta(0) < time <= _LONGEST:
            yield f"{name}: {what} {time} is not above 0 and up to {_LONGEST.days} days"


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
