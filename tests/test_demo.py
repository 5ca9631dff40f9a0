"""The demo: what it tells, with settings of its own whatever the shell says."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from demo import story
from demo.embedded import settings_in
from etl import syncs
from etl.plumbing import queries
from etl.settings import Settings

# No value of the service's that parses, or that could be meant for the demo's servers.
OURS = {setting.name.upper(): "of-the-shell" for setting in fields(Settings)}
LIBPQS = {
    "PGCLIENTENCODING": "LATIN1",
    "PGHOSTADDR": "192.0.2.1",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGPASSFILE": "/nonexistent",
    "PGPASSWORD": "of-the-shell",
    "PGSERVICE": "of-the-shell",
    "PGSSLMODE": "verify-full",
}
SHELL = {**OURS, **LIBPQS, "LOG_FORMAT": "of-the-shell", "ETL_DEBUG": "1"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Hand out a folder that the servers' user can enter; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory(prefix="etl-demo-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.slow
def test_the_demo_tells_the_same_story_whatever_the_shell_sets(folder: Path) -> None:
    environment = {**os.environ, **SHELL, "FORCE_COLOR": "1", "PYTHONPATH": str(ROOT)}

    first, again = (run(folder, environment) for _ in range(2))

    for told in (first, again):
        assert len(told) <= 57 + len(syncs.SYNCS)
        assert max(map(len, told)) <= 80
    changed = [line for line in first if " -> " in line]
    assert [line.split()[0] for line in changed[1:]] == [  # after the heads
        "user_001398",
        "user_006786",
        "user_000005",
    ]
    assert "user_010001|{lifetime_value:too_small}" in first
    assert [line for line in first if "refused: shrunk" in line]
    assert [line for line in again if "10,000 unchanged, 3 rejected" in line]
    assert not [line for line in again if "inserted" in line or "updated" in line]
    assert (folder / ".demo" / "status.html").exists()


@pytest.mark.parametrize("file", ["schema.sql", "syncs.py"])
def test_a_story_of_other_tables_or_syncs_is_told_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    told, files = tmp_path / "told", [tmp_path / "schema.sql", tmp_path / "syncs.py"]
    monkeypatch.setattr(story, "FOLDER", tmp_path)
    monkeypatch.setattr(queries, "ROOT", tmp_path)
    monkeypatch.setattr(syncs, "__file__", str(files[1]))
    now = time.time()
    for path in files:
        path.touch()
        os.utime(path, (now, now - 60))
    told.write_text("2026-05-01T00:00:00+00:00")
    os.utime(told, (now, now - 30))
    assert story._epoch() is not None

    os.utime(tmp_path / file, (now, now))

    assert story._epoch() is None


@pytest.mark.slow
def test_the_commands_that_demo_shell_prints_are_there_and_ctrl_c_ends_it_with_0(
    folder: Path,
) -> None:
    environment = {**os.environ, **SHELL, "PYTHONPATH": str(ROOT)}
    (folder / "Makefile").write_text(f"all:\n\t@{sys.executable} -m demo --keep\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("make", ["make"], environment)
    shown = ""
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        while "every other command" not in shown:
            shown += screen.read(4096).decode(errors="replace")
        ran = subprocess.run(
            ["sh", "-ec", "\n".join(shown_commands(shown))],
            input="GET reco:user_000001\n",
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        time.sleep(0.5)
        screen.write(b"\x03")
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while screen.read(4096):
                pass
    _, status = os.waitpid(pid, 0)

    assert ran.returncode == 0, ran.stderr
    assert '"destinations"' in ran.stdout
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.slow
def test_the_notebooks_demo_runs_whatever_the_shell_sets(folder: Path) -> None:
    cells = json.loads((ROOT / "notebooks" / "explore.ipynb").read_text())["cells"]
    demo = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, **SHELL, "PYTHONPATH": str(ROOT)}
    del environment["DUCKDB_PATH"]  # with it the notebook looks at that warehouse
    ran = subprocess.run(
        [sys.executable, "-c", demo],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


def test_every_setting_of_the_service_and_of_libpq_is_known_as_one() -> None:
    assert settings_in([*SHELL, "PATH", "HOME", "TERM"]) == list(SHELL)


def run(folder: Path, environment: dict[str, str]) -> list[str]:
    """The lines that `make demo` prints."""
    ran = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def shown_commands(screen: str) -> list[str]:
    """The command lines that were printed, psql with something to ask."""
    lines = [line.strip() for line in screen.splitlines() if line.startswith("  ")]
    commands = [line.partition("  #")[0].rstrip() for line in lines if "  # " in line]
    assert commands == [". .demo/env", "psql", "python -m demo.redis_shell", "python -m etl.status"]
    ask = "psql \"${DATABASE_URL:?}\" -Atc 'SELECT count(*) FROM crm.user_segments' < /dev/null"
    return [ask if line == "psql" else line for line in commands]
