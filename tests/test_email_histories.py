"""Random histories of the mail queue: whatever happens in whatever order, its promises hold.

Users change segment, marts are rebuilt, runs crash, race and overlap with workers, workers claim,
complete and die, unsubscribes come and go. After every step all of the queue is checked.

Time passes by moving every moment in the tables, and in the mart, that much into the past: for
SQL, which measures against its own clock, this is the same as waiting.

ETL_HISTORIES=200 runs that many random histories; without it, the same few are run every time.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from destinations import in_shards
from duckdb_files import written
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl import email_triggers, postgres
from etl.errors import SyncError
from etl.mail.rules import RULES
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection
    from etl.result import SyncResult

HISTORIES = int(os.environ.get("ETL_HISTORIES") or 0)
HOUR = dt.timedelta(hours=1)
GAP = 24 * HOUR
LEASE = HOUR / 2
RULE = {rule.template: rule for rule in RULES}
BY_SEGMENT = {rule.segment: rule for rule in RULES}
OPEN = ("pending", "processing")

USERS = st.sampled_from([f"user{number}" for number in range(6)])
SEGMENTS = st.sampled_from(["regular", *BY_SEGMENT])
WORKERS = st.sampled_from(["w1", "w2"])

STEPS = st.one_of(
    st.tuples(st.just("visit"), USERS, SEGMENTS),
    st.tuples(st.just("visit"), USERS, SEGMENTS),
    st.tuples(st.just("become"), USERS, SEGMENTS),
    st.tuples(st.just("correct"), USERS, st.sampled_from([None, -30, -1000, 1])),
    st.tuples(st.just("leave"), USERS),
    st.tuples(st.just("spoil"), USERS),
    st.tuples(st.just("suppress"), USERS),
    st.tuples(st.just("write_by_hand"), USERS),
    st.tuples(st.just("wait"), st.sampled_from([1, 12, 25, 80, 800])),
    st.tuples(st.just("wait"), st.sampled_from([1, 12, 25])),
    st.tuples(st.just("claim"), WORKERS, st.integers(1, 3)),
    st.tuples(st.just("work"), WORKERS),
    st.tuples(st.just("complete"), WORKERS, st.booleans()),
    st.tuples(st.just("die"), WORKERS),
    st.tuples(st.just("release")),
    st.tuples(st.just("run"), st.sampled_from([1, 1, 2])),
    st.tuples(st.just("run"), st.just(1)),
    st.tuples(st.just("run_dry_and_wet")),
    st.tuples(st.just("crash"), st.sampled_from(["before", "after"]), st.booleans()),
    st.tuples(st.just("race")),
    st.tuples(st.just("run_beside_workers"), WORKERS, st.booleans()),
)


PEOPLE = st.lists(st.tuples(SEGMENTS, st.integers(1, 400)), min_size=6, max_size=6)


def histories(few: int) -> settings:
    """So few histories, the same every time, or as many random ones as ETL_HISTORIES asks for."""
    return settings(
        max_examples=HISTORIES or few,
        derandomize=not HISTORIES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@histories(examples(3, 8))
@given(
    people=PEOPLE,
    steps=st.lists(STEPS, min_size=4, max_size=12),
)
@pytest.mark.timeout(1800)
def test_the_queue_keeps_its_promises(
    environment: Path, people: list[tuple[str, int]], steps: list[tuple[Any, ...]]
) -> None:
    with World.opened(environment) as world:
        world.begin(people)
        for name, *arguments in [("run", 1), *steps, ("run", 1)]:
            getattr(world, name)(*arguments)
            world.check()


@dataclass(frozen=True)
class Person:
    """A user as the warehouse knows them; moments are hours of the world's clock."""

    segment: str
    first_seen: float
    last_seen: float | None
    searches: int = 1
    present: bool = True
    spoiled: bool = False


