"""What the destinations hold, and a session that stands in a run's way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
from conftest import ROOT
from fixture_types import Select, Sync
from pace import HANG

from etl import postgres
from etl.options import Options
from etl.plumbing import queries
from etl.result import count_names
from etl.run import ledger
from etl.run.job import Job
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers


def digest(select: Select) -> list[Any]:
    """One figure a table: its rows, and where they stand, so that a rewrite shows as well."""
    tables = ("crm.user_segments", "crm.email_queue", "crm.email_suppressions")
    return [
        select(
            "SELECT count(*) AS rows, md5(coalesce(string_agg(t::text || t.ctid, ',' ORDER BY"
            f" t.ctid), '')) AS digest FROM {table} AS t"
        )
        for table in tables
    ]


def dump(keys: redis.Redis) -> dict[Any, Any]:
    """Every key with its value and the millisecond it expires."""
    names: Any = keys.keys()
    return {name: (keys.get(name), keys.pexpiretime(name)) for name in names}


def execute(*statements: str) -> None:
    """Change the database for everybody to see."""
    with postgres.session(Settings.from_environment(), "tests") as connection:
        for statement in statements:
            postgres.execute(connection, statement)
        connection.commit()


def committed(sql: str) -> list[dict[str, Any]]:
    """Rows as a new connection sees them."""
    with postgres.session(Settings.from_environment(), "tests") as connection:
        return postgres.select(connection, sql)


def as_superuser(servers: Servers, *statements: str) -> None:
    """Change what only an admin may change."""
    environment = {**servers.environment, "POSTGRES_USER": "postgres"}
    with postgres.session(Settings.from_environment(environment), "tests") as connection:
        for statement in statements:
            postgres.execute(connection, statement)
        connection.commit()


def in_shards(sync: Sync, shards: int, **options: Any) -> Any:
    """Run every shard of a sync, as a scheduler does; the result has the counts of all."""
    if shards == 1:
        return dict(sync(**options))
    results = [sync(**options, shard=(index, shards)) for index in range(shards)]
    whole = dict(results[0])
    for name in count_names(whole["sync"]):
        counts = [result[name] for result in results]
        whole[name] = None if None in counts else sum(counts)
    return whole


def last_run(select: Select, sync: str = "user_segments") -> dict[str, Any]:
    """The newest row of the ledger."""
    return select("SELECT * FROM etl.sync_runs WHERE sync = $1 ORDER BY started_at", sync)[-1]


@contextmanager
def in_the_way(user_id: str) -> Iterator[None]:
    """Hold the row of a user in crm.user_segments, so that a merge that changes it waits."""
    connection = postgres.connect(Settings.from_environment(), "tests")
    postgres.execute(
        connection, "SELECT FROM crm.user_segments WHERE user_id = $1 FOR UPDATE", user_id
    )
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


@contextmanager
def stuck(select: Select, user_id: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m etl.user_segments`, waiting in the middle of its merge for that user's row.

    After the block it is let through, unless it has ended.
    """
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%staging%'"
    process = None
    try:
        with in_the_way(user_id):
            process = _start("etl.user_segments", "--json", *flags)
            deadline = time.monotonic() + HANG
            while not select(waits):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "it never came to wait"
                time.sleep(0.02)
            yield process
        process.communicate(timeout=HANG)
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def lock_held(sync: str, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """The lock of a run that is under way."""
    settings = Settings.from_environment()
    with postgres.session(settings, f"etl.{sync}") as session:
        ledger.lock(session, Job(sync, settings, Options(shard=shard)))
        yield


def change_sql(monkeypatch: pytest.MonkeyPatch, file: str, was: str, now: str) -> None:
    """Let one of the service's SQL files say something else."""
    load = queries.load

    def changed(*parts: str) -> str:
        text = load(*parts)
        if parts != ("postgres", file):
            return text
        assert was in text
        return text.replace(was, now)

    monkeypatch.setattr(queries, "load", changed)
