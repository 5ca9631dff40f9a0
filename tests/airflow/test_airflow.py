"""The DAG in a real Airflow, on real servers: `make test-airflow`.

Airflow and the package as a wheel are in .venv-airflow; the tests and the servers are not.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import redis
from conftest import ROOT
from pace import crowding

from demo import sample
from demo.embedded import Servers
from etl import postgres

if TYPE_CHECKING:
    from etl.postgres import Connection

DAG_ID = "searchflow_reverse_etl"
DAG_FILE = ROOT / "dags" / f"{DAG_ID}.py"
AIRFLOW = Path(os.environ.get("VENV_AIRFLOW", ROOT / ".venv-airflow")) / "bin"
USERS = 300
RUN_SECONDS = 180  # of one DAG run; 12 are usual on two idle cores

pytestmark = pytest.mark.timeout(2 * RUN_SECONDS + 60)
SYNCS = ("user_segments", "email_triggers", "recommendations")
DONE, FAILED, NOT_RUN = ("success", 1), ("failed", 1), ("upstream_failed", 0)

Select = Callable[..., list[dict[str, Any]]]


@dataclass
class Ended:
    """How a DAG run ended: its state, (state, tries) of each task instance, and what it logged."""

    state: str
    tasks: dict[str, tuple[str, int]]
    log: str

    @property
    def table(self) -> list[str]:
        """The rows of the table that the last task logged."""
        (_, table) = self.log.split("Results\n")
        rows = table.splitlines()[1:]
        return [row for row in rows if row.startswith(SYNCS)]


@dataclass
class Airflow:
    """An AIRFLOW_HOME with the DAG in it; tasks are retried after a second, not a minute."""

    home: Path

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
        """Start a run of the DAG with these parameters."""
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
        }


@pytest.fixture(scope="module")
def empty_airflow() -> Iterator[Airflow]:
    with tempfile.TemporaryDirectory(prefix="etl-airflow-") as home:
        airflow = Airflow(Path(home))
        (airflow.home / "dags").mkdir()
        source, minute = DAG_FILE.read_text(), "RETRY_DELAY = timedelta(minutes=1)\n"
        assert source.count(f"\n{minute}") == 1
        soon = source.replace(f"\n{minute}", "\nRETRY_DELAY = timedelta(seconds=1)\n")
        (airflow.home / "dags" / DAG_FILE.name).write_text(soon)
        migrated = airflow.run("db", "migrate")
        assert migrated.returncode == 0, migrated.stderr
        yield airflow


@pytest.fixture
def airflow(empty_airflow: Airflow, environment: Path) -> Airflow:
    """Airflow beside empty servers and a warehouse of a few users."""
    sample.build(environment, USERS)
    return empty_airflow


def test_a_run_carries_every_mart_to_its_destination(
    airflow: Airflow, select: Select, keys: redis.Redis
) -> None:
    ended = airflow.dag_run()

    assert ended.state == "success", ended.log
    mapped = dict.fromkeys([f"{sync} 0" for sync in SYNCS], DONE)
    assert ended.tasks == {"shards": DONE, **mapped, "report": DONE}
    assert len(ended.table) == 3
    assert told(ended, 0) == USERS
    assert counts(select) == {"segments": USERS, "mails": told(ended, 1), "runs": 3}
    assert keys.dbsize() == told(ended, 2) > 250
    runs = select("SELECT DISTINCT started_by, forced FROM etl.sync_runs")
    assert [run["forced"] for run in runs] == [False]
    assert runs[0]["started_by"].startswith("airflow manual__")


def test_with_shards_each_is_a_task_of_its_own(
    airflow: Airflow, select: Select, keys: redis.Redis
) -> None:
    ended = airflow.dag_run(shards=3)

    assert ended.state == "success", ended.log
    mapped = [f"{sync} {shard}" for sync in SYNCS for shard in range(3)]
    assert ended.tasks == dict.fromkeys(["shards", *mapped, "report"], DONE)
    assert len(ended.table) == 9
    assert counts(select) == {"segments": USERS, "mails": told(ended, 3, 4, 5), "runs": 9}
    assert keys.dbsize() == told(ended, 6, 7, 8) > 250
    assert select("SELECT DISTINCT shard, shards FROM etl.sync_runs ORDER BY shard") == [
        {"shard": shard, "shards": 3} for shard in range(3)
    ]


def test_a_failing_shard_fails_the_run_and_stops_nobody_else(
    airflow: Airflow, database: Connection, select: Select
) -> None:
    break_user(database, "user_000005")

    ended = airflow.dag_run(shards=3)

    assert ended.state == "failed", ended.log
    broken = select(f"SELECT {SHARD_OF} AS shard FROM (VALUES ('user_000005')) AS v (user_id)")
    index = broken[0]["shard"]
    assert ended.tasks[f"user_segments {index}"] == ("failed", 4)  # one try and three retries
    others = [f"user_segments {other}" for other in range(3) if other != index]
    reached = [f"recommendations {shard}" for shard in range(3)]
    assert {name: ended.tasks[name] for name in (*others, *reached)} == dict.fromkeys(
        [*others, *reached], DONE
    )
    assert {ended.tasks.get(f"email_triggers {shard}", NOT_RUN) for shard in range(3)} == {NOT_RUN}
    assert ended.tasks["report"] == FAILED  # and it is not retried
    loaded = select(f"SELECT DISTINCT {SHARD_OF} AS shard FROM crm.user_segments")
    assert {row["shard"] for row in loaded} == {0, 1, 2} - {index}
    assert [row.split()[4] for row in ended.table if row.startswith("user_segments")].count(
        "failed"
    ) == 1
    assert [row for row in ended.table if " no result " in row]
    assert "the function crm.break raised an error" in ended.log
    assert "whom it concerns" not in ended.log  # the driver's own error would say


def test_a_lost_server_is_retried(
    airflow: Airflow, servers: Servers, request: pytest.FixtureRequest
) -> None:
    servers.stop_postgres()
    run = airflow.start()
    try:
        wait_for(lambda: ("user_segments 0", "up_for_retry") in states(airflow))
    finally:
        servers.start_postgres()
    ended = airflow.wait(run)

    assert ended.state == "success", ended.log
    assert ended.tasks["user_segments 0"][0] == "success"
    assert ended.tasks["user_segments 0"][1] > 1
    assert ended.tasks["recommendations 0"] == DONE  # it can do without Postgres
    assert counts(request.getfixturevalue("select"))["segments"] == USERS


def test_a_refusal_fails_at_once_and_force_goes_past_it(
    airflow: Airflow, environment: Path, select: Select
) -> None:
    with duckdb.connect(str(environment)) as connection:
        connection.execute("DELETE FROM main_marketing.mart_user_segments")

    ended = airflow.dag_run()

    assert ended.state == "failed", ended.log
    assert ended.tasks == {
        "shards": DONE,
        "user_segments 0": FAILED,
        "email_triggers": NOT_RUN,
        "recommendations 0": DONE,
        "report": FAILED,
    }
    assert "empty: the mart has no rows. Look at dbt" in ended.table[0]
    assert counts(select)["segments"] == 0

    assert airflow.dag_run(force=True).state == "success"
    forced = "SELECT sync, status FROM etl.sync_runs WHERE forced ORDER BY sync"
    assert [tuple(row.values()) for row in select(forced)] == [(s, "ok") for s in sorted(SYNCS)]


def test_a_wrong_setting_fails_at_once(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch, select: Select
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GUARD_MAX_AGE_HOURS", "two days")
        ended = airflow.dag_run()

    assert ended.state == "failed", ended.log
    assert ended.tasks["user_segments 0"] == ended.tasks["recommendations 0"] == FAILED
    assert "GUARD_MAX_AGE_HOURS: 'two days' is not a number" in ended.table[0]
    assert counts(select) == {"segments": 0, "mails": 0, "runs": 0}


def test_a_dry_run_changes_nothing(airflow: Airflow, select: Select, keys: redis.Redis) -> None:
    ended = airflow.dag_run(dry_run=True, shards=2)

    assert ended.state == "success", ended.log
    assert len([row for row in ended.table if "(dry run)" in row and "inserted" in row]) == 6
    assert counts(select) == {"segments": 0, "mails": 0, "runs": 0}
    assert keys.dbsize() == 0
    kept = str(airflow.query("SELECT value FROM xcom"))
    assert "outcomes" in kept
    assert "user_0" not in kept  # no id of a user: what a task returns stays for weeks


def test_a_plain_operator_logs_no_value_of_a_row(airflow: Airflow, database: Connection) -> None:
    break_user(database, "user_000005")
    plain = airflow.home / "dags" / "plain.py"
    plain.write_text(PLAIN)
    try:
        ended = airflow.run("dags", "test", "plain")
    finally:
        plain.unlink()

    told = ended.stdout + ended.stderr
    assert "SyncError" in told
    assert "the function crm.break raised an error" in told
    assert "the row is broken" not in told  # which may name a user
    assert "whom it concerns" not in told
    assert "user_000005" not in told
    assert "\x1b[2J" not in told


PLAIN = """
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from etl import user_segments

