"""The temporary folder of a run: its owner's alone, and gone with the run or with the next."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import ROOT, segments
from destinations import stuck
from fixture_types import Mart, Select

from etl import user_segments
from etl.errors import SyncError
from etl.run import Run
from etl.warehouse import errors


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, which is empty."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_run_has_one_folder_that_nobody_else_may_enter(
    mart: Mart, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    stage: Any = Run.stage

    def look(run: Run, *rest: Any) -> None:
        seen.extend((path.name, stat.S_IMODE(path.stat().st_mode)) for path in parent.iterdir())
        stage(run, *rest)

    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()  # into an empty table, which stages nothing
    monkeypatch.setattr(Run, "stage", look)

    user_segments.sync()

    assert [mode for _, mode in seen] == [0o700]
    assert not list(parent.iterdir())


@pytest.mark.parametrize("error", [SyncError("no"), KeyboardInterrupt(), ValueError("no")])
def test_a_run_that_fails_leaves_no_folder(
    mart: Mart, parent: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        assert list(parent.glob("*/mart"))
        raise error

    monkeypatch.setattr(Run, "count", fail)
    mart(segments("('a', 'regular', 1, 0, 0)"))

    with pytest.raises((SyncError, KeyboardInterrupt)):
        user_segments.sync()

    assert not list(parent.iterdir())


def test_the_folder_of_a_killed_run_goes_with_the_next(
    mart: Mart, select: Select, parent: Path
) -> None:
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('u0', 'at_risk', 1, 0, 0)"))
    with stuck(select, "u0", "--force") as process:
        (living,) = parent.iterdir()
        with pytest.raises(SyncError, match="already running"):
            user_segments.sync(force=True)
        assert list(parent.iterdir()) == [living]  # it is in use
        process.kill()
        process.wait()
        assert list(parent.iterdir()) == [living]

    user_segments.sync(force=True, wait=10)

    assert not list(parent.iterdir())


def test_what_is_not_ours_stays(mart: Mart, parent: Path) -> None:
    others = [parent / "etl-run-report.csv", parent / "etl-data"]
    others[0].write_text("kept")
    others[1].mkdir()
    os.symlink(others[1], parent / "etl-run-link")
    mart(segments("('a', 'regular', 1, 0, 0)"))

    user_segments.sync()

    assert sorted(parent.iterdir()) == sorted([*others, parent / "etl-run-link"])


def test_a_full_disk_is_told_with_the_folder_that_is_full(mart: Mart, select: Select) -> None:
    mart(
        segments("('u', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        " FROM mart_user_segments, range(9999) AS r(n)",
    )
    small = ["prlimit", "--fsize=100000", sys.executable, "-m", "etl.user_segments"]

    finished = subprocess.run(small, cwd=ROOT, capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert f"temporary folder {tempfile.gettempdir()}: File too large; make room" in finished.stderr
    assert not select("SELECT FROM crm.user_segments")


def test_what_does_not_fit_into_memory_and_folder_is_told_with_what_to_do(
    mart: Mart, environment: Path
) -> None:
    mart("CREATE TABLE big AS SELECT repeat(md5(n::VARCHAR), 9) AS x FROM range(100_000) AS r(n)")
    limits: Any = {"memory_limit": "10MB", "threads": 1, "max_temp_directory_size": "500kB"}

    with (
        duckdb.connect(environment, read_only=True, config=limits) as connection,
        pytest.raises(duckdb.OutOfMemoryException) as raised,
    ):
        connection.sql("FROM big ORDER BY x").fetchall()

    assert "make room in the temporary folder (TMPDIR), " in str(
        errors.to_sync_error(raised.value, environment, "")
    )


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: os.truncate(path, 100)])
def test_what_was_spoilt_in_the_folder_is_told(
    mart: Mart, parent: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()
    stage: Callable[..., Any] = Run.stage

    def spoilt(run: Run, table: str, rows: Any, target: Any) -> None:
        spoil(target.path)
        stage(run, table, rows, target)

    monkeypatch.setattr(Run, "stage", spoilt)

    with pytest.raises(SyncError) as raised:
        user_segments.sync()

    assert str(raised.value).startswith(f"temporary folder {parent}: ")
    assert str(raised.value).endswith("; see who changes what is in it, and run again")


def test_a_folder_that_cannot_be_made_is_told(mart: Mart, parent: Path) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    parent.rmdir()

    with pytest.raises(SyncError, match="temporary folder: No such file or directory; let TMPDIR"):
        user_segments.sync()
