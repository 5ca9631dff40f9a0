"""What a claim hands out, and who holds it back: age, history, allowlist, pauses and caps."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from destinations import execute
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, counts, queue, user

from etl import email_triggers, postgres
from etl.errors import SyncError
from etl.init_db import init_db
from etl.plumbing import queries
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection


class Ask(Protocol):
    """Run one of a worker's statements and commit; its rows."""

    def __call__(self, name: str, *parameters: Any) -> list[dict[str, Any]]: ...


@pytest.fixture
def ask(environment: object) -> Iterator[Ask]:
    """Run one of a worker's statements and commit."""
    with open_worker() as ask:
        yield ask


# Age


def test_old_news_is_not_handed_out_though_no_sync_runs(
    mart: Mart, ask: Ask, select: Select
) -> None:
    seen = NOW - 71 * HOUR
    mart(audience(user("ann", "abandoned_search", last=seen), user("bob", "at_risk", last=seen)))
    email_triggers.sync()
    pass_time(2)

    assert [mail["user_id"] for mail in claim(ask)] == ["bob"]

    mart(audience(user("ann", "abandoned_search", last=seen - 2 * HOUR), user("bob", "at_risk")))
    email_triggers.sync()
    assert queue(select)[0] == "ann abandoned_search cancelled: expired"


def test_a_waiting_mail_of_before_gets_its_age_limit_from_the_next_sync(
    mart: Mart, select: Select
) -> None:
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET expires_at = NULL")

    assert counts(email_triggers.sync()) == {"updated": 1}
    (row,) = select("SELECT episode_at, expires_at FROM crm.email_queue")
    assert row["expires_at"] - row["episode_at"] == 180 * DAY
    assert counts(email_triggers.sync()) == {"unchanged": 1}


# The idempotency key


def test_the_key_is_the_mail_and_not_the_row(mart: Mart, ask: Ask) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk")))
    email_triggers.sync()
    before = {mail["user_id"]: mail for mail in claim(ask)}
    execute("TRUNCATE crm.email_queue RESTART IDENTITY")
    mart(audience(user("aaa", "at_risk"), user("ann", "at_risk"), user("bob", "at_risk")))
    email_triggers.sync(force=True)

    after = {mail["user_id"]: mail for mail in claim(ask)}

    keys = {name: mail["idempotency_key"] for name, mail in after.items()}
    assert keys == {"aaa": keys["aaa"]} | {n: m["idempotency_key"] for n, m in before.items()}
    assert len(set(keys.values())) == 3
    assert after["aaa"]["id"] == before["ann"]["id"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b,c", "epoch"), ("a,b", "c", "epoch")),
        (('a"', "b", "epoch"), ("a", '"b', "epoch")),
        (("a", "b", "epoch"), ("a", "b", "1970-01-01 00:00:00.000001+00")),
        (("a", "b", "infinity"), ("a", "b", "-infinity")),
    ],
)
def test_different_mails_have_different_keys(
    one: tuple[str, str, str], other: tuple[str, str, str], select: Select
) -> None:
    made = [
        select("SELECT crm.email_idempotency_key($1, $2, $3::timestamptz) AS key", *mail)[0]["key"]
        for mail in (one, other)
    ]

    assert made[0] != made[1]


@pytest.mark.parametrize("meanwhile", ["waiting", "taken back and revived"])
def test_a_payload_is_frozen_from_the_first_attempt_on(
    meanwhile: str, mart: Mart, ask: Ask
) -> None:
    mart(audience(user("ann", "at_risk", searches=10), user("bob", "regular")))
    email_triggers.sync()
    (first,) = claim(ask)
    complete(ask, first, sent=False)

    if meanwhile == "taken back and revived":
        mart(audience(user("ann", "regular"), user("bob", "regular")))
        assert email_triggers.sync()["cancelled"] == 1
    mart(audience(user("ann", "at_risk", searches=99), user("bob", "regular")))
    email_triggers.sync()
    pass_time(1)
    (again,) = claim(ask)

    assert (again["payload"], again["idempotency_key"]) == (
        first["payload"],
        first["idempotency_key"],
    )
    assert json.loads(first["payload"])["total_searches"] == 10


