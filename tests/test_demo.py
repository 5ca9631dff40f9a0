"""The demo has its own settings, whatever the shell says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from demo.embedded import settings_in
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
def test_the_demo_and_the_lines_it_prints_run_whatever_the_shell_sets(folder: Path) -> None:
    environment = {**os.environ, **SHELL, "PYTHONPATH": str(ROOT)}
    demo = subprocess.Popen(
        [sys.executable, "-m", "demo", "--keep"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    output = []
    for line in demo.stdout:  # until it waits, or ends
        output.append(line)
        if line.endswith("-m etl\n"):
            break
    try:
        printed = [line for line in output if "psql" in line or line.endswith("-m etl\n")]
        assert len(printed) == 2, "".join(output)
        for line in printed:
            ran = in_another_terminal(line, folder, environment)
            assert ran.returncode == 0, ran.stderr
    finally:
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=60)
    assert rest == "demo: stopped by SIGINT; the servers are down\n"


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


def in_another_terminal(
    line: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", line.replace(".venv/bin/python", sys.executable)],
        input="SELECT count(*) FROM crm.user_segments;",
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
