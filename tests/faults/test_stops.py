"""SIGTERM and Ctrl-C at any moment: gone in two seconds, with one line and nothing half done."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT, segments
from fixture_types import Mart, Select
from pace import HANG, soon, within
from scenes import (
    SYNCS,
    USERS,
    clock,
    each_is_old_or_new,
    nothing_is_left,
    run,
    settled,
    start,
    state,
    statuses_since,
    times,
    two_marts,
)

STOPS = times(2, 14)


@pytest.mark.few(1)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sync", SYNCS)
def test_a_stopped_command_ends_at_once_in_good_order(
    sync: str, environment: Path, select: Select, keys: redis.Redis
) -> None:
    moments = random.Random(f"stopped {sync}")
    marts = two_marts(environment.parent, USERS[sync])
    states, _ = settled(sync, marts, select, keys)
    seconds = seconds_of_a_command(sync, marts[1])
    stopped = 0

    for count in range(10 * STOPS):
        if stopped == STOPS:
            break
        new = count % 2
        number = (signal.SIGTERM, signal.SIGINT)[(count + count // 2) % 2]
        before = clock(select)
        process = start(f"etl.{sync}", "--force", "--json", DUCKDB_PATH=str(marts[new]))
        wait_until_it_listens(process)
        code, log = stop(process, number, moments.uniform(0, seconds))
        if code:
            stopped += 1
        else:  # it was done before it was stopped: the machine has become quicker
            seconds *= 0.8

        assert soon(lambda: nothing_is_left(select), 1)
        seen = state(sync, select, keys)
        assert each_is_old_or_new(seen, states[1 - new], states[new])
        ended = statuses_since(before, select)
        # A machine that is too busy to record it in time is told.
        late = [["running"]] if "its end may not be recorded" in log else []
        assert ended in (["ok"], *([[], ["cancelled"], *late] if code else []))
        if sync != "recommendations":
            assert (seen == states[new]) is (ended == ["ok"])
        assert run(sync, marts[new])["status"] == "ok"
        assert state(sync, select, keys) == states[new]

    assert stopped == STOPS


def test_a_command_that_tries_a_lost_server_again_can_be_stopped(mart: Mart) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    process = start("etl.user_segments", "--json", POSTGRES_PORT="1", RETRY_SECONDS="60")
    wait_until_it_listens(process)

    assert stop(process, signal.SIGTERM, after=1.5)[0] == 143


def test_a_stop_while_keys_are_packed_is_an_exception_like_any_other() -> None:
    """In hiredis, in C: the process must not go down with it."""
    code = """if True:
        import signal, time
        import redis
        from etl.errors import Cancelled
        from etl.cache.lane import Lane, Sent

        def stop(number, frame):
            if frame.f_code.co_name == "_pack":
                raise Cancelled(signal.Signals(number))

        lane, stops, end = Lane(redis.Redis(), "MSETEX", 86_400, wait=False), 0, time.time() + 5
        sent = Sent([("k", b"v")], asking=False, wait=False)
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        while stops < 2_000 and (stops <= 100 or time.time() < end):
            try:
                lane._pack(sent)
            except Cancelled:
                stops += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(stops)
    """
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 100


def stop(process: subprocess.Popen[str], number: signal.Signals, after: float) -> tuple[int, str]:
    """Stop a command after so many seconds, look at how it ends; its exit code and its log."""
    time.sleep(after)
    with within(2):
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=HANG)

    said = [line for line in stderr.splitlines() if not is_json(line)]
    results = [json.loads(line) for line in stdout.splitlines()]
    if process.returncode == 0:
        assert said == []
        assert [result["status"] for result in results] == ["ok"]
    else:
        assert process.returncode == 128 + number, stderr
        assert said == [f"etl: stopped by {number.name}"]
        assert [one for one in results if one["status"] not in ("cancelled", "ok")] == []
    return process.returncode, stderr


def seconds_of_a_command(sync: str, warehouse: Path) -> float:
    """From when it can be stopped to its end."""
    process = start(f"etl.{sync}", "--force", "--json", DUCKDB_PATH=str(warehouse))
    wait_until_it_listens(process)
    begun = time.monotonic()
    _, stderr = process.communicate()
    assert "Traceback" not in stderr
    return time.monotonic() - begun


def wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    """Until etl has set its handlers: before its first import a signal is Python's business."""
    status = Path(f"/proc/{process.pid}/status")

    def listens() -> bool:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", status.read_text())
        # Both are set at once, and that for Ctrl-C is there from the start.
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    assert soon(listens, HANG)


def is_json(line: str) -> bool:
    try:
        value: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict)