# Sent otherwise


def test_a_late_sent_holds_back_the_mail_that_replaced_it(mart: Mart, ask: Ask) -> None:
    mart(audience(user("ann", "at_risk", last=NOW - 9 * DAY)))
    email_triggers.sync()
    (mail,) = claim(ask)
    ask("release_stale_emails", 0.0)
    mart(audience(user("ann", "at_risk", last=NOW - HOUR)))
    assert counts(email_triggers.sync()) == {"inserted": 1, "cancelled": 1}

    assert [row["status"] for row in complete(ask, mail)] == ["sent"]

    assert claim(ask) == []
    pass_time(29 * 24)
    assert claim(ask) == []  # the cooldown of its template
    pass_time(2 * 24)
    assert [mail["user_id"] for mail in claim(ask)] == ["ann"]


def test_a_mail_sent_without_the_queue_counts_for_gap_and_cooldown(
    mart: Mart, ask: Ask, select: Select
) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk"), user("eve", "at_risk")))
    email_triggers.sync()

    (first,) = ask("record_sent_email", "ann", "phone", NOW)
    again = ask("record_sent_email", "ann", "phone", NOW)
    ask("record_sent_email", "bob", "win_back", NOW - 2 * DAY)

    assert first["id"]
    assert again == []
    assert [mail["user_id"] for mail in claim(ask)] == ["eve"]
    mart(audience(user("ann", "high_value"), user("zoe", "regular")))
    assert email_triggers.sync()["held_back"] == 1


@pytest.mark.parametrize("meanwhile", ["pending", "cancelled", "failed"])
def test_a_mail_that_waits_and_was_sent_without_the_queue_at_its_visit_is_recorded(
    meanwhile: str, mart: Mart, ask: Ask, select: Select
) -> None:
    """A shop that welcomes at the moment of the first visit."""
    first = NOW - 2 * DAY
    mart(audience(user("ann", "new_user", first=first)))
    email_triggers.sync()
    execute(f"UPDATE crm.email_queue SET status = '{meanwhile}', reason = 'x'")

    (recorded,) = ask("record_sent_email", "ann", "welcome", first)
    again = ask("record_sent_email", "ann", "welcome", first)

    (row,) = select("SELECT id, status, reason, sent_at FROM crm.email_queue")
    assert row == {"id": recorded["id"], "status": "sent", "reason": "recorded", "sent_at": first}
    assert again == claim(ask) == []
    assert counts(email_triggers.sync()) == {"unchanged": 1}


def test_who_was_welcomed_otherwise_is_never_welcomed_again(mart: Mart, ask: Ask) -> None:
    mart(audience(user("ann", "new_user")))
    email_triggers.sync()
    ask("record_sent_email", "ann", "welcome", NOW - 300 * DAY)

    assert claim(ask) == []


def test_the_gap_at_the_claim_is_that_of_the_last_sync(
    mart: Mart, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(audience(user("ann", "at_risk")))
    monkeypatch.setenv("EMAIL_MIN_GAP_HOURS", "2")
    email_triggers.sync()
    ask("record_sent_email", "ann", "phone", NOW - 3 * HOUR)

    assert [mail["user_id"] for mail in claim(ask)] == ["ann"]


# Pauses and caps


def test_a_paused_template_rests_at_once_and_nothing_sets_it_going(mart: Mart, ask: Ask) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "new_user")))
    email_triggers.sync()
    execute("UPDATE crm.email_templates SET paused = true WHERE template = 'win_back'")

    assert [mail["user_id"] for mail in claim(ask)] == ["bob"]

    init_db()
    email_triggers.sync()
    assert claim(ask) == []
    execute("UPDATE crm.email_templates SET paused = false")
    assert [mail["user_id"] for mail in claim(ask)] == ["ann"]


