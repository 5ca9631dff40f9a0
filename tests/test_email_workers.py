"""What mail workers rely on: claims, leases, and a sync that does not hold them up."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, segments
from fixture_types import Mart, Select
from pace import HANG, soon, within

from etl import email_triggers, postgres
from etl.options import Options
from etl.plumbing import queries
from etl.plumbing.threads import in_thread
from etl.run import Run, execute
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers
    from etl.postgres import Connection


class Worker:
    """A mail worker with a connection of its own, which waits for no lock beyond 500 ms."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connection: Connection = postgres.connect(Settings.from_environment(), name)
        postgres.execute(self.connection, "SET lock_timeout = '500ms'")
        self.connection.commit()

    def claim(self, n: int = 1, *, commit: bool = True) -> list[dict[str, Any]]:
        return self._ask("claim_emails", n, self.name, commit=commit)

    def complete(
        self, mail: dict[str, Any], *, sent: bool = True, reason: str | None = None
    ) -> list[dict[str, Any]]:
        claim = (mail["id"], self.name, mail["claimed_at"])
        return self._ask("complete_email", *claim, sent, reason)

    def release(self, lease: float) -> list[dict[str, Any]]:
        return self._ask("release_stale_emails", lease)

    def _ask(self, name: str, *parameters: Any, commit: bool = True) -> list[dict[str, Any]]:
        rows = postgres.query(self.connection, name, *parameters)
        if commit:
            self.connection.commit()
        return rows


@pytest.fixture
def worker(environment: object) -> Iterator[Callable[[str], Worker]]:
    hired: list[Worker] = []

    def hire(name: str) -> Worker:
        hired.append(Worker(name))
        return hired[-1]

    yield hire
    for one in hired:
        one.connection.close()


Hire = Callable[[str], Worker]


# Claiming


def test_workers_take_the_most_urgent_and_then_the_oldest(
    database: Connection, worker: Hire
) -> None:
    enqueue(database, "VALUES ('idle', 3, 99), ('late', 2, 1), ('old', 2, 9), ('urgent', 1, 0)")

    claimed = worker("w1").claim(3)

    assert [mail["user_id"] for mail in claimed] == ["urgent", "old", "late"]


def test_a_claimed_mail_says_who_took_it_and_what_to_send(
    database: Connection, worker: Hire, select: Select
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")

    (mail,) = worker("w1").claim()

    (row,) = select("SELECT * FROM crm.email_queue")
    assert (row["status"], row["worker"], row["attempts"]) == ("processing", "w1", 1)
    assert mail == {name: row[name] for name in mail}
    assert {"id", "user_id", "template", "payload", "attempts", "claimed_at"} <= set(mail)


def test_the_claim_time_is_the_clocks_in_whole_milliseconds(
    database: Connection, worker: Hire
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    w1 = worker("w1")
    (begun,) = postgres.select(w1.connection, "SELECT now() AS at, pg_sleep(0.05)")

    (mail,) = w1.claim()

    assert mail["claimed_at"] - begun["at"] >= dt.timedelta(milliseconds=49)
    assert mail["claimed_at"].microsecond % 1000 == 0


def test_two_workers_never_take_the_same_mail_nor_wait_for_each_other(
    database: Connection, worker: Hire
) -> None:
    enqueue(database, "VALUES ('a', 1, 3), ('b', 1, 2), ('c', 1, 1)")
    w1, w2 = worker("w1"), worker("w2")

    first = w1.claim(2, commit=False)
    second = w2.claim(2)

    assert [mail["user_id"] for mail in first] == ["a", "b"]
    assert [mail["user_id"] for mail in second] == ["c"]


def test_an_unsubscribe_works_at_the_next_claim(database: Connection, worker: Hire) -> None:
    enqueue(database, "VALUES ('ann', 1, 1), ('bob', 1, 0)")
    run(database, "INSERT INTO crm.email_suppressions (user_id) VALUES ('ann')")

    claimed = worker("w1").claim(10)

    assert [mail["user_id"] for mail in claimed] == ["bob"]


@pytest.mark.few(1)
@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "not analyzed"])
def test_claiming_costs_the_same_however_many_mails_are_finished(
    analyzed: bool, database: Connection, select: Select
) -> None:
    enqueue(database, "SELECT 'w' || n, n % 4 + 1, n FROM generate_series(1, 1000) AS n")
    run(
        database,
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status)"
        " SELECT 'f' || n, 'win_back', 'epoch', n % 4, '{}', 'sent'"
        " FROM generate_series(1, 100000) AS n",
        "INSERT INTO crm.email_suppressions (user_id)"
        " SELECT 's' || n FROM generate_series(1, 100000) AS n",
        *(["ANALYZE crm.email_queue", "ANALYZE crm.email_suppressions"] if analyzed else []),
    )

    (row,) = select(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries.load("postgres", "claim_emails"),
        50,
        "w1",
    )

    plan = json.loads(row["QUERY PLAN"])[0]["Plan"]
    scans = [node for node in nodes(plan) if node.get("Relation Name")]
    large = ("email_queue", "email_suppressions")
    assert not [n for n in scans if n["Node Type"] == "Seq Scan" and n["Relation Name"] in large]
    # 50 mails, each looked up, checked, written, and put into four indices.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 50 * 50


