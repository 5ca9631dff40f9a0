"""The warehouse file while dbt writes it, replaces it or spoils it; and dbt is never held up."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT, command, results, segments
from destinations import digest, last_run, stuck
from fixture_types import Mart, Select
from needs import needs
from pace import HANG, within
from scenes import FULL, SYNCS, crowd, dbt_writes, later, proxied, run, start, times

from demo.embedded import Servers
from etl import user_segments
from etl.errors import SyncError


@pytest.mark.parametrize("sync", SYNCS if FULL else SYNCS[:1])
def test_a_run_waits_while_dbt_writes_and_says_once_for_whom(
    sync: str, mart: Mart, environment: Path
) -> None:
    mart(segments(users("regular")), RECOMMENDED)

    with dbt_writes(environment) as dbt:
        process = start(f"etl.{sync}", "--json", WAREHOUSE_WAIT=f"{HANG}", LOG_FORMAT="text")
        assert process.stderr is not None
        told = next(line for line in process.stderr if "warehouse.locked" in line)
        later(times(1, 2), lambda: dbt.stdin and dbt.stdin.close())
        stdout, stderr = process.communicate(timeout=HANG)

    assert process.returncode == 0, (stdout, stderr)
    assert f"PID {dbt.pid}" in told
    assert "warehouse.locked" not in stderr


def test_a_warehouse_that_stays_locked_fails_the_run_and_names_the_writer(
    mart: Mart, environment: Path, select: Select
) -> None:
    mart(segments(users("regular")))

    begun = time.monotonic()

    with dbt_writes(environment) as dbt, within(6):
        finished = command("etl.user_segments", "--json", WAREHOUSE_WAIT="1", LOG_FORMAT="text")

    assert finished.returncode == 1
    assert time.monotonic() - begun >= 1
    error = results(finished)[0]["error"]
    assert error.startswith(f"warehouse {environment}: locked by a writer, ")
    assert f"PID {dbt.pid}" in error
    assert finished.stderr.splitlines()[-1] == f"etl: user_segments failed: {error}"
    assert last_run(select)["error"] == error


def test_a_writer_in_another_container_is_told_as_one(mart: Mart, environment: Path) -> None:
    mart(segments(users("regular")))
    apart = [str(needs("unshare", "apt-get install util-linux")), "--pid", "--fork"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not have processes of its own")

    with dbt_writes(environment):
        finished = subprocess.run(
            [*apart, sys.executable, "-m", "etl.user_segments", "--json"],
            cwd=ROOT,
            env={**os.environ, "WAREHOUSE_WAIT": "0"},
            capture_output=True,
            text=True,
            check=False,
        )

    error = results(finished)[0]["error"]
    assert "locked by a writer, a process of another machine or container; run again" in error


def test_who_waits_for_dbt_can_be_stopped(mart: Mart, environment: Path) -> None:
    mart(segments(users("regular")))

    with dbt_writes(environment):
        process = start("etl.user_segments", "--json", WAREHOUSE_WAIT="30", LOG_FORMAT="text")
        assert process.stderr is not None
        while "warehouse.locked" not in process.stderr.readline():
            assert process.poll() is None
        with within(2):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=HANG)

    assert process.returncode == 143


def test_the_file_is_free_for_dbt_while_the_merge_goes_on(
    mart: Mart, environment: Path, select: Select
) -> None:
    mart(segments(users("regular")))
    user_segments.sync()
    mart(segments(users("at_risk")))

    with stuck(select, "u0", "--force"), dbt_writes(environment):
        assert last_run(select)["status"] == "running"

    assert last_run(select)["updated"] == USERS


def test_the_file_is_free_for_dbt_while_postgres_takes_no_more_of_a_first_load(
    servers: Servers, mart: Mart, environment: Path, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are copied while the mart is read, which does not wait for them."""
    mart(*crowd(300_000))

    with proxied(servers, monkeypatch) as proxy:
        proxy.when("client", b"PGCOPY", do=proxy.stall)
        process = start("etl.user_segments", "--json", LOG_FORMAT="text")
        assert process.stderr is not None
        while "mart.read" not in process.stderr.readline():
            assert process.poll() is None
        with dbt_writes(environment):
            assert process.poll() is None
        process.kill()
        process.communicate(timeout=HANG)

    assert not select("SELECT FROM crm.user_segments")


