"""The DAG, and what docs/airflow.md says, in a running Airflow: scheduler and LocalExecutor."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import pytest
import redis
from airflows import (
    DAG_FILE,
    DAG_ID,
    DONE,
    FAILED,
    NOT_RUN,
    RUN_SECONDS,
    SKIPPED,
    USERS,
    break_user,
    counts,
    told,
    wait_for,
)
from conftest import ROOT
from destinations import as_superuser
from fixture_types import Select
from running import Running
from smtp_sink import Mailbox

from demo import sample
from demo.embedded import Servers
from etl import postgres
from etl.syncs import SYNCS

if TYPE_CHECKING:
    from etl.postgres import Connection

pytestmark = pytest.mark.timeout(2 * RUN_SECONDS + 60)

RUNS = "SELECT sync, shard, status, error FROM etl.sync_runs ORDER BY started_at"


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        yield mailbox


@pytest.fixture(scope="module")
def running(servers: Servers, mailbox: Mailbox) -> Iterator[Running]:
    settings = {**servers.environment, "RETRY_SECONDS": "0", "WAREHOUSE_WAIT": "0"}
    settings["AIRFLOW_CONN_SMTP_DEFAULT"] = mailbox.connection
    with tempfile.TemporaryDirectory(prefix="etl-airflow-", ignore_cleanup_errors=True) as home:
        airflow = Running(Path(home), settings=settings)
        airflow.set_up()
        dag = airflow.home / "dags" / DAG_FILE.name
        dag.write_text(replaced(dag.read_text(), CRON, "schedule=None"))
        with airflow.running():
            yield airflow


@pytest.fixture
def airflow(running: Running, environment: Path) -> Running:
    """A running Airflow beside empty servers and a warehouse of a few users."""
    sample.build(running.warehouse, USERS)
    return running


def test_an_unknown_parameter_is_refused_before_anything_is_done(
    airflow: Running, select: Select
) -> None:
    ended = airflow.dag_run(dryrun=True)

    assert ended.state == "failed"
    assert ended.tasks == {
        "shards": FAILED,
        **dict.fromkeys([*SYNCS, "publish"], NOT_RUN),
        "report": FAILED,
    }
    assert "unknown parameters: dryrun; known are dry_run, force, shards" in ended.log
    assert counts(select) == {"segments": 0, "mails": 0, "runs": 0}


def test_a_task_that_is_marked_failed_is_rolled_back_at_once(
    airflow: Running, database: Connection, select: Select
) -> None:
    with locked(database):
        run = airflow.trigger(shards=2)
        wait_for(lambda: waiting(database) == 2, RUN_SECONDS)
        airflow.mark("failed", run, "user_segments", 1)
        wait_for(lambda: waiting(database) == 1)
    ended = airflow.ended(run)

    assert ended.tasks["user_segments 0"] == DONE
    assert ended.tasks["user_segments 1"] == FAILED
    runs = [tuple(row.values()) for row in select(RUNS) if row["sync"] == "user_segments"]
    assert sorted(runs) == [
        ("user_segments", 0, "ok", None),
        ("user_segments", 1, "cancelled", "cancelled by Airflow"),
    ]
    assert 0 < counts(select)["segments"] < USERS
    assert ended.tasks["report"] == FAILED
    assert "cancelled by Airflow" in ended.table[1]


def drained(airflow: Running, run: str) -> None:
    """SIGTERM to the process that runs the task, as Kubernetes' is handed on to it."""
    pid = "SELECT pid FROM task_instance WHERE run_id = ? AND task_id = 'user_segments'"
    os.kill(airflow.query(pid, run)[0][0], signal.SIGTERM)


def cleared(airflow: Running, run: str) -> None:
    """What a person does by "Clear task"."""
    airflow.clear(run, only_failed=False, task_ids=["user_segments"])


@pytest.mark.parametrize("stop", [drained, cleared])
def test_a_task_that_is_to_run_again_is_rolled_back_first(
    airflow: Running,
    database: Connection,
    select: Select,
    stop: Callable[[Running, str], None],
) -> None:
    with locked(database):
        run = airflow.trigger()
        wait_for(lambda: waiting(database) == 1, RUN_SECONDS)
        stop(airflow, run)
        wait_for(lambda: waiting(database) == 0)
    ended = airflow.ended(run)

    assert ended.state == "success"
    assert ended.tasks["user_segments 0"] == ("success", 2)
    status = [row["status"] for row in select(RUNS) if row["sync"] == "user_segments"]
    assert status == ["cancelled", "ok"]


def test_a_task_of_an_own_dag_is_rolled_back_at_once_too(
    airflow: Running, database: Connection, select: Select
) -> None:
    own = airflow.add("stoppable", block("StoppableOperator") + OWN)
    with locked(database):
        run = airflow.trigger(own)
        wait_for(lambda: waiting(database) == 1, RUN_SECONDS)
        airflow.mark("failed", run, "segments", -1, own)
        wait_for(lambda: waiting(database) == 0)
    airflow.remove(own)

    wait_for(lambda: [row["error"] for row in select(RUNS)] == ["cancelled by Airflow"])


