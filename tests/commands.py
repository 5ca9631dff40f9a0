"""`python -m etl` in this process and in others, and small marts for it to sync."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT, own_handlers, segments
from fixture_types import Etl, Mart, Select

from etl import cli

THREE_USERS = segments(
    "('a', 'regular', 3, 0, 0), ('b', 'abandoned_search', 9, 1, 5), ('c', 'regular', 1, 0, 0)"
)

RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT
        user_id, recommended_destination, recommendation_score::DOUBLE AS recommendation_score,
        2::BIGINT AS supporting_users, rank::BIGINT AS rank, now() AS generated_at
    FROM (VALUES ('a', 'Miami', 1.0, 1), ('a', 'Cancun', 0.7, 2), ('b', 'Lisbon', 0.9, 1))
        AS v(user_id, recommended_destination, recommendation_score, rank)
"""


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


Touched = Callable[[], tuple[int, int, int, int]]


@pytest.fixture
def etl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Etl]:
    """`python -m etl <arguments>`, or `python -m etl.<only>`, without a process of its own."""

    def run(*arguments: str, only: str | None = None) -> Ended:
        monkeypatch.setattr(sys, "argv", ["etl", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(only)
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    with own_handlers():
        yield run


@pytest.fixture
def marts(mart: Mart, tmp_path: Path) -> None:
    """Every mart: three users, of whom two have recommendations."""
    mart(THREE_USERS, RECOMMENDED)


@pytest.fixture
def touched(select: Select, keys: redis.Redis) -> Touched:
    """Count the rows of the segments and of the queue, the keys, and the rows of the ledger."""

    def touched() -> tuple[int, int, int, int]:
        tables = ("crm.user_segments", "crm.email_queue", "etl.sync_runs")
        segment_rows, mails, runs = (count(select, table) for table in tables)
        return segment_rows, mails, len(keys.keys("reco:*")), runs

    return touched


def count(select: Select, table: str) -> int:
    found: int = select(f"SELECT count(*) AS n FROM {table}")[0]["n"]
    return found


def start(module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
