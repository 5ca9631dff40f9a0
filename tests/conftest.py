"""Real servers for every test: one Postgres and one Valkey a session, emptied between tests."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import pytest
import redis
from duckdb_files import written
from fixture_types import Failing, Mart, Meanwhile, OwnQuery, Select
from redis_servers import Others
from schemas import Schemas

from demo import sample
from demo.embedded import Servers, running, server, settings_in
from etl import cache, postgres, user_segments
from etl.errors import SyncError
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection

ROOT = Path(__file__).parent.parent

pytest_plugins = ("commands",)

BY_HAND = ("mart_user_segments", "mart_recommendations")


def pytest_configure() -> None:
    """Give the servers of this process ports that no other worker takes, of other runs most."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    run, number = (os.getppid(), int(worker[2:])) if worker else (os.getpid(), 0)
    server.SHARE = slice((8 * run + number) % 64, None, 64)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked `few(n)`, mark all as slow but n that are spread over them.

    ETL_ORDER=7 runs all tests in another order, the same for every 7.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for of_one_test in cases.values():
        mark = of_one_test[0].get_closest_marker("few")
        most = len(of_one_test) if mark is None else mark.args[0]
        every = max(len(of_one_test) / most, 1)
        taken = {int(n * every) for n in range(most)}
        for number, item in enumerate(of_one_test):
            if number not in taken:
                item.add_marker("slow")
    if seed := os.environ.get("ETL_ORDER"):
        _shuffle(items, random.Random(seed))


def _shuffle(items: list[pytest.Item], order: random.Random) -> None:
    """Shuffle the files and the tests of each, which share servers that take long to start."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    groups = list(files.values())
    order.shuffle(groups)
    for group in groups:
        order.shuffle(group)
    items[:] = [item for group in groups for item in group]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Both servers, with durability off: what a test does need not survive a power cut."""
    fast = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    fast["max_wal_size"] = "128MB"
    # Not pytest's own folder: as root the servers run as a user who may not enter that.
    with tempfile.TemporaryDirectory(prefix="etl-tests-", dir=_memory()) as folder:
        os.chmod(folder, 0o755)
        with running(Path(folder), settings=fast) as both:
            yield both


def _memory() -> str | None:
    """Return a folder in memory with room, if there is one: to empty a table is to make files."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() and disk_usage(folder).free > 4 << 30 else None


@pytest.fixture(scope="session")
def schemas(servers: Servers) -> Iterator[Schemas]:
    """The schemas crm and etl, which tests share as long as none changes them."""
    shared = Schemas()
    yield shared
    shared.close()


@pytest.fixture
def environment(
    servers: Servers, schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Point the service at empty servers and at a warehouse path where no file is yet."""
    warehouse = tmp_path / "warehouse.duckdb"
    for name in settings_in(os.environ):
        monkeypatch.delenv(name)
    # What is lost in a test stays lost; those of tests/faults wait.
    ours_now = {"DUCKDB_PATH": str(warehouse), "RETRY_SECONDS": "0", "WAREHOUSE_WAIT": "0"}
    for name, value in {**servers.environment, **ours_now}.items():
        monkeypatch.setenv(name, value)
    with redis.Redis(port=servers.redis_port) as client:
        client.flushall()
    schemas.make()
    yield warehouse
    schemas.clear()


@pytest.fixture
def database(environment: Path) -> Iterator[Connection]:
    """A connection to the test database; `commit` to let others see what you did."""
    connection = postgres.connect(Settings.from_environment(), "tests")
    yield connection
    connection.close()


@pytest.fixture
def select(database: Connection) -> Select:
    """Rows of a query, as committed now; those that no ORDER BY sorts come last row first."""

    def run(sql: str, *parameters: Any) -> list[dict[str, Any]]:
        rows = postgres.select(database, sql, *parameters)
        database.rollback()
        return rows if is_sorted(sql) else rows[::-1]

    return run


@pytest.fixture
def keys(servers: Servers, environment: Path) -> Iterator[redis.Redis]:
    """The Redis server, as its readers see it."""
    with redis.Redis(port=servers.redis_port) as client:
        yield client


@pytest.fixture
def others(servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch) -> Others:
    """Redis servers of other kinds."""
    return Others(servers, monkeypatch)


