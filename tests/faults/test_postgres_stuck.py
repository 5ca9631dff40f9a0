"""Postgres that hangs, is in the way, or is full: one line in good time, and nothing changed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import command, results, segments
from destinations import change_sql, digest, execute, last_run, stuck
from fixture_types import Mart, Select
from pace import HANG, soon, within
from proxy import Proxy
from scenes import crowd, full_only, later, nothing_is_left, proxied, run, spawn, start, superuser

from demo.embedded import Servers
from demo.embedded.server import Server, hand_over
from etl import postgres, user_segments
from etl.errors import SyncError

if TYPE_CHECKING:
    from etl.postgres import Connection

# Long enough to tell a deadline from a hang, however slow the machine.
_STATEMENT = 2.0
_GRACE = 8.0  # five seconds, and what a stop takes
_LEDGER = 15.0  # ten seconds for the attempt to tell the ledger

COPYING = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE state = 'active' AND query LIKE 'COPY%staging%' AND pid <> pg_backend_pid()"
)

USERS = 40

POINTS = {
    "logging in": (b"application_name",),
    "taking the lock": (b"Try to take what keeps runs",),
    "copying": (b"PGCOPY",),
    "merging": (b"UPDATE crm.user_segments",),
    "committing": (b'"status":"ok"', b"COMMIT"),
}


@full_only
def test_a_server_that_falls_silent_is_not_waited_for(
    servers: Servers, mart: Mart, select: Select, tmp_path: Path
) -> None:
    """At each point of a run; the runs work side by side, each on a shard of its own."""
    mart(segments(rows("regular")))
    user_segments.sync()
    before = digest(select)
    mart(segments(rows("at_risk")))

    with within(_STATEMENT + _GRACE + _LEDGER), contextlib.ExitStack() as stack:
        runs = {point: stack.enter_context(stalled(point, servers)) for point in POINTS}
        ended = {
            point: (*process.communicate(), process.returncode) for point, process in runs.items()
        }

    for point, (stdout, stderr, code) in ended.items():
        assert code == 1, point
        assert "Traceback" not in stderr, point
        assert stdout.count("\n") == 1, point
    assert soon(lambda: nothing_is_left(select), 3)
    assert digest(select) == before
    assert user_segments.sync(force=True)["updated"] == USERS


@full_only
def test_a_commit_that_is_never_answered_is_looked_up(
    servers: Servers, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server committed and fell silent for a while: what it did is not called undone."""
    mart(segments(rows("regular")))
    patience = {"POSTGRES_STATEMENT_TIMEOUT": "1", "RETRY_SECONDS": "10"}

    with proxied(servers, monkeypatch, **patience) as proxy:

        def stall() -> None:
            proxy.stall()
            later(8, proxy.restore)

        proxy.when_answered(b'"status":"ok"', b"COMMIT\0", do=stall)
        said = "ok"
        try:
            user_segments.sync()
        except SyncError as error:
            said = str(error)

    assert said == "ok" or said.startswith("the commit may have gone through")
    assert [row["status"] for row in select("SELECT status FROM etl.sync_runs")] == ["ok"]


@full_only
def test_a_frozen_postgres_is_not_waited_for(
    servers: Servers, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(rows("regular")))
    user_segments.sync()
    before = digest(select)
    mart(segments(rows("at_risk")))

    monkeypatch.setenv("POSTGRES_STATEMENT_TIMEOUT", "4")
    with (
        stuck(select, "u0", "--force") as process,
        frozen(servers.postgres),
        within(4 + _GRACE + _LEDGER),
    ):
        stdout, stderr = process.communicate(timeout=HANG)

    assert process.returncode == 1, (stdout, stderr)
    assert "Traceback" not in stderr
    assert soon(lambda: nothing_is_left(select), 3)
    assert digest(select) == before


@full_only
def test_a_port_that_says_nothing_is_given_up_after_ten_seconds(mart: Mart) -> None:
    mart(segments(rows("regular")))
    with socket.create_server(("127.0.0.1", 0)) as silent, within(14):
        finished = command(
            "etl.user_segments", "--json", POSTGRES_PORT=str(silent.getsockname()[1])
        )

    assert finished.returncode == 1
    assert "time" in results(finished)[0]["error"]


def test_a_statement_that_takes_too_long_is_ended_by_the_server(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(rows("regular")))
    user_segments.sync()
    before = digest(select)
    mart(segments(rows("at_risk")))
    execute(
        "CREATE FUNCTION crm.slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(60); RETURN new; END$$",
        "CREATE TRIGGER slow BEFORE UPDATE ON crm.user_segments"
        " FOR EACH ROW EXECUTE FUNCTION crm.slow()",
    )
    monkeypatch.setenv("POSTGRES_STATEMENT_TIMEOUT", "1")

    with within(6), pytest.raises(SyncError, match="POSTGRES_STATEMENT_TIMEOUT"):
        user_segments.sync(force=True)

    assert last_run(select)["status"] == "failed"
    assert digest(select) == before


