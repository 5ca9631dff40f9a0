"""email_triggers: mails that are taken back, suppressed or somebody else's, and dry runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from destinations import in_shards
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, counts, queue, user

from etl import email_triggers

if TYPE_CHECKING:
    from etl.postgres import Connection


from mails import change, execute, mailed_lately, suppress

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


@pytest.mark.few(2)
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


# Builders


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