with DAG("plain"):
    PythonOperator(task_id="plain", python_callable=user_segments.sync)
"""


@pytest.mark.parametrize("params", [{"dry_run": "False"}, {"shards": 0}])
def test_a_wrong_parameter_runs_nothing(
    airflow: Airflow, select: Select, params: dict[str, Any]
) -> None:
    tried = airflow.run("dags", "test", DAG_ID, "--conf", json.dumps(params))

    assert tried.returncode != 0
    assert "ParamValidationError" in tried.stdout + tried.stderr
    assert counts(select) == {"segments": 0, "mails": 0, "runs": 0}


def test_of_two_files_only_the_broken_one_has_import_errors(empty_airflow: Airflow) -> None:
    broken = empty_airflow.home / "dags" / "broken.py"
    broken.write_text("from airflow.sdk import DAG, Nothing\n")
    try:
        listed = empty_airflow.run("dags", "list-import-errors", "--local", "--output", "json")
    finally:
        broken.unlink()

    errors = json.loads(listed.stdout[listed.stdout.index("[{") :])
    assert [Path(error["filepath"]).name for error in errors] == ["broken.py"]


def test_parsing_is_light_and_gives_the_promised_dag(empty_airflow: Airflow) -> None:
    parsed = subprocess.run(
        [AIRFLOW / "python", "-c", PARSE, DAG_FILE],
        env=empty_airflow.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    dag = json.loads(parsed.stdout.splitlines()[-1])
    seconds = dag.pop("seconds")
    assert seconds < 1 or seconds < crowding()
    assert dag == {
        "heavy": [],
        "schedule": "0 */6 * * *",
        "catchup": False,
        "max_active_runs": 1,
        "params": {"dry_run": False, "force": False, "shards": 1},
        "documented": ["dag", "email_triggers", "recommendations", "report", "shards", *SYNCS[:1]],
        "policies": [[3, 60.0, True, 1800.0]],
        "downstream": {
            "shards": ["email_triggers", "recommendations", "user_segments"],
            "user_segments": ["email_triggers", "report"],
            "email_triggers": ["report"],
            "recommendations": ["report"],
            "report": [],
        },
    }


PARSE = """
import json, runpy, sys, time
from airflow.sdk import DAG, Param
from airflow.providers.standard.operators.python import PythonOperator
before = set(sys.modules)
begun = time.perf_counter()
dag = runpy.run_path(sys.argv[1])["dag"]
seconds = time.perf_counter() - begun
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
tasks = sorted(dag.tasks, key=lambda task: task.task_id)
policies = {
    (t.retries, t.retry_delay.total_seconds(), bool(t.retry_exponential_backoff),
     t.execution_timeout.total_seconds()) for t in tasks
}
print(json.dumps({
    "seconds": seconds,
    "heavy": sorted(roots & {"etl", "polars", "pyarrow", "duckdb", "redis", "dataframely"}),
    "schedule": dag.schedule, "catchup": dag.catchup, "max_active_runs": dag.max_active_runs,
    "params": dict(dag.params),
    "documented": ["dag"] * bool(dag.doc_md) + [t.task_id for t in tasks if t.doc_md],
    "policies": sorted(policies),
    "downstream": {t.task_id: sorted(t.downstream_task_ids) for t in tasks},
}))
"""

SHARD_OF = "(('x' || substr(md5(user_id), 1, 8))::bit(32)::bigint % 3)::int"


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


def states(airflow: Airflow) -> set[tuple[str, str]]:
    """Task instances and their states in the run that is going on."""
    return {
        (f"{task} {index}", state)
        for task, index, state in airflow.query(
            "SELECT task_id, map_index, state FROM task_instance"
            " WHERE run_id = (SELECT run_id FROM dag_run WHERE state = 'running')"
        )
    }


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it holds, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
