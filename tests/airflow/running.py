"""A running Airflow (api-server, scheduler with LocalExecutor, DAG processor) of the tests' own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflows import AIRFLOW, DAG_ID, RUN_SECONDS, Airflow, Ended, wait_for

from demo.embedded.server import free_port

_PARTS = ("api-server", "scheduler", "dag-processor")
_ENDED = ("success", "failed")


@dataclass
class Running(Airflow):
    """An Airflow whose parts run; DAG files are read again every other second."""

    settings: Mapping[str, str] = field(default_factory=dict)  # of the service

    @property
    def warehouse(self) -> Path:
        """The warehouse of its workers."""
        return self.home / "warehouse.duckdb"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the parts, wait until the API answers, stop them at the end."""
        parts = [self._start(part) for part in _PARTS]
        try:
            wait_for(self._answers, RUN_SECONDS)
            yield
        finally:
            for part in reversed(parts):
                os.killpg(part.pid, signal.SIGTERM)
            for part in parts:
                try:
                    part.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    os.killpg(part.pid, signal.SIGKILL)

    def add(self, name: str, source: str, replace: Mapping[str, str] | None = None) -> str:
        """Put a DAG file into the folder and wait until it is read; return its DAG's id."""
        for old, new in (replace or {}).items():
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        (self.home / "dags" / f"{name}.py").write_text(source)
        wait_for(lambda: name in self._dags(), RUN_SECONDS)
        return name

    def remove(self, name: str) -> None:
        """Take a DAG file away."""
        (self.home / "dags" / f"{name}.py").unlink()

    def trigger(self, dag_id: str = DAG_ID, **conf: Any) -> str:
        """Start a run with these parameters; return its id."""
        run = self.api(f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
        run_id: str = run["dag_run_id"]
        return run_id

    def states(self, run_id: str, dag_id: str = DAG_ID) -> dict[str, tuple[str | None, int]]:
        """(state, tries) of each task instance."""
        found = self.api(f"{self._run(run_id, dag_id)}/taskInstances")["task_instances"]
        return {
            ti["task_id"] if ti["map_index"] < 0 else f"{ti['task_id']} {ti['map_index']}": (
                ti["state"],
                ti["try_number"],
            )
            for ti in found
        }

    def reaches(self, state: str, run_id: str, task: str, dag_id: str = DAG_ID) -> None:
        """Wait until a task instance is in a state."""
        wait_for(lambda: self.states(run_id, dag_id).get(task, ("",))[0] == state, RUN_SECONDS)

    def ended(self, run_id: str = "", dag_id: str = DAG_ID) -> Ended:
        """Wait for the end of a run, and tell how it ended."""
        run = self._run(run_id, dag_id)
        wait_for(lambda: self.api(run)["state"] in _ENDED, RUN_SECONDS)
        states: Any = self.states(run_id, dag_id)
        return Ended(self.api(run)["state"], states, self.log(run_id, dag_id))

    def dag_run(self, **conf: Any) -> Ended:
        """Run the DAG with these parameters to its end."""
        return self.ended(self.trigger(**conf))

    def log(self, run_id: str, dag_id: str = DAG_ID, task: str = "*") -> str:
        """What the tasks of a run logged, as people read it: messages and tracebacks."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
        files = sorted(folder.glob(f"task_id={task}/**/*.log"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return "\n".join(f"{line['event']} {line.get('error_detail', '')}" for line in lines)

    def import_error(self, name: str) -> str:
        """Why a DAG file cannot be read, as far as that is known yet."""
        errors = self.api("importErrors")["import_errors"]
        told = [one["stack_trace"] for one in errors if one["filename"] == f"{name}.py"]
        return "".join(told)

    def mark(
        self, state: str, run_id: str, task: str, map_index: int, dag_id: str = DAG_ID
    ) -> None:
        """Do what a person does by "Mark success" or "Mark failed"."""
        path = f"{self._run(run_id, dag_id)}/taskInstances/{task}"
        if map_index >= 0:
            path += f"/{map_index}"
        self.api(path, {"new_state": state}, "PATCH")

    def clear(self, run_id: str, *, only_failed: bool = True, **which: Any) -> None:
        """Do what a person does by "Clear"."""
        told = {"dag_run_id": run_id, "only_failed": only_failed, "dry_run": False, **which}
        self.api(f"dags/{DAG_ID}/clearTaskInstances", {"reset_dag_runs": True, **told})

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Ask the REST API."""
        request = urllib.request.Request(
            f"{self._url}/api/v2/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode())
            raise
        return json.loads(text) if text else None

    @property
    def environment(self) -> dict[str, str]:
        """Of its parts, and so of its tasks."""
        return {
            **super().environment,
            **self.settings,
            "DUCKDB_PATH": str(self.warehouse),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self._url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self._port),
            "AIRFLOW__API__SECRET_KEY": self._secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": self._secret,
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        }

    def _start(self, part: str) -> subprocess.Popen[bytes]:
        log = (self.home / f"{part}.log").open("w")
        return subprocess.Popen(
            [AIRFLOW / "airflow", part],
            cwd=self.home,
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        try:
            return DAG_ID in self._dags()
        except (urllib.error.URLError, ConnectionError):
            return False

    def _dags(self) -> list[str]:
        return [dag["dag_id"] for dag in self.api("dags")["dags"]]

    def _run(self, run_id: str, dag_id: str) -> str:
        return f"dags/{dag_id}/dagRuns/{quote(run_id)}"

    @cached_property
    def _port(self) -> int:
        return free_port(range(10_000, 17_000))

    @cached_property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @cached_property
    def _secret(self) -> str:
        return secrets.token_hex(32)

    @cached_property
    def _token(self) -> str:
        with urllib.request.urlopen(f"{self._url}/auth/token", timeout=60) as reply:
            token: str = json.load(reply)["access_token"]
            return token
