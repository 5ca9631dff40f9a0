"""What the service leaves behind on the machine it runs on: nothing."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from conftest import ROOT
from fixture_types import Mart
from pace import HANG

from demo import sample

_PR_CAPBSET_DROP = 24


class Start(Protocol):
    """Run `python -m` with these words in folders that it may not write to, but for one."""

    def __call__(self, *words: str) -> subprocess.Popen[str]: ...


# So slow to read that there is time to look.
SLOW = """
    CREATE VIEW mart_user_segments AS
    SELECT
        'a' AS user_id, 'regular' AS segment, count(*) AS lifetime_searches,
        0 AS lifetime_conversions, 0 AS lifetime_revenue
    FROM range(10_000_000) AS a, range(10_000_000) AS b WHERE hash(a.range, b.range) = 0
"""


@pytest.fixture
def machine(environment: Path) -> Iterator[Path]:
    """Folders to work in; `start` sees to it that only `tmp` may be written to."""
    with tempfile.TemporaryDirectory(prefix="etl-machine-") as folder:
        machine = Path(folder)
        for name in ("cwd", "home", "tmp", "data"):
            (machine / name).mkdir()
        yield machine


@pytest.fixture
def start(machine: Path, environment: Path) -> Start:
    """`python -m` with nothing but those folders."""

    def run(*words: str) -> subprocess.Popen[str]:
        shutil.copy(environment, machine / "data" / "warehouse.duckdb")
        for name in ("cwd", "home", "data"):
            (machine / name).chmod(0o555)
        folders = {
            "HOME": str(machine / "home"),
            "TMPDIR": str(machine / "tmp"),
            "DUCKDB_PATH": str(machine / "data" / "warehouse.duckdb"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=machine / "cwd",
            env={**os.environ, **folders},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_obey_modes,  # noqa: PLW1509
        )

    return run


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "words", ["etl", "etl --dry-run --shard 1/2", "etl.status", "etl.prune --days 9"]
)
def test_who_may_write_nowhere_but_to_the_temporary_folder_leaves_nothing_there(
    words: str, start: Start, machine: Path, environment: Path
) -> None:
    sample.build(environment, 50)

    process = start(*words.split())
    _, told = process.communicate(timeout=60)

    assert process.returncode == 0, told
    assert _files(machine) == {"data/warehouse.duckdb"}


def test_a_sync_that_is_stopped_while_it_reads_takes_its_folder_with_it(
    start: Start, machine: Path, mart: Mart
) -> None:
    mart(SLOW)
    process = start("etl.user_segments")
    try:
        spill = _wait_for_spill(machine, process)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 143, told
    assert spill.startswith("tmp/etl-run-")
    assert _files(machine) == {"data/warehouse.duckdb"}


# Helpers

RECOMMENDED = """
    CREATE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS destination, 1.0 AS score, now() AS generated_at
"""


def _obey_modes() -> None:
    """Have root heed the modes of folders as everybody else does: without capabilities."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability)  # from the next program on


def _files(machine: Path) -> set[str]:
    """Everything in the folders, by its path from there."""
    return {
        str(path.relative_to(machine)) for folder in machine.iterdir() for path in folder.rglob("*")
    }


def _wait_for_spill(machine: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + HANG
    # Python tries a folder by a file of a random name; ours has another name until it is locked.
    while not (made := {name for name in _files(machine) if name.startswith("tmp/etl-run-")}):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return min(made)