@pytest.fixture
def mart(environment: Path, tmp_path: Path) -> Mart:
    """Run SQL statements that make the marts: `mart("CREATE TABLE mart_x AS ...")`.

    A new warehouse has the marts of added syncs as well.
    """

    def make(*statements: str) -> None:
        if not environment.exists():
            statements = (*_other_marts(tmp_path), *statements)
        with written(environment) as connection:
            for statement in statements:
                connection.execute(statement)

    return make


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Do something in mid-run: `meanwhile(8, do)`, before the keys' batch 8 goes to the writer."""

    def prepare(number: int, do: Callable[[], object]) -> None:
        write = cache.write

        def meddled(client: Any, batches: Iterable[Any], *rest: Any) -> Iterator[int]:
            def watched() -> Iterator[Any]:
                for at, batch in enumerate(batches):
                    if at == number:
                        do()
                    yield batch

            return write(client, watched(), *rest)

        monkeypatch.setattr(cache, "write", meddled)

    return prepare


@pytest.fixture
def failing(mart: Mart, environment: Path, database: Connection, select: Select) -> Failing:
    """Make a mart, spoil it step by step, sync: the error, one line, and the CRM as it was."""
    postgres.execute(database, "INSERT INTO crm.user_segments VALUES ('old', 'regular', 1, 1, 1)")
    database.commit()
    before = select("SELECT ctid::text, xmin::text, * FROM crm.user_segments")

    def run(*spoil: str | Callable[[Path], object]) -> SyncError:
        mart(segments("('a', 'regular', 3, 1, 9.5)"))
        for step in spoil:
            mart(step) if isinstance(step, str) else step(environment)
        with pytest.raises(SyncError) as raised:
            user_segments.sync()
        assert "\n" not in str(raised.value)
        assert select("SELECT ctid::text, xmin::text, * FROM crm.user_segments") == before
        return raised.value

    return run


@pytest.fixture
def own_query(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnQuery:
    """Put a user_segments.sql into a folder of its own and ETL_SQL_DIR to that."""

    def write(sql: str) -> Path:
        monkeypatch.setenv("ETL_SQL_DIR", str(tmp_path / "sql"))
        path = tmp_path / "sql" / "user_segments.sql"
        path.parent.mkdir(exist_ok=True)
        path.write_text(sql)
        return path

    return write


def is_sorted(sql: str) -> bool:
    """Whether the statement itself has an ORDER BY, not just a subquery or an aggregate of it."""
    inner = re.compile(r"\([^()]*\)")
    while inner.search(sql):
        sql = inner.sub("", sql)
    return "ORDER BY" in sql


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def _other_marts(folder: Path) -> list[str]:
    """SQL for the marts of the sample that no test makes by hand: an added sync may read one."""
    others = [name for name in sample.MARTS if name not in BY_HAND]
    if not others:
        return []
    file = folder / "sample.duckdb"
    sample.build(file, 30)
    made = [f"CREATE TABLE {name} AS FROM sample.main_marketing.{name}" for name in others]
    return [f"ATTACH '{file}' AS sample (READ_ONLY)", *made, "DETACH sample"]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <arguments>` in this process, which spares a second of imports."""
    if threading.current_thread() is not threading.main_thread():
        return process(*arguments, **environment)
    words, stdout, stderr = ["-m", *arguments], io.StringIO(), io.StringIO()
    with (
        own_handlers(),
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # imported before
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", words[1:])
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            code: Any = 0
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def own_handlers() -> Iterator[None]:
    """Keep what a command sets up for its process: handlers of signals and of the log."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logger = logging.getLogger("etl")
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        yield
    finally:
        logger.handlers, logger.level, logger.propagate = before
        for number, handler in handlers.items():
            signal.signal(number, handler)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <arguments>` as its user would."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def results(finished: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The objects that `--json` printed."""
    return [json.loads(line) for line in finished.stdout.splitlines()]


def segments(rows: str) -> str:
    """SQL for mart_user_segments: VALUES of id, segment, searches, conversions, revenue."""
    return f"""
        CREATE OR REPLACE TABLE mart_user_segments AS
        SELECT
            user_id::VARCHAR AS user_id,
            segment::VARCHAR AS segment,
            lifetime_searches::HUGEINT AS lifetime_searches,
            lifetime_conversions::HUGEINT AS lifetime_conversions,
            lifetime_revenue::DECIMAL(38, 2) AS lifetime_revenue,
            now() - INTERVAL 40 DAY AS first_seen_at,
            now()::TIMESTAMP - INTERVAL 1 HOUR AS last_seen_at,
            'ios' AS primary_platform,
            'PT' AS primary_country,
            now() AS segmented_at
        FROM (VALUES {rows})
            AS v(user_id, segment, lifetime_searches, lifetime_conversions, lifetime_revenue)
    """
