"""The DAG by `dags test` in a real Airflow, on real servers: `make test-airflow`.

Airflow and the package as a wheel are in .venv-airflow; the tests and the servers are not.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import redis
from airflows import (
    AIRFLOW,
    DAG_FILE,
    DAG_ID,
    DONE,
    FAILED,
    NOT_RUN,
    RUN_SECONDS,
    SHARD_OF,
    SKIPPED,
    USERS,
    Airflow,
    break_user,
    counts,
    told,
)
from fixture_types import Select
from pace import in_time

from demo import sample
from etl.syncs import BY_NAME, SYNCS

if TYPE_CHECKING:
    from etl.postgres import Connection

pytestmark = pytest.mark.timeout(2 * RUN_SECONDS + 60)


@pytest.fixture(scope="module")
def empty_airflow() -> Iterator[Airflow]:
    with tempfile.TemporaryDirectory(prefix="etl-airflow-") as home:
        airflow = Airflow(Path(home))
        airflow.set_up()
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
    assert ended.tasks == {"shards": DONE, **mapped, "report": DONE, "publish": DONE}
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
    assert ended.tasks == dict.fromkeys(["shards", *mapped, "report", "publish"], DONE)
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
    assert ended.tasks[f"user_segments {index}"] == FAILED  # and is not retried: it cannot pass
    others = [f"user_segments {other}" for other in range(3) if other != index]
    reached = [f"recommendations {shard}" for shard in range(3)]
    assert {name: ended.tasks[name] for name in (*others, *reached)} == dict.fromkeys(
        [*others, *reached], DONE
    )
    assert {ended.tasks.get(f"email_triggers {shard}", NOT_RUN) for shard in range(3)} == {NOT_RUN}
    assert ended.tasks["report"] == FAILED
    assert ended.tasks["publish"] == NOT_RUN
    loaded = select(f"SELECT DISTINCT {SHARD_OF} AS shard FROM crm.user_segments")
    assert {row["shard"] for row in loaded} == {0, 1, 2} - {index}
    assert [row.split()[4] for row in ended.table if row.startswith("user_segments")].count(
        "failed"
    ) == 1
    assert len([row for row in ended.table if "not run: a task before it failed" in row]) == 3
    assert "the function crm.break raised an error" in ended.log
    assert "whom it concerns" not in ended.log  # the driver's own error would say


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
        "publish": NOT_RUN,
    }
    assert "empty: the mart has no rows. Look at dbt" in ended.table[0]
    assert ended.table[0].endswith("If this is meant, run again with `force`")
    assert "--force" not in ended.table[0]
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
    before = airflow.query("SELECT max(id) FROM dag_run")[0][0] or 0
    ended = airflow.dag_run(dry_run=True, shards=2)

    assert ended.state == "success", ended.log
    assert len([row for row in ended.table if "(dry run)" in row and "inserted" in row]) == 6
    assert counts(select) == {"segments": 0, "mails": 0, "runs": 0}
    assert keys.dbsize() == 0
    assert ended.tasks["publish"] == SKIPPED  # so that no asset changes
    results = airflow.query(
        "SELECT task_id FROM xcom WHERE dag_run_id > ? AND value LIKE '%extracted%'", before
    )
    assert sorted(name for (name,) in results) == sorted([*SYNCS] * 2)  # each once
    kept = str(airflow.query("SELECT value FROM xcom"))
    assert "outcomes" in kept
    assert "user_0" not in kept  # no id of a user: what a task returns stays for weeks


def test_a_worker_without_the_package_is_told_what_to_do(
    airflow: Airflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etl.py").write_text("raise ModuleNotFoundError('No module etl')")
    monkeypatch.setattr(airflow, "python_path", str(tmp_path))

    ended = airflow.dag_run()

    assert ended.tasks["user_segments 0"] == ended.tasks["recommendations 0"] == FAILED
    assert "No module etl; install the wheel on this worker" in ended.log
    assert ended.tasks["report"] == FAILED
    assert len(ended.table) == 3  # for which the worker needs nothing


def test_a_worker_without_what_the_package_needs_is_told_the_same(tmp_path: Path) -> None:
    (tmp_path / "polars.py").write_text("raise ModuleNotFoundError('No module polars')")
    airflow = Airflow(tmp_path, python_path=str(tmp_path))
    run = "from etl.airflow import run; run('user_segments', {})"
    tried = subprocess.run(
        [AIRFLOW / "python", "-c", run],
        env=airflow.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    told = "AirflowFailException: No module polars; install the wheel on this worker"
    assert told in tried.stderr


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
    in_time(seconds, 1)
    assert dag == {
        "heavy": [],
        "schedule": "0 */6 * * *",
        "catchup": False,
        "max_active_runs": 1,
        "params": {"dry_run": False, "force": False, "shards": 1},
        "documented": ["dag", *sorted([*SYNCS, "publish", "report", "shards"])],
        "policies": [[3, 60.0, 2.0, 1800.0]],
        "timeout": 5.5 * 3600,
        "outlets": {
            "publish": [
                "searchflow/crm/user_segments",
                "searchflow/crm/email_queue",
                "searchflow/reco",
                *(f"searchflow/{name}" for name in SYNCS[3:]),
            ]
        },
        "downstream": {
            "shards": sorted(SYNCS),
            **{name: sorted(["report", *after(name)]) for name in SYNCS},
            "report": ["publish"],
            "publish": [],
        },
    }


def after(name: str) -> list[str]:
    """The syncs that wait for this one."""
    return [sync.name for sync in BY_NAME.values() if sync.after == name]


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
    (t.retries, t.retry_delay.total_seconds(), t.retry_exponential_backoff,
     t.execution_timeout.total_seconds()) for t in tasks
}
print(json.dumps({
    "seconds": seconds,
    "heavy": sorted(roots & {"polars", "pyarrow", "duckdb", "redis", "dataframely"}),
    "schedule": dag.schedule, "catchup": dag.catchup, "max_active_runs": dag.max_active_runs,
    "params": dict(dag.params),
    "documented": ["dag"] * bool(dag.doc_md) + [t.task_id for t in tasks if t.doc_md],
    "policies": sorted(policies),
    "timeout": dag.dagrun_timeout.total_seconds(),
    "outlets": {t.task_id: [asset.name for asset in t.outlets] for t in tasks if t.outlets},
    "downstream": {t.task_id: sorted(t.downstream_task_ids) for t in tasks},
}))
"""
