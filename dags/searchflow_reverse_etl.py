"""Airflow DAG `searchflow_reverse_etl`: dbt's marts -> Postgres and Redis, every six hours.

The workers need the package (`pip install searchflow_etl-*.whl`). The scheduler parses this file
again and again: all of it that is imported here at the top is the list of syncs, which is light. A
DAG processor needs the wheel only where somebody has added a sync.
"""

from __future__ import annotations

import importlib
import logging
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, BaseOperator, Param, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

try:
    from etl.syncs import BY_NAME

    AFTER = {name: sync.after for name, sync in BY_NAME.items()}
except ImportError:  # the syncs that the package comes with, each with the one that it waits for
    AFTER = {"user_segments": None, "email_triggers": "user_segments", "recommendations": None}

SYNCS = tuple(AFTER)

# What a finished run has brought up to date. It is told after all of it, and never by a dry run.
ASSETS = {
    "user_segments": Asset("searchflow/crm/user_segments"),
    "email_triggers": Asset("searchflow/crm/email_queue"),
    "recommendations": Asset("searchflow/reco"),
}

# Three more tries, 1, 2 and 4 minutes apart, outlast a failover. With 30 minutes for each try
# two syncs one after the other end in less than 5 hours: before the next run is due.
RETRIES = 3
RETRY_DELAY = timedelta(minutes=1)
MOST_RETRY_DELAY = timedelta(minutes=10)
TIMEOUT = timedelta(minutes=30)
DAGRUN_TIMEOUT = timedelta(hours=5, minutes=30)

# Airflow maps a task over 1,024 items at most unless core.max_map_length says otherwise.
MOST_SHARDS = 1_024

# Shards of one sync at a time: each is a session in Postgres and a reader of the warehouse.
MOST_AT_ONCE = 16

# By this name, since Airflow gives the module of a DAG another one at each place.
log = logging.getLogger("searchflow_reverse_etl")


