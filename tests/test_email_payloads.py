"""email_triggers: what a mail carries, whom transform would mail, and the page's rules."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import ROOT
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, user
from polars.testing import assert_frame_equal

from etl import email_triggers
from etl.email_triggers import transform
from etl.mail import rules
from etl.mail.rules import RULES, Rule

if TYPE_CHECKING:
    pass


EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.template)


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


@pytest.mark.few(2)
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


def in_words(time: dt.timedelta) -> str:
    return f"{time // HOUR} h" if time <= 3 * DAY else f"{time // DAY} days"