@pytest.mark.parametrize("failure", ["misses a column", "spoilt"])
def test_the_file_is_free_for_dbt_after_a_read_that_failed(
    failure: str, mart: Mart, environment: Path
) -> None:
    mart(*BROKEN[failure])
    if failure == "spoilt":
        spoil(environment)
    with pytest.raises(SyncError) as failed:
        run("user_segments")

    # The error, and with it its traceback, is still held.
    with dbt_writes(environment):
        assert str(failed.value)


def test_a_file_replaced_once_a_run_has_read_it_changes_nothing_for_it(
    mart: Mart, environment: Path, select: Select
) -> None:
    mart(segments(users("regular")))
    user_segments.sync()
    mart(segments(users("new_user")))
    newer = environment.with_name("newer.duckdb")
    with duckdb.connect(newer) as connection:
        connection.execute(segments(users("at_risk")))

    with stuck(select, "u0", "--force") as process:
        os.replace(newer, environment)

    assert process.returncode == 0
    loaded = {row["segment"] for row in select("SELECT segment FROM crm.user_segments")}
    assert loaded == {"new_user"}
    assert run("user_segments")["updated"] == USERS


@pytest.mark.parametrize("what", ["truncated", "garbage", "removed"] if FULL else ["garbage"])
def test_a_file_spoilt_once_a_run_has_read_it_does_not_reach_it(
    what: str, mart: Mart, environment: Path, select: Select
) -> None:
    mart(segments(users("regular")))
    user_segments.sync()
    mart(BIG)
    ruin: dict[str, Callable[[], object]] = {
        "truncated": lambda: os.truncate(environment, environment.stat().st_size // 2),
        "garbage": lambda: spoil(environment),
        "removed": environment.unlink,
    }

    with stuck(select, "u0", "--force") as process:
        ruin[what]()

    assert process.returncode == 0
    rows = select("SELECT status FROM etl.sync_runs")
    assert [row["status"] for row in rows] == ["ok"] * 2


def test_a_file_spoilt_at_any_place_never_gives_a_wrong_value(
    mart: Mart, environment: Path, select: Select
) -> None:
    """DuckDB checks every block it reads: a run reads what was written, or it fails."""
    mart(BIG)
    run("user_segments")
    right = digest(select)
    whole = environment.read_bytes()
    places = random.Random("spoilt")
    failed = 0

    for _ in range(times(5, 60)):
        at = places.randrange(len(whole))
        noise = places.randbytes(places.choice([1, 64, 5_000]))
        environment.write_bytes((whole[:at] + noise + whole[at + len(noise) :])[: len(whole)])
        error = problem()
        failed += error is not None
        assert error is None or re.fullmatch(f"warehouse {environment}: .*", error), error
        assert digest(select) == right

    assert failed


def test_a_file_cut_short_at_any_place_is_told(
    mart: Mart, environment: Path, select: Select
) -> None:
    mart(BIG)
    whole = environment.stat().st_size
    content = environment.read_bytes()

    for part in range(1, times(4, 24)):
        environment.write_bytes(content[: whole * part // times(4, 24)])
        with pytest.raises(SyncError, match=f"warehouse {environment}: ") as failed:
            run("user_segments")
        assert "\n" not in str(failed.value)

    assert select("SELECT FROM crm.user_segments") == []


USERS, BIG_USERS = 40, 30_000

RECOMMENDED = """
    CREATE TABLE mart_recommendations AS
    SELECT 'u' AS user_id, 'Lima' AS destination, 0.9 AS score, now() AS generated_at
"""

BIG = f"""
    CREATE OR REPLACE TABLE mart_user_segments AS
    SELECT 'u' || n AS user_id, 'at_risk' AS segment, hash(n) % 1000 AS lifetime_searches,
        hash(n) % 7 AS lifetime_conversions, hash(n) % 99 AS lifetime_revenue,
        now() AS segmented_at
    FROM range({BIG_USERS}) AS r(n)
"""

BROKEN = {
    "misses a column": (BIG, "ALTER TABLE mart_user_segments DROP segment"),
    "spoilt": (BIG,),
}


def problem() -> str | None:
    """What a run of user_segments fails of; None: it found nothing to change."""
    try:
        unchanged = run("user_segments")["unchanged"]
    except SyncError as error:
        return str(error)
    assert unchanged == BIG_USERS
    return None


def users(segment: str) -> str:
    return ", ".join(f"('u{n}', '{segment}', {n}, 0, 0)" for n in range(USERS))


def spoil(path: Path) -> None:
    """Noise over the middle half of the file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\xa5" * (size // 2))
