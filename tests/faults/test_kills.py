"""SIGKILL at any moment: wholly before or wholly after, nothing left behind, the next run mends."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from conftest import segments
from destinations import stuck
from fixture_types import Mart, Select
from pace import soon
from scenes import (
    SYNCS,
    USERS,
    clock,
    each_is_old_or_new,
    nothing_is_left,
    run,
    settled,
    spawn,
    state,
    statuses_since,
    times,
    two_marts,
)

from etl import user_segments

KILLS = times(4, 14)


@pytest.mark.few(1)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sync", SYNCS)
def test_a_run_killed_at_any_moment_did_all_or_nothing_and_the_next_completes_it(
    sync: str, environment: Path, select: Select, keys: redis.Redis
) -> None:
    moments = random.Random(f"killed {sync}")
    marts = two_marts(environment.parent, USERS[sync])
    states, seconds = settled(sync, marts, select, keys)
    in_the_middle = 0

    with ready(sync, marts[0]) as first, ready(sync, marts[1]) as second:
        for number in range(10 * KILLS):
            if in_the_middle == KILLS:
                break
            process, mart = (first, second)[number % 2], marts[number % 2]
            old, new = states[1 - number % 2], states[number % 2]
            before = clock(select)
            if process.killed_after(moments.uniform(0, seconds)):
                in_the_middle += 1
            else:  # it was done before: the machine has become quicker
                seconds *= 0.8

            assert soon(lambda: nothing_is_left(select), 3)
            seen = state(sync, select, keys)
            assert each_is_old_or_new(seen, old, new)
            if sync != "recommendations":
                assert (seen == new) is (statuses_since(before, select) == ["ok"])
            assert run(sync, mart)["status"] == "ok"
            assert state(sync, select, keys) == new

    assert in_the_middle == KILLS
    assert not select("SELECT FROM etl.sync_runs WHERE status NOT IN ('ok', 'failed')")


def test_the_server_notices_in_a_second_that_a_run_was_killed_in_the_middle_of_a_statement(
    mart: Mart, select: Select
) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('u0', 'at_risk', 1, 0, 0)"))

    with stuck(select, "u0", "--force") as process:
        process.kill()
        assert soon(lambda: nothing_is_left(select), 3)  # and still somebody is in the way

    assert select("SELECT segment FROM crm.user_segments") == [{"segment": "regular"}]
    assert user_segments.sync(force=True)["updated"] == 1


class Ready:
    """Processes that have imported everything and wait for the word, one after the other."""

    def __init__(self, sync: str, warehouse: Path) -> None:
        code = (
            f"import sys; from etl import {sync} as sync, cache, warehouse\n"
            "import adbc_driver_postgresql.dbapi\n"
            f"print('ready', flush=True); sys.stdin.readline()\n"
            "sync.sync(force=True, wait=3)"
        )
        self._arguments = ["-c", code]
        self._warehouse = str(warehouse)
        self.process = self._next()

    def killed_after(self, seconds: float) -> bool:
        """Let it run that long and kill it; whether it was still at it."""
        process, self.process = self.process, self._next()
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(seconds)
        running = process.poll() is None
        process.kill()
        process.communicate()
        return running

    def _next(self) -> subprocess.Popen[str]:
        return spawn(self._arguments, DUCKDB_PATH=self._warehouse)


@contextmanager
def ready(sync: str, warehouse: Path) -> Iterator[Ready]:
    processes = Ready(sync, warehouse)
    yield processes
    processes.process.kill()
    processes.process.communicate()