def test_a_daily_cap_is_filled_with_the_most_urgent_and_starts_anew_at_midnight_utc(
    mart: Mart, ask: Ask, select: Select
) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(9)), user("new", "new_user")))
    email_triggers.sync()
    execute(
        "UPDATE crm.email_templates SET daily_cap = 3 WHERE template = 'win_back'",
        "UPDATE crm.email_queue SET priority = 2 WHERE user_id IN ('u7', 'u8')",
    )

    first = claim(ask, 2)
    second = claim(ask, 99)
    for mail in first:
        complete(ask, mail)

    assert [mail["user_id"] for mail in first + second] == ["new", "u7", "u8", "u0"]
    assert claim(ask) == []
    execute(
        "UPDATE crm.email_queue SET sent_at = date_trunc('day', now(), 'UTC') - interval '1s'"
        " WHERE status = 'sent'"
    )
    assert len(claim(ask)) == 1  # two are being sent


def test_a_cap_takes_the_most_urgent_of_a_template_whatever_else_is_claimed(
    ask: Ask, select: Select
) -> None:
    """The priorities of both templates lie in one another, and neither may go as a whole."""
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        " SELECT template || p || n, template, 'epoch', p, '{}'"
        " FROM unnest('{win_back,loyalty}'::text[]) AS template,"
        " generate_series(1, 4) AS p, generate_series(1, 12) AS n",
        "UPDATE crm.email_templates SET daily_cap = 12 WHERE template IN ('win_back', 'loyalty')",
    )

    claimed = claim(ask, 90)

    assert [mail["priority"] for mail in claimed] == [1] * 24


def test_a_mail_that_the_clock_dates_into_the_future_uses_up_no_cap_but_that_days(
    mart: Mart, ask: Ask
) -> None:
    """A server's clock was a year ahead, or somebody recorded a mail with a wrong year."""
    mart(audience(user("ann", "at_risk")))
    email_triggers.sync()
    execute("UPDATE crm.email_templates SET daily_cap = 1 WHERE template = 'win_back'")
    ask("record_sent_email", "bob", "win_back", NOW + 365 * DAY)

    assert [mail["user_id"] for mail in claim(ask)] == ["ann"]


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "12000-01-01"])
def test_a_moment_at_which_no_mail_can_have_been_sent_is_not_recorded(
    moment: str, environment: object, ask: Ask, select: Select
) -> None:
    with pytest.raises(SyncError, match="record_sent_email raised an error"):
        ask("record_sent_email", "bob", "win_back", moment)

    assert select("SELECT FROM crm.email_queue") == []


def test_a_mail_that_was_not_sent_gives_its_place_back(mart: Mart, ask: Ask) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(3))))
    email_triggers.sync()
    execute("UPDATE crm.email_templates SET daily_cap = 1 WHERE template = 'win_back'")

    (mail,) = claim(ask)
    assert claim(ask) == []
    complete(ask, mail, sent=False)

    assert len(claim(ask)) == 1


def test_two_claims_at_once_stay_within_the_cap(mart: Mart, ask: Ask, database: Connection) -> None:
    mart(audience(*(user(f"u{n}", "at_risk") for n in range(9))))
    email_triggers.sync()
    execute("UPDATE crm.email_templates SET daily_cap = 3 WHERE template = 'win_back'")

    first = postgres.query(database, "claim_emails", 2, "other")
    meanwhile = claim(ask)
    database.commit()
    second = claim(ask)

    assert (len(first), meanwhile, len(second)) == (2, [], 1)