class SyncOperator(BaseOperator):
    """Run one sync, or one shard of it; the task returns its result."""

    stopped = False

    def __init__(self, *, sync: str, shard: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sync = sync
        self.shard = shard

    def execute(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run it with the parameters of the DAG run.

        Raises:
            AirflowFailException: trying again is no use.
            AirflowException: the cause may pass by itself, or the task was stopped.
        """
        params = context["params"]
        try:
            run = importlib.import_module("etl.airflow").run
        except ImportError as error:
            raise AirflowFailException(
                f"{error}; install the wheel on this worker (pip install searchflow_etl-*.whl)"
            ) from None
        if self.stopped:
            raise AirflowException(f"{self.sync}: stopped before it began")
        part = tuple(self.shard) if self.shard[1] > 1 else None
        options = {"dry_run": params["dry_run"], "force": params["force"], "shard": part}
        result: Mapping[str, Any] = run(self.sync, context, **options)
        return result

    def on_kill(self) -> None:
        """Cancel the run: it is rolled back at once, and its ledger row says `cancelled`."""
        self.stopped = True
        if cancel := getattr(sys.modules.get("etl"), "cancel", None):
            cancel("Airflow")


@task(doc_md="Refuses parameters that nobody knows, and lists the shards to map the syncs over.")
def shards(**context: Any) -> list[tuple[int, int]]:
    """Return (i, n) of every shard.

    Raises:
        AirflowFailException: the run was given a parameter that the DAG does not have.
    """
    params, known = context["params"], sorted(context["dag"].params)
    if unknown := sorted(set(context["dag_run"].conf or {}) - set(known)):
        raise AirflowFailException(
            f"unknown parameters: {', '.join(unknown)}; known are {', '.join(known)}."
            " Nothing was run."
        )
    return [(shard, params["shards"]) for shard in range(params["shards"])]


@task(
    trigger_rule="all_done",
    doc_md=(
        "Logs one table of all results, also after a failure, and fails the run when a sync or a"
        " shard of it failed or did not run. A task that somebody marked as success counts as such."
    ),
)
def report(**context: Any) -> None:
    """Log one table of all results.

    Raises:
        AirflowFailException: a sync, or a shard of it, is not in the state success.
    """
    ti, number = context["ti"], context["params"]["shards"]
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[*SYNCS], run_ids=[ti.run_id])
    ended = [
        (name, shard, _state(states, name, shard)) for name in SYNCS for shard in range(number)
    ]
    rows = (_row(ti, name, shard, number, state) for name, shard, state in ended)
    log.info("Results\n%s", "\n".join(_table(rows)))
    if failed := sorted({name for name, _, state in ended if state != "success"}):
        raise AirflowFailException(f"not done: {', '.join(failed)}; the table above says why")


@task(
    outlets=[ASSETS.get(name) or Asset(f"searchflow/{name}") for name in SYNCS],
    doc_md="Updates the assets, which starts the DAGs that are scheduled on them. Not if dry.",
)
def publish(**context: Any) -> None:
    """Succeed, which updates the assets, unless nothing was changed.

    Raises:
        AirflowSkipException: it was a dry run.
    """
    if context["params"]["dry_run"]:
        raise AirflowSkipException("a dry run has changed nothing")


def _state(states: Mapping[str, Any], name: str, shard: int) -> str:
    """The state of a mapped task; before it is expanded it has no index."""
    run: Mapping[str, str | None] = next(iter(states.values()), {})
    return run.get(f"{name}_{shard}", run.get(name)) or "no state"


def _row(ti: Any, name: str, shard: int, shards: int, state: str) -> tuple[str, ...]:
    result = ti.xcom_pull(task_ids=name, map_indexes=shard) or {}
    status, did = result.get("status", state), result.get("error") or _did(result)
    if (state == "success") != (status in ("ok", "success")):
        status = f"marked {state}"  # by a person, whatever the sync says
    if not result and state != "success":
        did = _WHY.get(state, "it left no result: it was killed, timed out or never ran")
    read, seconds = result.get("extracted"), result.get("seconds")
    return (
        name,
        f"{shard + 1} of {shards}",
        status,
        "" if read is None else f"{read:,}",
        "" if seconds is None else f"{seconds:,.2f}",
        ("(dry run) " if result.get("dry_run") else "") + did,
    )


_WHY = {"upstream_failed": "not run: a task before it failed"}


def _did(result: Mapping[str, Any]) -> str:
    """What an ok run did, in one phrase: `12 inserted, 3 updated`."""
    counts = {
        name: count
        for name, count in result.items()
        if isinstance(count, int) and not isinstance(count, bool) and name != "extracted"
    }
    told = (f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    return ", ".join(told) or ("nothing" if result else "")


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    line = "{:<16} {:>12} {:<14} {:>14} {:>9}  {}".format
    yield line("sync", "shard", "status", "rows read", "seconds", "what it did")
    yield from (line(*row) for row in rows)


with DAG(
    dag_id="searchflow_reverse_etl",
    description="dbt's marts in DuckDB -> Postgres (CRM, mail queue) and Redis (recommendations)",
    schedule="0 */6 * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=DAGRUN_TIMEOUT,
    tags=["searchflow", "reverse-etl"],
    params={
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description="Do everything and roll it back; Redis is only read.",
        ),
        "force": Param(
            False,
            type="boolean",
            title="Force",
            description="Go past the guards. Look at what they said first.",
        ),
        "shards": Param(
            1,
            type="integer",
            minimum=1,
            maximum=MOST_SHARDS,
            title="Shards",
            description="Cut every mart into so many parts, one task each.",
        ),
    },
    default_args={
        "owner": "searchflow",
        "retries": RETRIES,
        "retry_delay": RETRY_DELAY,
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": MOST_RETRY_DELAY,
        "execution_timeout": TIMEOUT,
    },
    doc_md="""
### SearchFlow reverse ETL

Carries dbt's marts from the DuckDB warehouse to the systems that act on them. Every sync is
idempotent: to repair a run, clear its failed tasks or trigger a new one.

| task | from | to |
|---|---|---|
| `user_segments` | `mart_user_segments` | Postgres `crm.user_segments` |
| `email_triggers` | `mart_user_segments` | Postgres `crm.email_queue`, once all segments are in |
| `recommendations` | `mart_recommendations` | Redis `reco:<user_id>`, TTL 24 hours |

**Settings.** The Connections `searchflow_postgres` and `searchflow_redis` and the Variable
`searchflow_duckdb_path`, where they exist; else the worker's environment. The log of each task
says which.

**Parameters.** `dry_run` changes nothing and shows what would change. `force` goes past the
guards. With `shards` above 1 every sync is one task a shard, which the executor spreads over
the workers. A parameter that is not known fails the run before anything is done.

**When it fails.** What may pass by itself (a lost server, a lock, another run) is retried three
times. A task that failed at once needs somebody: its log and the table of `report` say what to do.
`python -m etl.status` shows the last runs from the ledger `etl.sync_runs`.

**To stop it,** mark the task as failed: it is rolled back at once. A run that ends well, and was
not dry, updates the assets `searchflow/crm/user_segments`, `searchflow/crm/email_queue` and
`searchflow/reco`.
""",
) as dag:
    every_shard = shards()

    def mapped(name: str, about: str) -> Any:
        """One sync as a task mapped over the shards."""
        operator = SyncOperator.partial(
            task_id=name,
            sync=name,
            map_index_template="{{ task.shard[0] + 1 }} of {{ task.shard[1] }}",
            max_active_tis_per_dagrun=MOST_AT_ONCE,
            doc_md=about,
        )
        return operator.expand(shard=every_shard)

    about = {
        "user_segments": "`mart_user_segments` -> `crm.user_segments`. One transaction a shard: a"
        " failed task has changed nothing of its shard. Safe to clear and run again.",
        "email_triggers": "`mart_user_segments` -> `crm.email_queue`, where mail workers take it"
        " up. Waits for all of `user_segments`: nobody is mailed on a mart that it could not take"
        " over. Never queues a mail twice, however often it runs.",
        "recommendations": "`mart_recommendations` -> Redis `reco:<user_id>`. Keys live 24 hours,"
        " so four runs in a row must fail before a reader misses one. Safe to clear and run again.",
    }
    syncs = {name: mapped(name, about.get(name, f"The sync `etl.{name}`.")) for name in SYNCS}
    for name, before in AFTER.items():
        if before:
            syncs[before] >> syncs[name]
    [*syncs.values()] >> report() >> publish()
