"""A signal at the worst moment: inside a library that expects no exception there."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, segments
from pace import HANG

if TYPE_CHECKING:
    from fixture_types import Mart, Select

# The transform of a process that gets a signal where Python may not raise: while Polars asks a
# Decimal for its digits, or in a destructor, which drops exceptions.
WITHIN_TRANSFORM = """
import decimal, signal
import polars as pl
from etl import cli, user_segments

class Digits(decimal.Decimal):
    def as_tuple(self):
        signal.raise_signal(signal.{name})
        return super().as_tuple()

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.{name})

transform = user_segments.transform

def interrupted(frame):
    {interrupt}
    return transform(frame)

user_segments.transform = interrupted
cli.main("user_segments")
"""

# A signal that is lost while the second sync is imported.
WITHIN_IMPORT = """
import importlib, signal
from etl import cli

class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.{name})

import_module = importlib.import_module

def interrupted(name):
    if name == "etl.email_triggers":
        Interrupted()
    return import_module(name)

importlib.import_module = interrupted
cli.main()
"""


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("interrupt", ['pl.lit(Digits("1.5"))', "Dropped()"])
def test_a_signal_where_no_exception_may_be_raised_cancels_the_run_all_the_same(
    interrupt: str, name: str, code: int, mart: Mart, select: Select
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))

    ended = run(WITHIN_TRANSFORM.format(name=name, interrupt=interrupt))

    assert ("Exception ignored" in ended.stderr) == (interrupt == "Dropped()")
    assert "panicked" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == f"etl: stopped by {name}"
    assert ended.returncode == code
    assert [row["status"] for row in select("SELECT status FROM etl.sync_runs")] == ["cancelled"]
    assert select("SELECT * FROM crm.user_segments") == []


def test_a_signal_dropped_between_two_syncs_begins_none(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))

    ended = run(WITHIN_IMPORT.format(name="SIGTERM"))

    assert ended.stderr.splitlines()[-1] == "etl: stopped by SIGTERM"
    assert ended.returncode == 143
    assert [row["sync"] for row in select("SELECT sync FROM etl.sync_runs")] == ["user_segments"]


# Helpers


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, what it prints kept."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