def test_init_db_makes_a_row_for_each_template_and_overwrites_none(select: Select) -> None:
    execute(
        "DELETE FROM crm.email_templates WHERE template = 'loyalty'",
        "UPDATE crm.email_templates SET daily_cap = 7, paused = true",
    )

    init_db()

    rows = select("SELECT template, paused, daily_cap FROM crm.email_templates ORDER BY 1")
    assert [tuple(row.values()) for row in rows] == [
        ("abandoned_search", True, 7),
        ("loyalty", False, None),
        ("welcome", True, 7),
        ("win_back", True, 7),
    ]


# Who may be mailed


def test_while_the_allowlist_has_rows_nobody_else_is_mailed(mart: Mart, ask: Ask) -> None:
    mart(audience(*(user(name, "at_risk") for name in ("ann", "bob", "eve"))))
    email_triggers.sync()
    execute("INSERT INTO crm.email_allowlist (user_id) VALUES ('bob')")

    assert [mail["user_id"] for mail in claim(ask)] == ["bob"]
    execute("DELETE FROM crm.email_allowlist")
    assert [mail["user_id"] for mail in claim(ask)] == ["ann", "eve"]


def test_a_suppression_may_be_of_one_template(mart: Mart, ask: Ask, select: Select) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk"), user("eve", "new_user")))
    execute(
        "INSERT INTO crm.email_suppressions (user_id, template)"
        " VALUES ('ann', 'win_back'), ('ann', 'loyalty'), ('bob', 'welcome')"
    )
    assert counts(email_triggers.sync()) == {"inserted": 2, "suppressed": 1}
    execute("INSERT INTO crm.email_suppressions (user_id, template) VALUES ('eve', 'welcome')")

    assert [mail["user_id"] for mail in claim(ask)] == ["bob"]
    assert email_triggers.sync()["cancelled"] == 1
    assert queue(select)[1] == "eve welcome cancelled: suppressed"


# What a claim costs


@pytest.mark.few(1)
@pytest.mark.parametrize("state", ["paused", "not due", "capped"])
def test_a_claim_costs_the_same_however_many_mails_may_not_go(
    state: str, select: Select, database: Connection
) -> None:
    due = "now() + interval '1 hour'" if state == "not due" else "'epoch'"
    insert = (
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, not_before)"
    )
    execute(
        f"{insert} SELECT 'w' || n, 'welcome', 'epoch'::timestamptz, 2, '{{}}'::jsonb, {due}"
        " FROM generate_series(1, 100000) AS n",
        f"{insert} SELECT 'x' || n, 'win_back', 'epoch'::timestamptz, 3, '{{}}'::jsonb, 'epoch'"
        " FROM generate_series(1, 9) AS n",
        "UPDATE crm.email_templates SET paused = true WHERE template = 'welcome'"
        if state == "paused"
        else "SELECT 1",
        "UPDATE crm.email_templates SET daily_cap = 0 WHERE template = 'welcome'"
        if state == "capped"
        else "SELECT 1",
        "ANALYZE crm.email_queue",
    )
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries.load("postgres", "claim_emails")

    (row,) = postgres.select(database, explain, 5, "w1")

    plan = json.loads(row["QUERY PLAN"])[0]["Plan"]
    database.commit()
    assert select("SELECT count(*) AS n FROM crm.email_queue WHERE status = 'processing'") == [
        {"n": 5}
    ]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 500


# What stands behind a hundred thousand `w` of it; the user `x`, who comes last, may be mailed.
PASSED_OVER = {
    "suppressed": "INSERT INTO crm.email_suppressions (user_id)"
    " SELECT 'w' || n FROM generate_series(1, {}) AS n",
    "expired": "UPDATE crm.email_queue SET expires_at = now() WHERE user_id <> 'x'",
    "off the allowlist": "INSERT INTO crm.email_allowlist (user_id) VALUES ('x')",
    "mailed lately": "INSERT INTO crm.email_queue"
    " (user_id, template, episode_at, priority, payload, status, sent_at)"
    " SELECT 'w' || n, 'loyalty', 'epoch', 4, '{{}}', 'sent', now()"
    " FROM generate_series(1, {}) AS n",
}