def test_what_may_pass_is_retried_and_what_may_not_is_not(
    airflow: Running, servers: Servers, request: pytest.FixtureRequest
) -> None:
    own = airflow.add("readme", README + indent(block("SyncOperator", "README.md"), "    "))
    servers.stop_postgres()
    try:
        run, own_run = airflow.trigger(), airflow.trigger(own)
        airflow.reaches("up_for_retry", run, "user_segments 0")
        for task in ("segments", "plain"):
            airflow.reaches("up_for_retry", own_run, task, own)
    finally:
        servers.start_postgres()

    ended = airflow.ended(run)
    assert ended.state == "success"
    assert ended.tasks["user_segments 0"][1] > 1
    assert ended.tasks["recommendations 0"] == DONE  # it can do without Postgres
    assert airflow.ended(own_run, own).state == "success"
    assert counts(request.getfixturevalue("select"))["segments"] == USERS

    database = request.getfixturevalue("database")
    postgres.execute(database, "TRUNCATE crm.user_segments")
    break_user(database, "user_000005")
    for dag_id, tasks in ((DAG_ID, ["user_segments 0"]), (own, ["segments", "plain"])):
        ended = airflow.ended(airflow.trigger(dag_id), dag_id)
        assert [ended.tasks[task] for task in tasks] == [FAILED] * len(tasks)  # at the first try
        assert ended.log.count("the function crm.break raised an error") >= len(tasks)
        no_row_is_told(ended.log)
    airflow.remove(own)


def test_connections_and_the_variable_are_used_where_they_exist(
    airflow: Running, servers: Servers, keys: redis.Redis, select: Select, tmp_path: Path
) -> None:
    sample.build(tmp_path / "other.duckdb", 100)
    who = "ALTER TABLE crm.user_segments ADD COLUMN who text DEFAULT session_user"
    as_superuser(servers, "CREATE ROLE via LOGIN PASSWORD 'p-of-via' IN ROLE airflow", who)
    with keeping(airflow, servers, tmp_path / "other.duckdb"):
        ended = airflow.dag_run()

    assert ended.state == "success", ended.log
    rows = select("SELECT who, count(*) AS rows FROM crm.user_segments GROUP BY who")
    assert rows == [{"who": "via", "rows": 100}]
    as_superuser(servers, "DROP ROLE via")
    assert keys.dbsize() == 0  # they are in another database of Redis
    with redis.Redis(port=servers.redis_port, db=1) as other:
        assert other.dbsize() == told(ended, 2)
        other.flushdb()
    assert 'postgres="connection searchflow_postgres"' in ended.log
    assert 'redis="connection searchflow_redis"' in ended.log
    assert 'warehouse="variable searchflow_duckdb_path"' in ended.log


def test_a_password_of_a_connection_is_not_told_and_not_tried_twice(airflow: Running) -> None:
    wrong = {
        "connection_id": "searchflow_postgres",
        "conn_type": "postgres",
        "host": os.environ["POSTGRES_HOST"],
        "port": int(os.environ["POSTGRES_PORT"]),
        "schema": "searchflow",
        "login": "airflow",
        "password": "not-the-right-one-1",
    }
    airflow.api("connections", wrong)
    try:
        ended = airflow.dag_run()
    finally:
        airflow.api("connections/searchflow_postgres", method="DELETE")

    assert ended.tasks["user_segments 0"] == FAILED
    assert "password authentication failed" in ended.log
    assert "not-the-right-one-1" not in ended.log


