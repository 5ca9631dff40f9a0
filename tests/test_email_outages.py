"""An outage of the mail provider loses no mail, and no other program ends a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from destinations import execute
from examples import examples
from fixture_types import Mart, Select
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mails import NOW, audience, queue, user
from test_email_reins import claim, complete, open_worker, pass_time

from etl import email_triggers, postgres
from etl.errors import SyncError

STEP = 0.5  # hours between two looks of a worker


@pytest.mark.slow
@settings(
    max_examples=examples(3, 6),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    begins=st.floats(0, 24),
    lasts=st.floats(0, 24),
    dies=st.booleans(),
    holds=st.integers(1, 100),
)
def test_an_outage_loses_no_mail(
    environment: Path, begins: float, lasts: float, dies: bool, holds: int
) -> None:
    """Whether the worker tells of it or is gone each time; every mail is sent once afterwards.

    That is, every mail that still holds: `old0` does so for that many hours.
    """
    execute(
        "TRUNCATE crm.email_queue",
        enqueue(5),
        enqueue(1, "old"),
        f"UPDATE crm.email_queue SET expires_at = now() + INTERVAL '{holds} hours'"
        " WHERE user_id = 'old0'",
    )
    sent: list[str] = []
    hour = 0.0
    with open_worker() as ask:
        while (len({*sent} - {"old0"}) < 10 or hour < begins + lasts + 25) and hour < 80:
            if hour == 12:
                execute(enqueue(5, "late"))
            for mail in claim(ask):
                if not begins <= hour <= begins + lasts:
                    assert complete(ask, mail)
                    sent.append(mail["user_id"])
                    assert mail["user_id"] != "old0" or hour < holds
                elif not dies:
                    assert complete(ask, mail, sent=False)
            pass_time(STEP)
            hour += STEP
            ask("release_stale_emails", 60.0)

    lasting = {f"u{n}" for n in range(5)} | {f"late{n}" for n in range(5)}
    assert sorted(one for one in sent if one != "old0") == sorted(lasting)
    if holds > begins + lasts + 25 or begins > 0:  # a day is the longest wait
        assert sent.count("old0") == 1


def test_after_an_outage_what_still_holds_is_sent_once_and_nothing_that_is_over(
    environment: Path,
) -> None:
    """Down for the first five hours; the next attempt after that comes in the sixth."""
    execute("TRUNCATE crm.email_queue", enqueue(3))
    for user_id, hours in (("u0", 2), ("u1", 9)):
        execute(
            f"UPDATE crm.email_queue SET expires_at = now() + INTERVAL '{hours} hours'"
            f" WHERE user_id = '{user_id}'"
        )
    sent = []
    with open_worker() as ask:
        for step in range(20):
            for mail in claim(ask):
                assert complete(ask, mail, sent=step > 10)
                if step > 10:
                    sent.append(mail["user_id"])
            pass_time(STEP)

    assert sorted(sent) == ["u1", "u2"]


def test_after_a_longer_outage_what_failed_is_tried_again_by_the_pages_statement(
    mart: Mart, select: Select
) -> None:
    """One mail a user, none beside one that waits or of a visit before one that was mailed."""
    mart(audience(*(user(name, "at_risk") for name in ("ann", "bob", "eve"))))
    email_triggers.sync()
    execute(
        "UPDATE crm.email_queue SET status = 'failed', attempts = 9, updated_at = now()",
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status)"
        " VALUES ('ann', 'loyalty', 'epoch', 4, '{}', 'failed'),"
        " ('bob', 'loyalty', 'epoch', 4, '{}', 'pending'),"
        " ('ida', 'win_back', 'epoch', 3, '{}', 'failed')",
    )
    with open_worker() as ask:
        ask("record_sent_email", "ida", "win_back", NOW)
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    (again,) = (
        sql for sql in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if "failed.id" in sql
    )

    execute(again)
    mart(audience(user("ann", "at_risk"), user("bob", "at_risk"), user("eve", "regular")))
    email_triggers.sync(force=True)

    with open_worker() as ask:
        claimed = [(mail["user_id"], mail["template"], mail["attempts"]) for mail in claim(ask)]
    assert claimed == [("ann", "win_back", 2)]
    assert {"eve win_back cancelled: left_segment", "ida win_back failed"} <= {*queue(select)}


def test_claims_that_fail_in_a_loop_burn_one_attempt(environment: Path, select: Select) -> None:
    execute(enqueue(20))
    with open_worker() as ask:
        for _ in range(10):
            for mail in claim(ask):
                complete(ask, mail, sent=False)

    assert select("SELECT DISTINCT status, attempts FROM crm.email_queue") == [
        {"status": "pending", "attempts": 1}
    ]


# Beside other programs


@pytest.mark.parametrize(
    ("deed", "step"),
    [
        ("insert", 5),
        *(pytest.param(deed, 1, marks=pytest.mark.slow) for deed in ("insert", "revive", "claim")),
    ],
)
def test_another_program_at_any_statement_ends_no_run(
    deed: str, step: int, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each statement of a run in turn, or every fifth, until there are no more."""
    at, statements = 0, 1
    while at < statements:
        execute("TRUNCATE crm.email_queue, etl.sync_runs")
        mart(audience(user("ann", "at_risk"), user("bob", "regular"), user("eve", "high_value")))
        email_triggers.sync()
        mart(audience(user("ann", "regular"), user("bob", "regular"), user("eve", "high_value")))
        email_triggers.sync()
        mart(audience(user("ann", "at_risk"), user("bob", "at_risk"), user("eve", "at_risk")))

        with monkeypatch.context() as patched:
            seen = meddle(patched, at, lambda: do(DEEDS[deed]))
            result = email_triggers.sync()
            statements = len(seen)

        assert result["status"] == "ok"
        mails = [mail for mail in queue(select) if mail.endswith(("pending", "processing"))]
        users = [mail.split()[0] for mail in mails]
        assert len(users) == len(set(users)), mails
        at += step
    assert statements > 10