@pytest.mark.slow
@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "not analyzed"])
@pytest.mark.parametrize("state", PASSED_OVER)
def test_a_claim_looks_at_a_few_hundred_mails_however_many_are_passed_over(
    state: str, analyzed: bool, database: Connection
) -> None:
    wait(100_000)
    execute(
        PASSED_OVER[state].format(100_000),
        *(["ANALYZE crm.email_queue", "ANALYZE crm.email_suppressions"] if analyzed else []),
    )
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries.load("postgres", "claim_emails")

    (row,) = postgres.select(database, explain, 5, "w1")

    plan = json.loads(row["QUERY PLAN"])[0]["Plan"]
    # 510 mails, each looked up, checked, and put off, which writes it to its indices.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 510 * 50


@pytest.mark.parametrize("state", PASSED_OVER)
def test_claims_get_past_mails_that_may_not_go(state: str, ask: Ask) -> None:
    wait(1_200)
    execute(PASSED_OVER[state].format(1_200))

    claims = [claim(ask, 5) for _ in range(3)]

    assert [[mail["user_id"] for mail in mails] for mails in claims] == [[], [], ["x"]]


def test_what_a_claim_passed_over_is_looked_at_again(ask: Ask) -> None:
    wait(1_200)
    execute(PASSED_OVER["off the allowlist"])
    for _ in range(3):
        claim(ask, 5)
    execute("DELETE FROM crm.email_allowlist")

    assert len(claim(ask, 2_000)) == 1_200 - 2 * 510
    pass_time(1)
    assert len(claim(ask, 2_000)) == 2 * 510


def test_a_few_mails_that_may_not_go_stay_as_they_are(ask: Ask, select: Select) -> None:
    wait(9)
    execute(PASSED_OVER["suppressed"].format(9))
    before = select("SELECT * FROM crm.email_queue WHERE user_id <> 'x' ORDER BY id")

    assert [mail["user_id"] for mail in claim(ask)] == ["x"]
    assert select("SELECT * FROM crm.email_queue WHERE user_id <> 'x' ORDER BY id") == before


# Builders


@contextmanager
def open_worker() -> Iterator[Ask]:
    with postgres.session(Settings.from_environment(), "worker") as connection:

        def ask(name: str, *parameters: Any) -> list[dict[str, Any]]:
            rows = postgres.query(connection, name, *parameters)
            connection.commit()
            return rows

        yield ask


def wait(mails: int) -> None:
    """Queue so many mails of one template to users `w1` and so on, and one to `x` behind them."""
    execute(
        "INSERT INTO crm.email_queue"
        " (user_id, template, episode_at, priority, payload, created_at)"
        " SELECT 'w' || n, 'welcome', 'epoch'::timestamptz, 2, '{}'::jsonb,"
        " now() - INTERVAL '1 day'"
        f" FROM generate_series(1, {mails}) AS n"
        " UNION ALL SELECT 'x', 'welcome', 'epoch', 2, '{}', now()"
    )


def claim(ask: Ask, number: int = 99) -> list[dict[str, Any]]:
    return ask("claim_emails", number, "w1")


def complete(ask: Ask, mail: dict[str, Any], *, sent: bool = True) -> list[dict[str, Any]]:
    return ask("complete_email", mail["id"], "w1", mail["claimed_at"], sent, None)


def pass_time(hours: float) -> None:
    """Put every moment of the queue so far back."""
    shift = f"INTERVAL '{dt.timedelta(hours=hours).total_seconds()} s'"
    moments = ("episode_at", "created_at", "updated_at", "claimed_at", "sent_at", "not_before")
    moved = ", ".join(f"{name} = {name} - {shift}" for name in (*moments, "expires_at"))
    execute(f"UPDATE crm.email_queue SET {moved}")
