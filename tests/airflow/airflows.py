"""An Airflow of the tests' own: its home, its commands, and what it knows of a DAG run."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conftest import ROOT
from fixture_types import Select
from pace import soon

from etl import postgres
from etl.syncs import SYNCS

if TYPE_CHECKING:
    from etl.postgres import Connection

DAG_ID = "searchflow_reverse_etl"
DAG_FILE = ROOT / "dags" / f"{DAG_ID}.py"
AIRFLOW = Path(os.environ.get("VENV_AIRFLOW", ROOT / ".venv-airflow")) / "bin"
USERS = 300
RUN_SECONDS = 180  # of one DAG run; 12 are usual on two idle cores

DONE, FAILED, NOT_RUN, SKIPPED = (
    ("success", 1),
    ("failed", 1),
    ("upstream_failed", 0),
    ("skipped", 1),
)
SHARD_OF = "(('x' || substr(md5(user_id), 1, 8))::bit(32)::bigint % 3)::int"


@dataclass
class Ended:
    """How a DAG run ended: its state, (state, tries) of each task instance, and what it logged."""

    state: str
    tasks: dict[str, tuple[str, int]]
    log: str

    @property
    def table(self) -> list[str]:
        """The rows of the table that `report` logged."""
        (_, table) = self.log.split("Results\n")
        rows = table.splitlines()[1:]
        return [row for row in rows if row.startswith(SYNCS)]


@dataclass
class Airflow:
    """An AIRFLOW_HOME with the DAG in it; tasks are retried after a second, not a minute."""

    home: Path
    python_path: str = ""  # what the tasks import before what is installed

    def set_up(self) -> None:
        """Make the database, and put the DAG into its folder."""
        (self.home / "dags").mkdir()
        source, minute = DAG_FILE.read_text(), "RETRY_DELAY = timedelta(minutes=1)\n"
        assert source.count(f"\n{minute}") == 1
        quick = source.replace(f"\n{minute}", "\nRETRY_DELAY = timedelta(seconds=1)\n")
        (self.home / "dags" / DAG_FILE.name).write_text(quick)
        migrated = self.run("db", "migrate")
        assert migrated.returncode == 0, migrated.stderr

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `airflow <arguments>`."""
        return subprocess.run(
            [AIRFLOW / "airflow", *arguments],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )

    def start(self, **params: Any) -> subprocess.Popen[str]:
        """Start a run of the DAG with these parameters, by `dags test`."""
        log = (self.home / "run.log").open("w")
        command = [str(AIRFLOW / "airflow"), "dags", "test", DAG_ID, "--conf", json.dumps(params)]
        return subprocess.Popen(
            command, cwd=self.home, env=self.environment, stdout=log, stderr=log, text=True
        )

    def dag_run(self, **params: Any) -> Ended:
        """Run the DAG with these parameters to its end."""
        return self.wait(self.start(**params))

    def wait(self, run: subprocess.Popen[str]) -> Ended:
        """Wait for the end of a run; one that does not come to an end is killed."""
        try:
            run.wait(timeout=RUN_SECONDS)
        finally:
            run.kill()
        return self.ended()

    def ended(self) -> Ended:
        """Tell how the last run ended."""
        (run_id, state), *_ = self.query("SELECT run_id, state FROM dag_run ORDER BY id DESC")
        found = self.query(
            "SELECT task_id, map_index, state, try_number FROM task_instance WHERE run_id = ?",
            run_id,
        )
        tasks = {
            task if index < 0 else f"{task} {index}": (state, tries)
            for task, index, state, tries in found
        }
        return Ended(state, tasks, (self.home / "run.log").read_text())

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of Airflow's own database."""
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as connection:
            return connection.execute(sql, parameters).fetchall()

    @property
    def environment(self) -> dict[str, str]:
        """Ours, less what belongs to our Python, with an Airflow of its own."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "PYTHON"))}
        return {
            **kept,
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "NO_COLOR": "1",
            "PYTHONPATH": self.python_path,
        }


def break_user(database: Connection, user_id: str) -> None:
    """Make Postgres refuse this user's row, with a detail that no log may show."""
    postgres.execute(
        database,
        f"""
        CREATE FUNCTION crm.break() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.user_id = '{user_id}' THEN
                RAISE EXCEPTION 'the row is broken' USING
                    DETAIL = 'whom it concerns: {user_id}' || chr(27) || '[2J';
            END IF;
            RETURN NEW;
        END $$
        """,
    )
    postgres.execute(
        database,
        "CREATE TRIGGER break BEFORE INSERT ON crm.user_segments"
        " FOR EACH ROW EXECUTE FUNCTION crm.break()",
    )
    database.commit()


def counts(select: Select) -> dict[str, int]:
    """Rows of the destination tables and of the ledger."""
    (row,) = select(
        "SELECT (SELECT count(*) FROM crm.user_segments) AS segments,"
        " (SELECT count(*) FROM crm.email_queue) AS mails,"
        " (SELECT count(*) FROM etl.sync_runs) AS runs"
    )
    return row


def told(ended: Ended, *rows: int) -> int:
    """How many rows the table says were inserted, or keys written, in these rows of it."""
    found = [re.search(r"([\d,]+) (inserted|written)", ended.table[row]) for row in rows]
    return sum(int(match[1].replace(",", "")) for match in found if match)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until it holds, a minute at most."""
    assert soon(condition, seconds, every=0.2)
