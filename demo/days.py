"""The demo's warehouse on three days: day 1, day 2, and a day on which dbt lost half a mart."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

import duckdb

from demo import sample
from etl.plumbing import queries


def build(folder: Path, users: int, epoch: datetime, built_at: datetime) -> None:
    """Write day1.duckdb, day2.duckdb and lost.duckdb; the same epoch gives the same rows again.

    Args:
        folder: where they go.
        users: so many have an account on day 2.
        epoch: the moment before which everybody visited.
        built_at: when dbt built the marts of day 2; those of day 1, a day before.
    """
    today, before = folder / "day2.duckdb", folder / "day1.duckdb"
    sample.build(today, users, epoch=epoch, built_at=built_at)
    before.unlink(missing_ok=True)
    with duckdb.connect(str(before)) as connection:
        connection.execute(f"ATTACH '{today}' AS today (READ_ONLY)")
        connection.execute("SET VARIABLE days = 1")
        earlier = queries.load("sample", "earlier")
        connection.execute(earlier)
        others = [mart for mart in sample.MARTS if f".{mart} AS" not in earlier]
        sample.fill(connection, others, users, epoch, built_at)
    _change(before, "day_before")
    _change(today, "bad_rows")
    shutil.copy(today, folder / "lost.duckdb")
    _change(folder / "lost.duckdb", "lost_half")


def switch(folder: Path, day: str) -> None:
    """Let warehouse.duckdb be what dbt left on that day: day1, day2 or lost."""
    draft = folder / "warehouse.new"
    shutil.copy(folder / f"{day}.duckdb", draft)
    os.replace(draft, folder / "warehouse.duckdb")


def _change(path: Path, name: str) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(queries.load("sample", name))