DEEDS = {
    "insert": "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
    " SELECT name, 'receipt', 'epoch', 1, '{}' FROM unnest('{ann,bob,eve}'::text[]) AS name"
    " ON CONFLICT DO NOTHING",
    "revive": "UPDATE crm.email_queue AS q SET status = 'pending', updated_at = clock_timestamp()"
    " WHERE q.status = 'cancelled' AND NOT EXISTS (SELECT FROM crm.email_queue AS o"
    " WHERE o.user_id = q.user_id AND o.status = 'pending')",
    "claim": "UPDATE crm.email_queue SET status = 'processing', updated_at = clock_timestamp()"
    " WHERE status = 'pending'",
}


def do(statement: str) -> None:
    """As a program does that waits for no lock of ours."""
    with suppress(SyncError):
        execute("SET LOCAL lock_timeout = '50ms'", statement)


def meddle(patched: pytest.MonkeyPatch, at: int, deed: Callable[[], object]) -> list[str]:
    """Do something before statement `at` of a run; return the statements as they come."""
    seen: list[str] = []
    submit = postgres.Connection.submit

    def submitted(self: postgres.Connection, work: Any) -> Any:
        if self is mine and len(seen) == at:
            seen.append("")
            deed()
        elif self is mine:
            seen.append("")
        return submit(self, work)

    mine: postgres.Connection | None = None
    connect = email_triggers.load

    def load(run: Any) -> None:
        nonlocal mine
        mine = run.session
        connect(run)

    patched.setattr(postgres.Connection, "submit", submitted)
    patched.setattr(email_triggers, "load", load)
    return seen


def enqueue(number: int, name: str = "u") -> str:
    return (
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        f" SELECT '{name}' || n - 1, 'win_back', 'epoch', 3, '{{}}'"
        f" FROM generate_series(1, {number}) AS n"
    )
