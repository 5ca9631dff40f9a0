"""Side by side: two runs, mail workers, readers, init_db and a DBA; nobody deadlocks or fails."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from adbc_driver_manager import OperationalError
from fixture_types import Select
from pace import soon
from scenes import (
    FULL,
    SYNCS,
    full_only,
    nothing_is_left,
    run,
    settled,
    spawn,
    state,
    superuser,
    times,
    two_marts,
)
from test_email_workers import Worker

from etl import postgres
from etl.errors import AlreadyRunning, SyncError
from etl.init_db import init_db
from etl.settings import Settings

USERS = 1_000
ROUNDS = times(3, 12)

Story = tuple[list[Path], dict[str, Any]]


@pytest.fixture
def story(environment: Path, select: Select, keys: redis.Redis) -> Story:
    """Two marts, and the states that each sync ends in with either."""
    marts = two_marts(environment.parent, USERS)
    return marts, {sync: settled(sync, marts, select, keys)[0] for sync in SYNCS}


@pytest.mark.parametrize("sync", SYNCS if FULL else SYNCS[:1])
def test_of_two_runs_at_once_one_works_and_the_other_says_so(
    sync: str, environment: Path, select: Select, keys: redis.Redis
) -> None:
    marts = two_marts(environment.parent, USERS)
    states, _ = settled(sync, marts, select, keys)
    ended: Counter[str] = Counter()

    for number in range(ROUNDS):
        mart, together = marts[number % 2], threading.Barrier(3)

        def one(mart: Path = mart, together: threading.Barrier = together) -> None:
            together.wait()
            try:
                ended[run(sync, mart, wait=0)["status"]] += 1
            except AlreadyRunning:
                ended["busy"] += 1

        with in_threads(one, one, one):
            pass
        assert state(sync, select, keys) == states[number % 2]

    assert ended.total() == 3 * ROUNDS
    assert ended["ok"] >= ROUNDS
    assert set(ended) <= {"ok", "busy"}


@full_only
def test_runs_that_wait_for_each_other_all_come_through(
    story: Story, select: Select, keys: redis.Redis
) -> None:
    marts, states = story
    walks = ["", "shard=(2, 3)", "shard=(0, 2)", "shard=(1, 2)", ""]

    for number in range(times(1, 4)):
        environment = {"DUCKDB_PATH": str(marts[number % 2])}
        code = "from etl import user_segments as u; u.sync(force=True, wait=60, {})"
        processes = [spawn(["-c", code.format(walk)], **environment) for walk in walks]
        ended = [(process.communicate(timeout=60), process.returncode) for process in processes]
        assert [code for _, code in ended] == [0] * len(walks), ended
        assert state("user_segments", select, keys) == states["user_segments"][number % 2]
    assert soon(lambda: nothing_is_left(select), 3)


def test_different_syncs_may_run_in_threads_of_one_process(
    story: Story, select: Select, keys: redis.Redis
) -> None:
    marts, states = story

    for number in range(ROUNDS):
        mart = marts[number % 2]
        with in_threads(*(lambda sync=sync, mart=mart: run(sync, mart) for sync in SYNCS)):
            pass
        for sync in SYNCS:
            assert state(sync, select, keys) == states[sync][number % 2]


@pytest.mark.slow
def test_runs_beside_readers_and_mail_workers_disturb_nobody(story: Story, select: Select) -> None:
    marts, _ = story
    over = threading.Event()
    sent: dict[str, list[Any]] = {"w0": [], "w1": [], "w2": []}

    def work(name: str) -> None:
        with worker(name) as own:
            while not over.is_set():
                for mail in own.claim(3):
                    assert own.complete(mail, sent=mail["id"] % 7 > 0, reason="bounced")
                    if mail["id"] % 7:
                        sent[name].append(mail["id"])

    def read() -> None:
        with postgres.session(Settings.from_environment(), "tests") as connection:
            postgres.execute(connection, "SET lock_timeout = '100ms'")
            while not over.is_set():
                for table in ("crm.user_segments", "crm.email_queue", "etl.sync_runs"):
                    (row,) = postgres.select(connection, f"SELECT count(*) AS rows FROM {table}")
                    assert row["rows"]
                    connection.commit()

    with in_threads(*(lambda name=name: work(name) for name in sent), read, over=over):
        for number in range(ROUNDS):
            for sync in SYNCS:
                run(sync, marts[number % 2])

    every = [mail for mails in sent.values() for mail in mails]
    assert len(set(every)) == len(every) > 0
    rows = select("SELECT id, worker FROM crm.email_queue WHERE status = 'sent'")
    assert {row["id"]: row["worker"] for row in rows} == {
        mail: name for name, mails in sent.items() for mail in mails
    }
    assert select("SELECT FROM crm.email_queue WHERE status = 'processing'") == []


@full_only
def test_init_db_beside_runs_gets_its_turn_or_gives_up(
    story: Story, select: Select, keys: redis.Redis
) -> None:
    marts, states = story
    over = threading.Event()
    made: Counter[str] = Counter()

    def migrate() -> None:
        while not over.is_set():
            try:
                superuser("DROP INDEX CONCURRENTLY IF EXISTS crm.email_queue_lease")
            except OperationalError as error:  # of two that drop and build, one may be ended
                if "deadlock detected" not in str(error):
                    raise
            try:
                made.update(init_db())
            except SyncError as error:
                # Documented: it stands in nobody's way for longer than two seconds.
                made["gave up" if "gave up making" in str(error) else str(error)] += 1

    with in_threads(migrate, migrate, over=over):
        for number in range(ROUNDS):
            for sync in SYNCS:
                assert run(sync, marts[number % 2])["status"] == "ok"
    init_db()

    assert made["crm.email_queue_lease"]
    assert set(made) <= {"crm.email_queue_lease", "gave up"}
    for sync in SYNCS:
        assert state(sync, select, keys) == states[sync][(ROUNDS - 1) % 2]


@pytest.mark.slow
def test_runs_go_on_while_a_dba_adds_columns_and_indices(
    story: Story, select: Select, keys: redis.Redis
) -> None:
    marts, states = story
    over = threading.Event()
    done: Counter[str] = Counter()

    def administer(table: str) -> None:
        name = table.partition(".")[2]
        while not over.is_set():
            for statement in (
                f"ALTER TABLE {table} ADD COLUMN note text DEFAULT 'none'",
                f"CREATE INDEX CONCURRENTLY {name}_note ON {table} (note)",
                f"ANALYZE {table}",
                f"DROP INDEX CONCURRENTLY crm.{name}_note",
                f"ALTER TABLE {table} DROP COLUMN note",
                f"VACUUM {table}",
            ):
                superuser(statement)
                done[table] += 1

    def administer_both(table: str) -> Callable[[], None]:
        return lambda: administer(table)

    tables = ("crm.user_segments", "crm.email_queue")
    with in_threads(*map(administer_both, tables), over=over):
        for number in range(ROUNDS):
            for sync in SYNCS:
                assert run(sync, marts[number % 2])["status"] == "ok"

    assert set(done) == set(tables)
    assert select("SELECT FROM pg_index WHERE NOT indisvalid") == []
    for sync in SYNCS:
        assert state(sync, select, keys) == states[sync][(ROUNDS - 1) % 2]


@contextmanager
def in_threads(*works: Callable[[], object], over: threading.Event | None = None) -> Iterator[None]:
    """Do all of it beside the block, and fail as it failed; `over` is set after the block."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if over is not None:
            over.set()
        for thread in threads:
            thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)


@contextmanager
def worker(name: str) -> Iterator[Worker]:
    """A mail worker, who waits for no lock of a run."""
    hired = Worker(name)
    try:
        yield hired
    finally:
        hired.connection.close()