# Completing


def test_a_sent_mail_is_done(database: Connection, worker: Hire, select: Select) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    w1 = worker("w1")
    (mail,) = w1.claim()

    assert [row["status"] for row in w1.complete(mail)] == ["sent"]

    (row,) = select("SELECT *, sent_at >= claimed_at AS in_order FROM crm.email_queue")
    assert (row["status"], row["worker"], row["in_order"]) == ("sent", "w1", True)
    assert w1.claim() == []


@pytest.mark.parametrize("reported", [True, False], ids=["reported", "lease ran out"])
def test_a_mail_that_could_not_be_sent_waits_longer_each_time(
    reported: bool, database: Connection, worker: Hire, select: Select
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    w1, waited = worker("w1"), []
    for _ in range(8):
        (mail,) = w1.claim()
        (row,) = w1.complete(mail, sent=False) if reported else w1.release(0)
        assert (row["status"], w1.claim()) == ("pending", [])
        waits = "extract(EPOCH FROM not_before - clock_timestamp())::float8 / 60"
        waited.append(
            round(select(f"SELECT {waits} AS minutes FROM crm.email_queue")[0]["minutes"])
        )
        age(database, "ann", f"{waited[-1]} min")

    assert waited == [1, 4, 16, 64, 256, 1024, 1440, 1440]
    assert sum(waited) > 2 * 24 * 60
    (mail,) = w1.claim()
    (row,) = w1.complete(mail, sent=False, reason="bounced") if reported else w1.release(0)
    assert (row["status"], row["attempts"]) == ("failed", 9)
    assert w1.claim() == []
    assert select("SELECT reason, sent_at FROM crm.email_queue") == [
        {"reason": "bounced" if reported else "lease ran out", "sent_at": None}
    ]


def test_only_the_worker_that_holds_a_mail_completes_it(
    database: Connection, worker: Hire, select: Select
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    w1, w2 = worker("w1"), worker("w2")
    (mail,) = w1.claim()
    before = select("SELECT ctid::text, * FROM crm.email_queue")

    assert w2.complete(mail) == []
    assert w1.complete({**mail, "claimed_at": mail["claimed_at"] - dt.timedelta(seconds=1)}) == []
    assert select("SELECT ctid::text, * FROM crm.email_queue") == before


def test_a_mail_is_completed_once(database: Connection, worker: Hire, select: Select) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    w1 = worker("w1")
    (mail,) = w1.claim()
    w1.complete(mail)

    assert w1.complete(mail, sent=False, reason="again") == []
    assert select("SELECT status FROM crm.email_queue") == [{"status": "sent"}]


# Leases


def test_a_mail_goes_back_when_its_lease_ran_out(
    database: Connection, worker: Hire, select: Select
) -> None:
    enqueue(database, "VALUES ('dead', 1, 1), ('alive', 1, 0)")
    w1 = worker("w1")
    dead, alive = w1.claim(2)
    age(database, "dead", "61 s")

    released = w1.release(60)

    assert [(mail["id"], mail["status"]) for mail in released] == [(dead["id"], "pending")]
    assert w1.complete(dead, sent=False) == []
    assert [mail["status"] for mail in w1.complete(alive)] == ["sent"]


@pytest.mark.parametrize("meanwhile", ["pending", "failed", "cancelled"])
def test_a_late_sent_is_believed_while_nobody_else_has_the_mail(
    meanwhile: str, database: Connection, worker: Hire, select: Select
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    w1 = worker("w1")
    (mail,) = w1.claim()
    w1.release(0)
    run(database, f"UPDATE crm.email_queue SET status = '{meanwhile}'")

    assert [row["status"] for row in w1.complete(mail)] == ["sent"]
    assert select("SELECT reason, sent_at IS NOT NULL AS known FROM crm.email_queue") == [
        {"reason": None, "known": True}
    ]


def test_the_worker_that_lost_its_lease_cannot_complete_what_another_took(
    database: Connection, worker: Hire, select: Select
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    # The same name twice, as after a restart: the claim time tells them apart.
    slow, quick = worker("w"), worker("w")
    (lost,) = slow.claim()
    age(database, "ann", "61 s")
    quick.release(60)
    age(database, "ann", "61 s")
    (taken,) = quick.claim()

    assert slow.complete(lost) == []
    assert [mail["status"] for mail in quick.complete(taken)] == ["sent"]
    assert taken["attempts"] == 2


# Beside a sync


def test_a_sync_leaves_alone_what_a_worker_has_locked(
    mart: Mart, worker: Hire, select: Select
) -> None:
    mart(segments("('ann', 'at_risk', 1, 0, 0), ('bob', 'at_risk', 1, 0, 0)"))
    email_triggers.sync()
    w1 = worker("w1")
    (mail,) = w1.claim(commit=False)

    mart(segments("('zoe', 'regular', 1, 0, 0)"))
    with within(20):  # lock_timeout is 30 s
        result = email_triggers.sync(force=True)
    w1.connection.commit()

    assert result["cancelled"] == 1
    assert w1.complete(mail)[0]["status"] == "sent"
    assert select("SELECT user_id, status FROM crm.email_queue ORDER BY id") == [
        {"user_id": "ann", "status": "sent"},
        {"user_id": "bob", "status": "cancelled"},
    ]


def test_what_was_to_replace_a_mail_that_a_worker_took_waits(
    mart: Mart, worker: Hire, select: Select
) -> None:
    mart(segments("('ann', 'at_risk', 1, 0, 0)"))
    email_triggers.sync()
    w1 = worker("w1")
    w1.claim(commit=False)

    mart(segments("('ann', 'high_value', 1, 0, 0)"))
    result = email_triggers.sync()

    assert (result["inserted"], result["cancelled"], result["held_back"]) == (0, 0, 1)


def test_no_worker_waits_for_a_sync_that_is_not_committed(
    mart: Mart, database: Connection, worker: Hire
) -> None:
    """Each worker gives up after 100 ms of waiting for a lock; the sync changes every mail."""
    mart(segments("('ann', 'at_risk', 1, 0, 0), ('bob', 'at_risk', 1, 0, 0)"))
    email_triggers.sync()
    w1 = worker("w1")
    (mail,) = w1.claim()
    mart(segments("('bob', 'at_risk', 2, 0, 0), ('eve', 'at_risk', 1, 0, 0)"))

    with uncommitted_sync():
        claimed = w1.claim(10)
        completed = w1.complete(mail, sent=False)
        age(database, "ann", "1 min")
        reclaimed = w1.claim(10)
        released = w1.release(0)

    assert claimed == []  # bob's is being changed
    assert [row["status"] for row in completed] == ["pending"]
    assert [row["user_id"] for row in reclaimed] == ["ann"]
    assert [row["user_id"] for row in released] == ["ann"]


def test_a_mail_claimed_while_the_sync_decides_can_be_completed_at_once(
    mart: Mart, worker: Hire, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync finds out only when it locks the mail; that lock must not stop the worker."""
    mart(segments("('ann', 'at_risk', 1, 0, 0), ('bob', 'regular', 1, 0, 0)"))
    email_triggers.sync()
    w1 = worker("w1")
    mart(segments("('ann', 'regular', 1, 0, 0), ('bob', 'regular', 1, 0, 0)"))
    stop_in_mid_merge(monkeypatch)

    def claim_while_it_waits() -> list[dict[str, Any]]:
        with postgres.session(Settings.from_environment(), "gate") as gate:
            postgres.select(gate, "SELECT pg_advisory_lock(42)::text AS shut")
            shut.set()
            waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            assert soon(lambda: bool(postgres.select(gate, waits)), HANG)
            return w1.claim()

    shut = threading.Event()
    claiming = in_thread(claim_while_it_waits)
    assert shut.wait(HANG)
    with uncommitted_sync():
        (claimed,) = claiming.result(HANG)
        completed = w1.complete(claimed)

    assert [row["status"] for row in completed] == ["sent"]
    assert select("SELECT status FROM crm.email_queue") == [{"status": "sent"}]


# The page


@pytest.mark.parametrize("language", ["sh", "python"])
def test_the_page_shows_statements_that_run(
    language: str, servers: Servers, database: Connection, select: Select
) -> None:
    enqueue(database, "VALUES ('ann', 1, 0)")
    program, url = shlex.split(servers.psql)
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    (code,) = (block for block in blocks if "psql -X" in block or "dbapi" in block)

    subprocess.run(
        {"sh": ["bash", "-euc", code], "python": [sys.executable, "-c", code]}[language],
        cwd=ROOT,
        env={"DATABASE_URL": url, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"},
        check=True,
        timeout=30,
    )

    assert select("SELECT user_id, status, worker FROM crm.email_queue") == [
        {"user_id": "ann", "status": "sent", "worker": "worker-1"}
    ]


def test_the_pages_psql_ends_well_on_an_empty_queue(servers: Servers, environment: Path) -> None:
    program, url = shlex.split(servers.psql)
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    (code,) = (b for b in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "psql -X" in b)

    done = subprocess.run(
        ["bash", "-euc", code],
        cwd=ROOT,
        env={"DATABASE_URL": url, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert "nothing to send" in done.stdout
    assert "ERROR" not in done.stderr


def test_the_pages_reins_are_statements_that_run(servers: Servers, environment: Path) -> None:
    psql = [*shlex.split(servers.psql), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)

    assert len(blocks) == 4
    for sql in blocks:
        subprocess.run(psql, input=sql, text=True, check=True, timeout=30, capture_output=True)


# Builders


def enqueue(database: Connection, query: str) -> None:
    """Waiting mails from a query of user, priority and age in minutes."""
    run(
        database,
        "INSERT INTO crm.email_queue"
        " (user_id, template, episode_at, priority, payload, created_at)"
        " SELECT user_id, 'win_back', 'epoch', priority, '{}', now() - minutes * INTERVAL '1 min'"
        f" FROM ({query}) AS v(user_id, priority, minutes)",
    )


def run(database: Connection, *statements: str) -> None:
    for statement in statements:
        postgres.execute(database, statement)
    database.commit()


def age(database: Connection, user_id: str, time: str) -> None:
    """Let time pass for one claim."""
    run(
        database,
        f"UPDATE crm.email_queue SET claimed_at = claimed_at - INTERVAL '{time}',"
        f" not_before = not_before - INTERVAL '{time}' WHERE user_id = '{user_id}'",
    )


@contextmanager
def uncommitted_sync() -> Iterator[None]:
    """A sync in another thread that has done all its work, for the block's length uncommitted."""
    loaded, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def load(run: Run) -> None:
        email_triggers.load(run)
        loaded.set()
        go_on.wait(HANG)

    def sync() -> None:
        try:
            execute("email_triggers", load, Options(force=True))
        except BaseException as error:
            errors.append(error)
            loaded.set()

    thread = threading.Thread(target=sync)
    thread.start()
    assert loaded.wait(HANG)
    try:
        yield
    finally:
        go_on.set()
        thread.join(HANG)
    assert not errors


def stop_in_mid_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the merge wait for the advisory lock 42 between its snapshot and its locks."""
    load = queries.load

    def stopped(*parts: str) -> str:
        sql = load(*parts)
        if parts == ("postgres", "email_triggers"):
            waiting = "FROM (SELECT *, pg_advisory_xact_lock(42) FROM pg_temp.decisions) AS d"
            assert "FROM pg_temp.decisions AS d" in sql
            return sql.replace("FROM pg_temp.decisions AS d", waiting)
        return sql

    monkeypatch.setattr(queries, "load", stopped)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
