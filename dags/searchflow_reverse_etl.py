"""Airflow DAG `searchflow_reverse_etl`: dbt's marts -> Postgres and Redis, every six hours.

The workers need the package (`pip install searchflow_etl-*.whl`) and its settings in their
environment. Nothing of it is imported here at the top: the scheduler parses this file again
and again, and Polars wants to be loaded in the process that runs the task, after its fork.
"""

from __future__ import annotations

import importlib
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SYNCS = ("user_segments", "email_triggers", "recommendations")

# Three more tries, 1, 2 and 4 minutes apart, outlast a failover. With 30 minutes for each try
# two syncs one after the other end in less than 5 hours: before the next run is due.
RETRIES = 3
RETRY_DELAY = timedelta(minutes=1)
MOST_RETRY_DELAY = timedelta(minutes=10)
TIMEOUT = timedelta(minutes=30)

# Airflow maps a task over 1,024 items at most unless core.max_map_length says otherwise.
MOST_SHARDS = 1_024

# Where each task leaves its SyncResult, also when it failed: a failed task returns nothing.
RESULT = "sync_result"

log = logging.getLogger(__name__)


def list_shards(**context: Any) -> list[dict[str, int]]:
    """Return the arguments of one task a shard, which the syncs are mapped over."""
    return [{"shard": shard} for shard in range(context["params"]["shards"])]


def run_sync(name: str, *, shard: int, **context: Any) -> Mapping[str, Any]:
    """Run one sync, or one shard of it, and leave its result for `report`.

    Raises:
        AirflowFailException: a guard refused, or a setting is wrong; trying again is no use.
        AirflowException: anything else, such as a server that went away; Airflow retries.
    """
    errors = importlib.import_module("etl.errors")
    params, give = context["params"], context["ti"].xcom_push
    part = (shard, params["shards"]) if params["shards"] > 1 else None
    try:
        sync: Callable[..., Mapping[str, Any]] = importlib.import_module(f"etl.{name}").sync
        result = sync(dry_run=params["dry_run"], force=params["force"], shard=part)
    except errors.SyncError as error:
        give(RESULT, error.result or {"sync": name, "status": error.status, "error": str(error)})
        final = isinstance(error, errors.Refused | errors.UsageError)
        # `from None`: the causes have nothing to add, and Airflow would log them.
        raise (AirflowFailException if final else AirflowException)(str(error)) from None
    give(RESULT, result)
    return result


def report(**context: Any) -> None:
    """Log one table of all results.

    It runs also after a failure, and is what the state of the run hangs on.

    Raises:
        AirflowFailException: a sync, or a shard of it, failed or never ran.
    """
    shards = context["params"]["shards"]
    results = {(name, n): _result(context, name, n) for name in SYNCS for n in range(shards)}
    log.info("Results\n%s", "\n".join(_table(results, shards)))
    failed = sorted({name for (name, _), result in results.items() if result["status"] != "ok"})
    if failed:
        raise AirflowFailException(f"not done: {', '.join(failed)}; the table above says why")


def _result(context: Mapping[str, Any], name: str, shard: int) -> Mapping[str, Any]:
    found = context["ti"].xcom_pull(task_ids=name, key=RESULT, map_indexes=shard)
    return found or {
        "status": "no result",
        "error": "it was killed or timed out, or a task before it failed",
    }


def _table(results: Mapping[tuple[str, int], Mapping[str, Any]], shards: int) -> Iterable[str]:
    outcome = importlib.import_module("etl.cli.report").outcome
    row = "{:<16} {:>9} {:<9} {:>14} {:>9}  {}".format
    yield row("sync", "shard", "status", "rows read", "seconds", "what it did")
    for (name, shard), result in results.items():
        read, seconds = result.get("extracted"), result.get("seconds")
        did = result.get("error") or outcome(result)
        yield row(
            name,
            f"{shard + 1} of {shards}",
            result["status"],
            "" if read is None else f"{read:,}",
            "" if seconds is None else f"{seconds:,.2f}",
            ("(dry run) " if result.get("dry_run") else "") + did,
        )


with DAG(
    dag_id="searchflow_reverse_etl",
    description="dbt's marts in DuckDB -> Postgres (CRM, mail queue) and Redis (recommendations)",
    schedule="0 */6 * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
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
        "retry_exponential_backoff": True,
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

**Parameters.** `dry_run` changes nothing and shows what would change. `force` goes past the
guards. With `shards` above 1 every sync is one task a shard, which the executor spreads over
the workers.

**When it fails.** A lost server is retried three times. A task that failed at once was stopped
by a guard, or a setting is wrong: its log and the table of `report` say which and what to do.
`python -m etl.status` shows the last runs from the ledger `etl.sync_runs`.
""",
) as dag:
    shards = PythonOperator(
        task_id="shards",
        python_callable=list_shards,
        doc_md="Lists the shards, from the parameter `shards`, for the syncs to be mapped over.",
    )

    def mapped(name: str, about: str) -> Any:
        """One sync as a task mapped over the shards."""
        task = PythonOperator.partial(
            task_id=name, python_callable=run_sync, op_args=[name], doc_md=about
        )
        return task.expand(op_kwargs=shards.output)

    user_segments = mapped(
        "user_segments",
        "`mart_user_segments` -> `crm.user_segments`. One transaction a shard: a failed task has "
        "changed nothing of its shard. Safe to clear and run again.",
    )

    email_triggers = mapped(
        "email_triggers",
        "`mart_user_segments` -> `crm.email_queue`, where mail workers take it up. Waits for all "
        "of `user_segments`: nobody is mailed on a mart that it could not take over. Never queues "
        "a mail twice, however often it runs.",
    )

    recommendations = mapped(
        "recommendations",
        "`mart_recommendations` -> Redis `reco:<user_id>`. Keys live 24 hours, so four runs in a "
        "row must fail before a reader misses one. Safe to clear and run again.",
    )

    gather = PythonOperator(
        task_id="report",
        python_callable=report,
        trigger_rule="all_done",
        doc_md=(
            "Logs one table of all results, also after a failure, and fails the run when a sync "
            "or a shard of it failed or did not run."
        ),
    )

    user_segments >> email_triggers
    [user_segments, email_triggers, recommendations] >> gather
