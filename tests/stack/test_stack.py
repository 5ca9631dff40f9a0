"""The Compose stack as it is deployed, on a Docker engine: `make test-stack`.

It builds the image and starts containers under a project name of its own; POSTGRES_IMAGE,
REDIS_IMAGE and PYTHON_IMAGE name other base images, where the official ones cannot be had.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import ROOT
from pace import soon, within

from demo import sample

pytestmark = pytest.mark.timeout(900)

PROJECT = f"searchflow-test-{os.getpid()}"
USERS = 2_000


@dataclass(frozen=True)
class Stack:
    """A copy of the project, so that its secrets and its warehouse are nobody else's."""

    folder: Path

    @property
    def warehouse(self) -> Path:
        """The file that the containers read."""
        return self.folder / "data" / "searchflow.duckdb"

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Compose on the copy."""
        return self.run(*_COMPOSE, *arguments, **options)

    def etl(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `python -m etl <arguments>` as docs/deployment.md says."""
        run = ["run", "--rm", "-T", *options.pop("flags", [])]
        return self.compose(*run, "reverse-etl", "python", "-m", "etl", *arguments, **options)

    def sql(self, query: str) -> str:
        """Ask the database, as the owner of the tables."""
        psql = ["psql", "-U", "postgres", "-d", "searchflow", "-At", "-c", query]
        return self.compose("exec", "-T", "postgres", *psql, check=True).stdout.strip()

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, and return what it printed."""
        given: dict[str, Any] = {
            "capture_output": True,
            "text": True,
            "env": self.environment(),
            **options,
        }
        check = given.pop("check", False)
        return subprocess.run(command, cwd=self.folder, check=check, **given)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of this shell, with a project of our own."""
        return {**os.environ, "COMPOSE_PROJECT_NAME": PROJECT, **more}


_COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="etl-stack-") as name:
        folder = Path(name) / "project"
        shutil.copytree(ROOT, folder, ignore=_ignored, ignore_dangling_symlinks=True)
        for path in (Path(name), folder):
            path.chmod(0o755)
        stack = Stack(folder)
        stack.warehouse.parent.mkdir()
        sample.build(stack.warehouse, USERS)
        stack.warehouse.chmod(0o644)
        try:
            up = stack.run("make", "up", f"COMPOSE={shlex.join(_COMPOSE)}")
            assert up.returncode == 0, up.stdout + up.stderr
            yield stack
        finally:
            down = stack.compose("down", "--volumes", "--timeout", "10")
    assert down.returncode == 0, down.stderr
    left = ["docker", "ps", "--all", "--quiet", "--filter", f"name={PROJECT}"]
    assert subprocess.run(left, capture_output=True, text=True, check=True).stdout == ""


def test_every_sync_runs_in_a_container_of_its_own(stack: Stack) -> None:
    finished = stack.etl("--sync", "all", "--json")

    assert finished.returncode == 0, finished.stderr
    results = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [one["status"] for one in results] == ["ok"] * 3
    assert stack.sql("SELECT count(*) FROM crm.user_segments") == str(results[0]["inserted"])
    assert results[2]["written"] > 0


def test_the_service_that_waits_takes_a_sync_as_well(stack: Stack) -> None:
    command = ["python", "-m", "etl", "--sync", "user_segments", "--json"]

    finished = stack.compose("exec", "-T", "reverse-etl", *command)

    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["unchanged"] > 0


def test_a_run_that_is_stopped_is_rolled_back_and_recorded(stack: Stack) -> None:
    name = f"{PROJECT}-stopped"
    stack.sql("UPDATE crm.user_segments SET total_searches = total_searches + 1")
    before = stack.sql("SELECT sum(total_searches) FROM crm.user_segments")
    holder = "BEGIN; LOCK TABLE crm.user_segments IN SHARE MODE; SELECT pg_sleep(60)"
    psql = ["psql", "-U", "postgres", "-d", "searchflow", "-c", holder]
    run = [*_COMPOSE, "run", "--rm", "-T", "--name", name, "reverse-etl"]
    streams: dict[str, Any] = {"cwd": stack.folder, "env": stack.environment(), "text": True}

    with (
        subprocess.Popen([*_COMPOSE, "exec", "-T", "postgres", *psql], **streams) as lock,
        subprocess.Popen(
            [*run, "python", "-m", "etl", "--sync", "user_segments", "--force"],
            stderr=subprocess.PIPE,
            **streams,
        ) as sync,
    ):
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        assert soon(lambda: stack.sql(waiting) != "0", 60)
        with within(10):
            stack.run("docker", "stop", "--time", "20", name, check=True)
        _, said = sync.communicate(timeout=60)
        holders = "FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()"
        stack.sql(f"SELECT pg_terminate_backend(pid) {holders}")
        lock.wait(timeout=60)

    assert sync.returncode == 143, said
    last = "SELECT status FROM etl.sync_runs ORDER BY started_at DESC LIMIT 1"
    assert stack.sql(last) == "cancelled"
    assert stack.sql("SELECT sum(total_searches) FROM crm.user_segments") == before


def test_a_writer_outside_of_the_containers_is_told_as_one(stack: Stack) -> None:
    with duckdb.connect(stack.warehouse):
        finished = stack.etl("--sync", "user_segments", flags=["-e", "WAREHOUSE_WAIT=0"])

    assert finished.returncode == 1
    assert "locked by a writer, a process of another machine or container" in finished.stderr


def test_own_queries_are_read_from_the_folder_that_is_named(stack: Stack) -> None:
    own = stack.folder / "own"
    own.mkdir(mode=0o755)
    (own / "user_segments.sql").write_text("SELECT no_such_column FROM mart_user_segments\n")
    (own / "user_segments.sql").chmod(0o644)

    finished = stack.etl("--sync", "user_segments", env=stack.environment(ETL_SQL_DIR=str(own)))

    assert finished.returncode == 1
    assert "no_such_column" in finished.stderr


def test_the_data_outlive_the_containers(stack: Stack) -> None:
    before = stack.sql("SELECT count(*) FROM crm.user_segments")
    begun = time.monotonic()

    assert stack.run("make", "down", f"COMPOSE={shlex.join(_COMPOSE)}").returncode == 0
    assert stack.run("make", "up", f"COMPOSE={shlex.join(_COMPOSE)}").returncode == 0

    assert time.monotonic() - begun < 300
    assert stack.sql("SELECT count(*) FROM crm.user_segments") == before


def _ignored(folder: str, names: list[str]) -> list[str]:
    """What is no part of the project: environments, secrets, data."""
    top = Path(folder) == ROOT
    hidden = [name for name in names if name.startswith((".venv", ".git", ".demo", "__pycache__"))]
    return (
        hidden
        + [name for name in names if top and name in ("data", "dist")]
        + [name for name in names if Path(folder) == ROOT / "secrets" and name.endswith(".txt")]
    )
