"""A signal ends a command in one line, whenever it comes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Touched, start
from conftest import ROOT
from fixture_types import Etl
from pace import HANG, soon

from etl import postgres, user_segments
from etl.errors import Cancelled

# Signals


@pytest.mark.few(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_rolls_back_and_is_recorded(
    number: signal.Signals, code: int, marts: None, database: postgres.Connection, touched: Touched
) -> None:
    postgres.execute(database, "LOCK TABLE crm.user_segments IN ACCESS EXCLUSIVE MODE")
    process = start("etl", "--json", LOG_FORMAT="text")
    _wait_for_lock(database)

    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=HANG)
    database.rollback()
    (row,) = postgres.select(database, "SELECT run_id, sync, status, error FROM etl.sync_runs")

    assert process.returncode == code
    assert stderr.splitlines()[-1] == f"etl: stopped by {number.name}"
    assert stderr.count("stopped by") == 1
    assert "Traceback" not in stderr
    (printed,) = map(json.loads, stdout.splitlines())
    assert (printed["status"], printed["error"]) == ("cancelled", f"cancelled by {number.name}")
    assert row == {name: printed[name] for name in ("run_id", "sync", "status", "error")}
    assert touched() == (0, 0, 0, 1)


@pytest.mark.few(2)
@pytest.mark.parametrize("module", ["etl", "etl.user_segments"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_the_imports_is_one_line_too(
    module: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    slow = "import time\nprint('importing', flush=True)\ntry: time.sleep(99)\nexcept BaseException:"
    (tmp_path / "dataframely.py").write_text(f"{slow} raise ImportError('swallowed') from None\n")
    process = start(module, PYTHONPATH=str(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"

    process.send_signal(number)
    _, stderr = process.communicate(timeout=HANG)

    assert (process.returncode, stderr) == (code, f"etl: stopped by {number.name}\n")


@pytest.mark.parametrize("lost", [RuntimeError("Query interrupted"), None], ids=str)
def test_a_signal_whose_exception_got_lost_still_stops_the_command(
    lost: Exception | None,
    etl: Etl,
    marts: None,
    monkeypatch: pytest.MonkeyPatch,
    touched: Touched,
) -> None:
    def deaf(_: object) -> None:
        with contextlib.suppress(Cancelled):
            signal.raise_signal(signal.SIGTERM)
        if lost:
            raise lost

    monkeypatch.setattr(user_segments, "load", deaf)

    ended = etl("--json", "--force")

    assert (ended.code, len(ended.objects)) == (143, 1)
    assert ended.stderr.splitlines()[-1] == "etl: stopped by SIGTERM"
    assert touched()[:3] == (0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_work_changes_nothing(number: signal.Signals) -> None:
    # What runs at exit runs while Python winds up; a class outlives the handlers.
    code = (
        "import os, sys\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, {int(number)})\n"
        "sys.late = Late()\n"
        "from etl.cli.exits import exit_with\n"
        "exit_with(lambda: 0)\n"
    )

    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (finished.returncode, finished.stderr) == (0, "")


def test_importing_the_package_sets_no_signal_handler() -> None:
    code = (
        "import signal, etl.cli, etl.user_segments; print(signal.getsignal(15) == signal.SIG_DFL)"
    )

    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert finished.stdout == "True\n"


# Helpers


def _wait_for_lock(database: postgres.Connection) -> None:
    """Return when a sync waits for a lock that this connection holds."""
    waiting = "SELECT 1 AS one FROM pg_locks WHERE NOT granted"
    assert soon(lambda: bool(postgres.select(database, waiting)), HANG)
