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

# The transform of a process that gets a signal while Polars asks a Decimal for its digits.
WITHIN_POLARS = """
import decimal, signal
import polars as pl
from etl import cli, user_segments

class Interrupted(decimal.Decimal):
    def as_tuple(self):
        signal.raise_signal(signal.{name})
        return super().as_tuple()

transform = user_segments.transform

def interrupted(frame):
    pl.lit(Interrupted("1.5"))
    return transform(frame)

user_segments.transform = interrupted
cli.main("user_segments")
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_polars_waits_for_python_makes_it_no_panic(
    name: str, code: int, mart: Mart, select: Select
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))

    ended = subprocess.run(
        [sys.executable, "-c", WITHIN_POLARS.format(name=name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )

    assert ended.stderr.splitlines()[-1] == f"etl: stopped by {name}"
    assert "panicked" not in ended.stderr
    assert ended.returncode == code
    assert [run["status"] for run in select("SELECT status FROM etl.sync_runs")] == ["cancelled"]
    assert select("SELECT * FROM crm.user_segments") == []