@dataclass
class World:
    """The warehouse, the queue, its workers, and a clock that only `wait` moves."""

    warehouse: Path
    eye: Connection  # looks at the queue
    workers: dict[str, Connection]
    people: dict[str, Person] = field(default_factory=dict)
    mart: dict[str, Person] = field(default_factory=dict)  # as dbt built it last
    built: float = 0
    clock: float = 0
    began: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    held: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by worker
    ids: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)  # reported as sent when the lease had run out
    said: dict[int, str] = field(default_factory=dict)  # the payload of a mail's first attempt

    @classmethod
    @contextmanager
    def opened(cls, warehouse: Path) -> Iterator[World]:
        eye, *workers = (
            postgres.connect(Settings.from_environment(), name) for name in ("eye", "w1", "w2")
        )
        world = cls(warehouse, eye, dict(zip(("w1", "w2"), workers, strict=True)))
        try:
            postgres.execute(eye, "TRUNCATE crm.email_queue, crm.email_suppressions")
            eye.commit()
            yield world
        finally:
            for connection in (eye, *world.workers.values()):
                connection.close()

    # What users and dbt do

    def begin(self, people: list[tuple[str, int]]) -> None:
        for number, (segment, ago) in enumerate(people):
            self.people[f"user{number}"] = Person(segment, -ago - 9, -ago)
        self._build()

    def visit(self, user: str, segment: str) -> None:
        person = self.people[user]
        self.people[user] = replace(
            person,
            segment=segment,
            last_seen=self.clock,
            searches=person.searches + 1,
            present=True,
        )
        self._build()

    def become(self, user: str, segment: str) -> None:
        self.people[user] = replace(self.people[user], segment=segment)
        self._build()

    def correct(self, user: str, hours: int | None) -> None:
        """The last visit turns out to have been another, or is no longer known."""
        seen = self.people[user].last_seen
        last_seen = None if hours is None else (seen or 0) + hours
        self.people[user] = replace(self.people[user], last_seen=last_seen)
        self._build()

    def leave(self, user: str) -> None:
        self.people[user] = replace(self.people[user], present=not self.people[user].present)
        self._build()

    def spoil(self, user: str) -> None:
        """The user's row breaks the contract, or no longer does."""
        self.people[user] = replace(self.people[user], spoiled=not self.people[user].spoiled)
        self._build()

    # What workers and other people do

    def suppress(self, user: str) -> None:
        lifted = self._look(
            "DELETE FROM crm.email_suppressions WHERE user_id = $1 RETURNING 1", user
        )
        if not lifted:
            self._look("INSERT INTO crm.email_suppressions VALUES ($1, 'asked') RETURNING 1", user)

    def write_by_hand(self, user: str) -> None:
        """Another program queues a mail of its own."""
        self._look(
            "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
            " VALUES ($1, 'by_hand', now(), 1, '{}') ON CONFLICT DO NOTHING RETURNING 1",
            user,
        )

    def claim(self, worker: str, n: int) -> None:
        before = {row["id"]: row for row in self._queue()}
        silent = self._suppressed()
        claimed = postgres.query(self.workers[worker], "claim_emails", n, worker)
        self.workers[worker].commit()
        now = dt.datetime.now(dt.UTC)
        for mail in claimed:
            was = before[mail["id"]]
            assert was["status"] == "pending"
            assert mail["user_id"] not in silent
            assert was["not_before"] <= now
            assert was["expires_at"] is None or was["expires_at"] > now - HOUR / 60
            assert self.said.setdefault(mail["id"], mail["payload"]) == mail["payload"]
            assert was["idempotency_key"] in (None, mail["idempotency_key"])
            for row in before.values() if mail["template"] in RULE else ():
                if row["user_id"] == mail["user_id"] and row["sent_at"]:
                    assert row["sent_at"] <= now - GAP
        keys = [row["idempotency_key"] for row in self._queue() if row["attempts"]]
        assert len(set(keys)) == len(keys)
        assert None not in keys
        self.held.setdefault(worker, []).extend(claimed)

    def complete(self, worker: str, sent: bool) -> None:
        """Finish the mails that the worker believes to hold, in vain where the lease ran out."""
        for mail in self.held.pop(worker, []):
            row = next(row for row in self._queue() if row["id"] == mail["id"])
            ours = (row["worker"], row["claimed_at"]) == (worker, mail["claimed_at"])
            still = ours and (sent or row["status"] == "processing")
            claim = (mail["id"], worker, mail["claimed_at"])
            if sent and row["status"] != "processing":
                self.late.add(mail["id"])
            done = postgres.query(self.workers[worker], "complete_email", *claim, sent, None)
            self.workers[worker].commit()
            assert bool(done) == still

    def work(self, worker: str) -> None:
        self.claim(worker, 2)
        self.complete(worker, True)

    def die(self, worker: str) -> None:
        """The worker forgets what it holds; another takes its place."""
        self.held.pop(worker, None)
        postgres.query(self.workers[worker], "claim_emails", 3, worker)
        self.workers[worker].close()
        self.workers[worker] = postgres.connect(Settings.from_environment(), worker)

    def release(self) -> None:
        postgres.query(self.eye, "release_stale_emails", LEASE.total_seconds())
        self.eye.commit()

    def wait(self, hours: int) -> None:
        self.clock += hours
        # By way of another age, as two mails of a user may be exactly so many hours apart.
        for shift in ("INTERVAL '900 years'", f"INTERVAL '{hours} hours' - INTERVAL '900 years'"):
            moments = (
                *("episode_at", "created_at", "updated_at", "claimed_at", "sent_at"),
                *("not_before", "expires_at"),
            )
            moved = ", ".join(f"{name} = {name} - ({shift})" for name in moments)
            postgres.execute(self.eye, f"UPDATE crm.email_queue SET {moved}")
        # A mail's visit has moved, and so has what is made of it.
        postgres.execute(
            self.eye,
            "UPDATE crm.email_queue SET idempotency_key = crm.email_idempotency_key(user_id,"
            " template, episode_at - INTERVAL '900 years') WHERE attempts > 0",
        )
        postgres.execute(
            self.eye,
            "UPDATE crm.email_queue SET idempotency_key = crm.email_idempotency_key(user_id,"
            " template, episode_at) WHERE attempts > 0",
        )
        self.eye.commit()
        for mails in self.held.values():
            for mail in mails:
                mail["claimed_at"] -= hours * HOUR

    # What schedulers do

    def run(self, shards: int) -> None:
        before = self._queue()
        expected = self._expected(before)
        result = in_shards(self._sync, shards)
        self._check_counts(before, result)
        waiting = {key(row): row for row in self._queue() if row["status"] == "pending"}
        for row in waiting.values():
            assert row["template"] not in RULE or row["user_id"] not in self._suppressed()
        assert {k for k, row in waiting.items() if row["template"] in RULE} == expected

    def run_dry_and_wet(self) -> None:
        before = self._queue()
        dry = self._sync(dry_run=True)
        assert self._queue() == before
        wet = self._sync()
        self._check_counts(before, wet)
        assert {**dry, **UNLIKE} == {**wet, **UNLIKE}
        told = dict.fromkeys(COUNTED.values(), 0)
        for one in dry.get("outcomes", []):
            if one["outcome"] != "old news":
                told[COUNTED[one["outcome"].partition(":")[0]]] += one["mails"]
        assert told == {name: dry[name] for name in told}  # type: ignore[literal-required]

    def crash(self, moment: str, killed: bool) -> None:
        before = self._queue()

        def strike(run: Connection) -> None:
            if not killed:
                raise RuntimeError("crash")
            (me,) = postgres.select(run, "SELECT pg_backend_pid() AS pid")
            self._look("SELECT pg_terminate_backend($1::int)", me["pid"])

        strikes = {moment: strike}
        with during_the_merge(**strikes), pytest.raises(SyncError):
            self._sync()
        assert self._queue() == before

    def race(self) -> None:
        """A second run begins while the first has done its work and has not committed."""
        before = self._queue()
        results: list[SyncResult] = []
        arrived, go_on = threading.Event(), threading.Event()

        def stop(_: Connection) -> None:
            arrived.set()
            go_on.wait(30)

        with during_the_merge(after=stop):
            first = threading.Thread(target=lambda: results.append(self._sync()))
            first.start()
            assert arrived.wait(30)
            with pytest.raises(SyncError, match="already running"):
                email_triggers.sync(force=True)
            go_on.set()
            first.join(30)
        self._check_counts(before, results[0])

    def run_beside_workers(self, worker: str, committed: bool) -> None:
        """A worker claims after the run has decided, another before it has committed."""
        before = self._queue()
        other = "w1" if worker == "w2" else "w2"

        def work(_: Connection) -> None:
            self.complete(worker, True)
            if committed:
                self.claim(worker, 1)
            else:
                postgres.query(self.workers[worker], "claim_emails", 1, worker)

        with during_the_merge(before=work, after=lambda _: self.claim(other, 1)):
            result = self._sync()
        self.workers[worker].rollback()
        self._check_counts(before, result)

    # What must hold

    def check(self) -> None:
        rows = self._queue()
        ids = {row["id"] for row in rows}
        assert self.ids <= ids, "a row is lost"
        self.ids = ids
        for user in self.people:
            mails = [row for row in rows if row["user_id"] == user]
            assert sum(row["status"] in OPEN for row in mails) <= 1
            assert len({key(row) for row in mails}) == len(mails)
            # Which nobody knew of when the next one was handed out.
            known = [row for row in mails if row["id"] not in self.late]
            sent = sorted((row["sent_at"], row["template"]) for row in known if row["sent_at"])
            ours = [(at, template) for at, template in sent if template in RULE]
            for (earlier, one), (later, two) in pairwise(ours):
                assert later - earlier >= GAP, f"{user}: {one} and {two} within the gap"
            for template, rule in RULE.items():
                times = [at for at, of in ours if of == template]
                assert len(times) <= 1 or rule.cooldown, f"{user}: {template} twice"
                for earlier, later in pairwise(times):
                    assert later - earlier >= (rule.cooldown or GAP), f"{user}: {template} again"
        assert all((row["status"] == "sent") == (row["sent_at"] is not None) for row in rows)

    def _check_counts(self, before: list[dict[str, Any]], result: SyncResult) -> None:
        """The result counts what is different in the table, and nothing else is."""
        old = {row["id"]: row for row in before}
        seen = dict.fromkeys(("inserted", "updated", "cancelled"), 0)
        for row in self._queue():
            was = old.get(row["id"])
            if was is None:
                seen["inserted"] += 1
                continue
            says = [(r["priority"], r["payload"]) for r in (was, row)]
            if was["status"] != "cancelled" and row["status"] == "cancelled":
                seen["cancelled"] += 1
                assert was["status"] == "pending"
            elif was["status"] == "cancelled" and row["status"] != "cancelled":
                seen["updated"] += 1
            elif says[0] != says[1]:
                seen["updated"] += 1
                assert was["status"] == "pending"
            if was["template"] not in RULE:
                assert row["status"] != "cancelled"
        assert {name: result[name] for name in seen} == seen  # type: ignore[literal-required]

    def _expected(self, rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        """The mails of ours that wait after a run that nobody disturbs, by the issue's words."""
        now = dt.datetime.now(dt.UTC)
        silent = self._suppressed()
        waiting = set()
        for user in self.people:
            mine = [row for row in rows if row["user_id"] == user]
            if user in silent:
                continue
            kept = [row for row in mine if row["status"] == "pending" and self._stands(row)]
            pending = [row for row in mine if row["status"] == "pending"]
            new = self._occasion(user)
            if (
                new
                and self._may_queue(new, mine, now)
                and not any(
                    row["template"] not in RULE
                    or (row["template"] == new[1] and row["episode_at"] > new[2])
                    for row in pending
                )
            ):
                waiting.add(new)
            else:
                waiting |= {key(row) for row in kept if row["template"] in RULE}
        return waiting

    def _occasion(self, user: str) -> tuple[Any, ...] | None:
        """The key of the mail that the mart calls for."""
        person = self.mart.get(user)
        rule = BY_SEGMENT.get(person.segment) if person else None
        if person is None or rule is None or person.spoiled:
            return None
        seen = person.first_seen if rule.episode == "first_seen_at" else person.last_seen
        if seen is None or (self.built - seen) * HOUR > rule.max_age:
            return None
        return user, rule.template, self._moment(seen)

    def _may_queue(
        self, new: tuple[Any, ...], mine: list[dict[str, Any]], now: dt.datetime
    ) -> bool:
        cooldown = RULE[new[1]].cooldown
        for row in mine:
            if key(row) == new and row["status"] != "cancelled":
                return False
            if row["status"] in ("cancelled", "pending"):
                continue
            ago = now - (row["sent_at"] or row["created_at"])
            same = row["template"] == new[1]
            if row["status"] == "processing" or ago < GAP:
                return False
            if same and (cooldown is None or ago < cooldown):
                return False
        return True

    def _stands(self, row: dict[str, Any]) -> bool:
        """Whether nothing in the mart speaks against a waiting mail."""
        if row["template"] not in RULE:
            return True
        rule, person = RULE[row["template"]], self.mart.get(row["user_id"])
        if row["episode_at"] < self._moment(self.built) - rule.max_age or person is None:
            return False
        return person.spoiled or person.segment == rule.segment

    # The wiring

    def _sync(self, **options: Any) -> SyncResult:
        self._write_mart()
        return email_triggers.sync(force=True, wait=10, **options)

    def _build(self) -> None:
        """What dbt does."""
        self.mart = {name: person for name, person in self.people.items() if person.present}
        self.built = self.clock

    def _write_mart(self) -> None:
        rows = [
            (
                name,
                person.segment,
                -1 if person.spoiled else person.searches,
                self._naive(person.first_seen),
                self._naive(person.last_seen),
                self._naive(self.built),
            )
            for name, person in self.mart.items()
        ]
        with written(self.warehouse) as connection:
            connection.execute(MART)
            if rows:
                connection.executemany(
                    "INSERT INTO mart_user_segments VALUES (?,?,?,?,?,?,1,0)", rows
                )

    def _moment(self, hour: float) -> dt.datetime:
        """When an hour of the world's clock is, seen from the tables as they stand."""
        return self.began + (hour - self.clock) * HOUR

    def _naive(self, hour: float | None) -> dt.datetime | None:
        return None if hour is None else self._moment(hour).replace(tzinfo=None)

    def _queue(self) -> list[dict[str, Any]]:
        return self._look("SELECT * FROM crm.email_queue ORDER BY id")

    def _suppressed(self) -> set[str]:
        return {row["user_id"] for row in self._look("SELECT user_id FROM crm.email_suppressions")}

    def _look(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        rows = postgres.select(self.eye, sql, *parameters)
        self.eye.commit()
        return rows


MART = """
    CREATE OR REPLACE TABLE mart_user_segments (
        user_id VARCHAR, segment VARCHAR, lifetime_searches BIGINT, first_seen_at TIMESTAMP,
        last_seen_at TIMESTAMP, segmented_at TIMESTAMP, lifetime_conversions BIGINT,
        lifetime_revenue DECIMAL(38, 2)
    )
"""

# What two results of the same work may differ in.
UNLIKE: dict[str, Any] = {"run_id": "", "dry_run": None, "seconds": 0, "outcomes": []}

# How a dry run's outcomes are counted.
COUNTED = {
    "queued": "inserted",
    "pending again": "updated",
    "refreshed": "updated",
    "waiting": "unchanged",
    "being sent": "unchanged",
    "sent": "unchanged",
    "failed": "unchanged",
    "cancelled": "cancelled",
    "suppressed": "suppressed",
    "held back": "held_back",
}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["user_id"], row["template"], row["episode_at"]


@contextmanager
def during_the_merge(
    before: Callable[[Connection], None] = lambda _: None,
    after: Callable[[Connection], None] = lambda _: None,
) -> Iterator[None]:
    """Let something happen when a run has decided and when it has written, before it commits."""
    merge = postgres.merge

    def disturbed(connection: Connection, what: postgres.Merge, *parameters: Any) -> dict[str, int]:
        before(connection)
        counts = merge(connection, what, *parameters)
        after(connection)
        return counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "merge", disturbed)
        yield