def test_whoever_holds_a_table_for_too_long_is_named_without_what_it_does(
    mart: Mart, select: Select, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Locks are waited for no longer than 30 s and 4/5 of this.
    monkeypatch.setenv("POSTGRES_STATEMENT_TIMEOUT", "2")
    mart(segments(rows("regular")))
    (me,) = postgres.select(database, "SELECT pg_backend_pid() AS pid")
    postgres.execute(database, "LOCK TABLE crm.user_segments IN ACCESS EXCLUSIVE MODE")

    with within(10), pytest.raises(SyncError, match="lock") as failed:
        user_segments.sync()

    database.rollback()
    assert f"pid {me['pid']}, role airflow, idle in transaction, since 20" in str(failed.value)
    assert "holds a lock that is needed; let it commit, or end it with" in str(failed.value)
    assert "LOCK TABLE" not in str(failed.value)
    assert "\n" not in str(failed.value)
    assert last_run(select)["error"] == str(failed.value)


def test_out_of_space_for_temporary_files_is_one_line_and_changes_nothing(
    mart: Mart, select: Select, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(users("regular"))
    run("user_segments")
    before = digest(select)
    mart(users("at_risk"))
    change_sql(monkeypatch, "session", "'64MB'", "'64kB'")

    with role_may("temp_file_limit = '1MB'", "work_mem = '64kB'", servers=servers):
        finished = command("etl.user_segments", "--force", "--json", LOG_FORMAT="text")

    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("etl: user_segments failed: Postgres (")
    assert "temporary file size exceeds" in results(finished)[0]["error"]
    assert "; raise temp_file_limit for airflow, or load in shards" in results(finished)[0]["error"]
    assert last_run(select)["status"] == "failed"
    assert digest(select) == before
    assert run("user_segments")["updated"] == 20_000


def test_a_full_disk_is_one_line_and_changes_nothing(
    mart: Mart, select: Select, servers: Servers
) -> None:
    mart(users("regular"))
    run("user_segments")
    before = digest(select)
    mart(users("at_risk"))

    with small_disk(servers), role_may("temp_tablespaces = small", servers=servers):
        finished = command("etl.user_segments", "--force", "--json", LOG_FORMAT="text")
        assert soon(lambda: nothing_is_left(select), 3)

    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert "No space left on device" in results(finished)[0]["error"]
    assert "; the server's disk is full: make room there" in results(finished)[0]["error"]
    assert finished.stderr.count("etl: ") == 1
    assert digest(select) == before
    assert run("user_segments")["updated"] == 20_000


@full_only
def test_a_server_that_takes_nothing_of_a_copy_for_25_seconds_counts_as_lost(
    mart: Mart, select: Select
) -> None:
    """The run is made again, and loads all of it once (`tcp_user_timeout`)."""
    mart(*crowd(300_000))

    process = start("etl.user_segments", LOG_FORMAT="json", RETRY_SECONDS="60")
    with within(HANG):
        while not (copying := select(COPYING)):
            assert process.poll() is None
    os.kill(copying[0]["pid"], signal.SIGSTOP)
    try:
        assert process.stderr is not None
        while "attempt.failed" not in (line := process.stderr.readline()):
            assert line, "it ended"
    finally:
        os.kill(copying[0]["pid"], signal.SIGCONT)
    process.communicate(timeout=HANG)

    assert process.returncode == 0
    assert select("SELECT count(*) AS rows FROM crm.user_segments") == [{"rows": 300_000}]


@contextmanager
def stalled(point: str, servers: Servers) -> Iterator[subprocess.Popen[str]]:
    """A run of one shard whose server falls silent at that point; it prints its error."""
    shard = (list(POINTS).index(point), len(POINTS))
    code = (
        "from etl import user_segments\n"
        "from etl.errors import SyncError\n"
        f"try: user_segments.sync(force=True, shard={shard})\n"
        "except SyncError as error: print(error); raise SystemExit(1)"
    )
    patience = str(_STATEMENT)
    with Proxy(servers.postgres_port) as proxy:
        proxy.when("client", *POINTS[point], do=proxy.stall, deliver=False)
        yield spawn(
            ["-c", code], POSTGRES_PORT=str(proxy.port), POSTGRES_STATEMENT_TIMEOUT=patience
        )


def rows(segment: str) -> str:
    return ", ".join(f"('u{n}', '{segment}', 1, 0, 0)" for n in range(USERS))


def users(segment: str) -> str:
    """SQL for a mart of 20,000 users, too many for the smallest of memories."""
    return f"""
        CREATE OR REPLACE TABLE mart_user_segments AS
        SELECT
            'u' || n AS user_id, '{segment}' AS segment, n AS lifetime_searches,
            n AS lifetime_conversions, n AS lifetime_revenue, now() AS segmented_at
        FROM range(20_000) AS r(n)
    """


@contextmanager
def role_may(*settings: str, servers: Servers) -> Iterator[None]:
    """The sessions of airflow start with these settings, given by the superuser."""
    names = [setting.partition(" ")[0] for setting in settings]
    superuser(*(f"ALTER ROLE airflow SET {setting}" for setting in settings))
    try:
        yield
    finally:
        superuser(*(f"ALTER ROLE airflow RESET {name}" for name in names))


@contextmanager
def small_disk(servers: Servers) -> Iterator[None]:
    """A tablespace `small` on a file system of 512 kB, where temporary tables may go."""
    with tempfile.TemporaryDirectory(prefix="etl-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k,mode=777", "etl-disk", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
        try:
            space = Path(folder, "space")
            space.mkdir()
            hand_over(space, servers.postgres.account)
            superuser(f"CREATE TABLESPACE small LOCATION '{space}'", GRANT)
            yield
            superuser("DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", folder], check=True)


GRANT = "GRANT CREATE ON TABLESPACE small TO airflow"


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Stop every process of Postgres in its tracks."""
    assert server.process is not None
    postmaster = server.process.pid
    pids = [postmaster, *children(postmaster)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