def test_an_asset_starts_its_consumer_once_after_a_real_run_and_never_after_a_dry_one(
    airflow: Running,
) -> None:
    consumer = airflow.add("searchflow_consumer", block("searchflow_consumer"))

    assert airflow.dag_run(dry_run=True).tasks["publish"] == SKIPPED
    assert airflow.dag_run().tasks["publish"] == DONE
    runs = f"dags/{consumer}/dagRuns"
    wait_for(lambda: airflow.api(runs)["total_entries"] > 0, RUN_SECONDS)

    (run,) = airflow.api(runs)["dag_runs"]
    assert run["run_type"] == "asset_triggered"
    airflow.ended(run["dag_run_id"], consumer)  # before its start Airflow tells of no event
    events = airflow.api("assets/events")["asset_events"]
    assert sorted(event["name"] for event in events if event["source_task_id"]) == sorted(
        ["searchflow/crm/user_segments", "searchflow/crm/email_queue", "searchflow/reco"]
        * (len(events) // 3)
    )
    airflow.remove(consumer)


def test_report_takes_the_word_of_whoever_marks_a_task_as_success(
    airflow: Running, database: Connection
) -> None:
    break_user(database, "user_000005")
    run = airflow.trigger()
    assert airflow.ended(run).state == "failed"

    airflow.mark("success", run, "user_segments", 0)
    airflow.clear(run)
    airflow.reaches("success", run, "report")
    log = airflow.log(run, task="report")

    assert airflow.ended(run).state == "success"
    assert "marked success" in log


def test_somebody_is_told_of_a_run_that_is_late_and_of_one_that_fails(
    airflow: Running, mailbox: Mailbox, database: Connection, select: Select
) -> None:
    source = (airflow.home / "dags" / DAG_FILE.name).read_text()
    late = airflow.add(
        "late",
        source,
        {
            "with DAG(\n": block("ALERTS").replace("timedelta(hours=5)", "timedelta(seconds=3)")
            + "\nwith DAG(\n    **ALERTS,\n",
            'dag_id="searchflow_reverse_etl"': 'dag_id="late"',
            "timedelta(hours=5, minutes=30)": "timedelta(seconds=30)",
        },
    )
    with locked(database):
        run = airflow.trigger(late)
        wait_for(lambda: "searchflow_reverse_etl is late" in mailbox.subjects, RUN_SECONDS)
        wait_for(lambda: f"late failed: {run}" in mailbox.subjects, RUN_SECONDS)
        wait_for(lambda: waiting(database) == 0)

    runs = "SELECT status FROM etl.sync_runs WHERE sync = 'user_segments'"
    wait_for(lambda: select(runs) == [{"status": "cancelled"}])
    airflow.remove(late)


def test_the_dag_can_be_started_by_dbts_asset_or_the_clock(running: Running) -> None:
    source = DAG_FILE.read_text()
    either = running.add(
        "either",
        source,
        {
            "with DAG(\n": block("SCHEDULE") + "\nwith DAG(\n",
            CRON: "schedule=SCHEDULE, is_paused_upon_creation=True",
            f'dag_id="{DAG_ID}"': 'dag_id="either"',
        },
    )

    dag = running.api(f"dags/{either}/details")
    running.remove(either)
    assert dag["timetable_summary"] == "Asset or 0 */6 * * *"
    assert "searchflow/dbt/marts" in str(dag["asset_expression"])


def test_the_operator_for_own_dags_takes_its_switches_from_native_templates(
    airflow: Running, select: Select
) -> None:
    source = block("searchflow_segments")
    own = airflow.add("searchflow_segments", source)
    assert airflow.ended(airflow.trigger(own, dry_run=True), own).state == "success"
    assert counts(select) == {"segments": 0, "mails": 0, "runs": 0}
    assert airflow.ended(airflow.trigger(own, dry_run=False), own).state == "success"
    assert counts(select)["segments"] == USERS
    task = airflow.add("searchflow_own", block("searchflow_own"))
    assert airflow.ended(airflow.trigger(task), task).state == "success"
    airflow.remove(task)

    typo = airflow.home / "dags" / "typo.py"
    typo.write_text(replaced(source, "dry_run=", "dryrun="))
    wait_for(lambda: "**kwargs: {'dryrun': " in airflow.import_error("typo"), RUN_SECONDS)
    typo.unlink()
    airflow.remove(own)


CRON = 'schedule="0 */6 * * *"'
OWN = """
from airflow.sdk import DAG
from etl import user_segments

with DAG("stoppable"):
    StoppableOperator(task_id="segments", python_callable=user_segments.sync)
"""
README = """
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, ExceptionRetryPolicy, RetryAction, RetryRule
from etl.user_segments import sync

with DAG("readme", max_active_tasks=1, default_args={"retries": 20, "retry_delay": 1}):
"""


def block(mark: str, page: str = "docs/airflow.md") -> str:
    """The Python of a page in which a word stands."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (found,) = [one for one in blocks if mark in one]
    return found


def replaced(source: str, old: str, new: str) -> str:
    """Replace what stands there once."""
    assert source.count(old) == 1
    return source.replace(old, new)


def no_row_is_told(log: str) -> None:
    """What the database said of the row is not in the log of a plain task either."""
    for words in ("the row is broken", "whom it concerns", "user_000005", "\x1b[2J"):
        assert words not in log


@contextmanager
def locked(database: Connection) -> Iterator[None]:
    """Hold a lock that lets user_segments come as far as its merge."""
    postgres.execute(database, "LOCK TABLE crm.user_segments IN SHARE MODE")
    try:
        yield
    finally:
        database.rollback()


def waiting(database: Connection) -> int:
    """How many sessions wait for a lock on a table."""
    sql = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
    return len(postgres.select(database, sql))


@contextmanager
def keeping(airflow: Running, servers: Servers, warehouse: Path) -> Iterator[None]:
    """Let Airflow keep Connections and the Variable, which lead to another place each."""
    host = {"host": "127.0.0.1"}
    made = {
        "searchflow_postgres": {
            **host,
            "conn_type": "postgres",
            "port": servers.postgres_port,
            "schema": "searchflow",
            "login": "via",
            "password": "p-of-via",
            "extra": '{"sslmode": "prefer", "connect_timeout": 3}',
        },
        "searchflow_redis": {
            **host,
            "conn_type": "redis",
            "port": servers.redis_port,
            "extra": '{"db": 1}',
        },
    }
    for name, connection in made.items():
        airflow.api("connections", {"connection_id": name, **connection})
    airflow.api("variables", {"key": "searchflow_duckdb_path", "value": str(warehouse)})
    try:
        yield
    finally:
        for name in made:
            airflow.api(f"connections/{name}", method="DELETE")
        airflow.api("variables/searchflow_duckdb_path", method="DELETE")
