"""What the fault tests share: marts in two versions, runs to break, and what must hold after."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
from conftest import ROOT, segments
from duckdb_files import written
from fixture_types import Select
from proxy import Proxy

from etl.result import SyncResult
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers

FULL = os.environ.get("ETL_FAULTS") == "all"

SYNCS = ("user_segments", "email_triggers", "recommendations")

# Users of the marts, so many that each part of a run takes its time.
USERS = dict(zip(SYNCS, (50_000, 8_000, 15_000) if FULL else (10_000, 2_000, 5_000), strict=True))

full_only = pytest.mark.skipif(not FULL, reason="takes long: ETL_FAULTS=all runs it")

_STATES = {
    "user_segments": """
        SELECT user_id, segment, total_searches, total_conversions, lifetime_value,
            previous_segment
        FROM crm.user_segments
    """,
    "email_triggers": """
        SELECT user_id, template, episode_at, priority, payload, status, reason, attempts
        FROM crm.email_queue
    """,
}

# Two versions of both marts: users change, come and go, and so do the destinations.
_MARTS = """
    CREATE TABLE mart_user_segments AS
    SELECT
        'u' || n AS user_id,
        ['regular', 'abandoned_search', 'new_user', 'at_risk', 'high_value'][
            1 + (n + $version * (n % 3 = 0)::INT) % 5
        ] AS segment,
        (n + $version * (n % 2))::HUGEINT AS lifetime_searches,
        (n // 10)::HUGEINT AS lifetime_conversions,
        ((n + $version) / 100)::DECIMAL(38, 2) AS lifetime_revenue,
        now()::TIMESTAMP - INTERVAL 3 DAY AS first_seen_at,
        now()::TIMESTAMP - INTERVAL 1 HOUR AS last_seen_at,
        'ios' AS primary_platform,
        'PT' AS primary_country,
        now() AS segmented_at
    FROM range($version * $users // 50, $users + $version * $users // 50) AS r(n);

    CREATE TABLE mart_recommendations AS
    SELECT
        'u' || n AS user_id,
        ['Lima', 'Oslo', 'Rome', 'Baku'][1 + (d + $version * (n % 2)) % 4] AS destination,
        1 - d * 0.1 AS score,
        d + 1 AS rank,
        now() AS generated_at
    FROM range($version * $users // 50, $users + $version * $users // 50) AS r(n),
        range(3) AS s(d)
"""


def times(quick: int, full: int) -> int:
    """How often to do it: in `make test`, and with ETL_FAULTS=all."""
    return full if FULL else quick


def two_marts(folder: Path, users: int) -> list[Path]:
    """Two versions of one warehouse."""
    paths = [folder / "first.duckdb", folder / "second.duckdb"]
    now = time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime())
    for version, path in enumerate(paths):
        with written(path) as connection:
            for statement in _MARTS.replace("now()", f"'{now}'::TIMESTAMPTZ").split(";"):
                connection.execute(statement, {"version": version, "users": users})
    return paths


def run(sync: str, warehouse: Path | None = None, **options: Any) -> SyncResult:
    """One undisturbed run in this process, past the guards; it may wait for what is dying."""
    if warehouse is not None:
        os.environ["DUCKDB_PATH"] = str(warehouse)  # `environment` puts it back
    options = {"force": True, "wait": 3} | options
    return cast("SyncResult", importlib.import_module(f"etl.{sync}").sync(**options))


def state(sync: str, select: Select, keys: redis.Redis) -> Any:
    """What a sync is to bring about, without the moments and ids that differ in every run."""
    if sync == "recommendations":
        names: list[Any] = sorted(cast("list[Any]", keys.keys()))
        return dict(zip(names, cast("list[Any]", keys.mget(names) if names else []), strict=True))
    rows = select(f"SELECT t::text AS row FROM ({_STATES[sync]}) AS t ORDER BY 1")
    return hashlib.md5("\n".join(row["row"] for row in rows).encode()).hexdigest()


def each_is_old_or_new(now: Any, old: Any, new: Any) -> bool:
    """Of tables all of it, of Redis each key."""
    if isinstance(now, dict):
        return all(now.get(key) in (old.get(key), new.get(key)) for key in {*now, *old, *new})
    return now in (old, new)


def settled(sync: str, marts: list[Path], select: Select, keys: redis.Redis) -> tuple[Any, float]:
    """The states that never killed runs end in, mart by mart, and how long the last run took.

    Each mart is loaded twice: the second time round the history is that of every later round.
    """
    for path in marts:
        run(sync, path)
    states = []
    for path in marts:
        begun = time.monotonic()
        run(sync, path)
        seconds = time.monotonic() - begun
        states.append(state(sync, select, keys))
    assert states[0] != states[1]
    return states, seconds


def nothing_is_left(select: Select) -> bool:
    """No session of a run, no lock, no temporary table."""
    (left,) = select("""
        SELECT
            (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'etl.%')
            + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')
            + (SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS things
    """)
    return bool(left["things"] == 0)


def clock(select: Select) -> Any:
    """The moment it is."""
    return select("SELECT clock_timestamp() AS now")[0]["now"]


def statuses_since(moment: Any, select: Select) -> list[str]:
    """How the ledger says that the runs ended which began since then."""
    rows = select(
        "SELECT status FROM etl.sync_runs WHERE started_at >= $1::timestamptz ORDER BY started_at",
        moment,
    )
    return [row["status"] for row in rows]


def crowd(users: int) -> tuple[str, str]:
    """Statements for a mart of so many users, more than a socket takes at once."""
    return (
        segments("('a', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments BY NAME"
        " SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        f" FROM mart_user_segments, range({users - 1}) AS r(n)",
    )


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m ARGUMENTS`, not waited for."""
    return spawn(["-m", *arguments], **environment)


def spawn(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Python as a child with its three streams as pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def superuser(*statements: str) -> None:
    """Run each statement on its own, outside of any transaction."""
    import adbc_driver_postgresql.dbapi as driver

    settings = Settings.from_environment()
    uri = f"host=127.0.0.1 port={settings.postgres_port} dbname=searchflow user=postgres"
    with driver.connect(f"{uri} password={settings.postgres_password}", autocommit=True) as server:
        for statement in statements:
            with server.cursor() as cursor:
                cursor.execute(statement)


@contextmanager
def dbt_writes(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the warehouse open for writing; it lets go at a line on stdin."""
    script = f"import duckdb; c = duckdb.connect({str(path)!r}); print('open', flush=True); input()"
    with spawn(["-c", script]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


@contextmanager
def proxied(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> Iterator[Proxy]:
    """Runs reach Postgres by a proxy; for the length of the block also these settings hold."""
    with Proxy(servers.postgres_port) as proxy, monkeypatch.context() as patched:
        for name, value in {**environment, "POSTGRES_PORT": str(proxy.port)}.items():
            patched.setenv(name, value)
        yield proxy


def later(seconds: float, work: Callable[[], object]) -> None:
    """Do it in a while, in a thread."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()
