"""A sync as a task: how it ends, and how it is stopped."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from etl.airflow.connections import POSTGRES_CONN_ID, REDIS_CONN_ID, settings
from etl.errors import FORCE, Cancelled, SyncError
from etl.plumbing import cancellation
from etl.syncs import BY_NAME, SYNCS, that_take

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etl.result import SyncResult

_INSTALL = "install the wheel on this worker (pip install searchflow_etl-*.whl)"


class SyncOperator(BaseOperator):  # type: ignore[misc]
    """Run one sync, or one shard of it; the task returns its `SyncResult`.

    A lost server, a lock and another run are retried as the task says; anything else fails at
    once. A task that is stopped (marked failed, cleared, its worker drained) is rolled back at
    once, and the ledger says `cancelled`.

    Args:
        sync: one of those of `etl.syncs`, such as user_segments.
        dry_run: do all of it, then roll back.
        force: go past the guards.
        delete_missing: also delete the rows whose key left the mart, where the sync can.
        wait: seconds to wait for another run of this sync before giving up.
        shard: (i, n) loads shard i of n alone.
        postgres_conn_id: this Connection is used if it exists, else the environment.
        redis_conn_id: as well.
        duckdb_path: the warehouse; else the Variable `searchflow_duckdb_path`, else the
            environment.
    """

    # A template gives text unless the DAG has render_template_as_native_obj=True, and the text
    # 'False' is refused where a switch is due.
    template_fields = ("dry_run", "force", "delete_missing", "wait", "shard", "duckdb_path")
    stopped = False

    def __init__(
        self,
        *,
        sync: str,
        dry_run: bool = False,
        force: bool = False,
        delete_missing: bool = False,
        wait: float = 0,
        shard: tuple[int, int] | None = None,
        postgres_conn_id: str = POSTGRES_CONN_ID,
        redis_conn_id: str = REDIS_CONN_ID,
        duckdb_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if sync not in SYNCS:
            raise ValueError(f"unknown sync {sync!r}; it can be {', '.join(SYNCS)}")
        if delete_missing is not False and "delete_missing" not in BY_NAME[sync].flags:
            able = " and ".join(that_take("delete_missing"))
            raise ValueError(f"delete_missing is for {able}, not for {sync}")
        self.sync = sync
        self.dry_run = dry_run
        self.force = force
        self.delete_missing = delete_missing
        self.wait = wait
        self.shard = shard
        self.postgres_conn_id = postgres_conn_id
        self.redis_conn_id = redis_conn_id
        self.duckdb_path = duckdb_path

    def execute(self, context: Mapping[str, Any]) -> SyncResult:
        """Run the sync."""
        if self.stopped:
            raise AirflowException(f"{self.sync}: stopped before it began")
        options: dict[str, Any] = {"dry_run": self.dry_run, "force": self.force, "wait": self.wait}
        if self.delete_missing is not False:
            options["delete_missing"] = self.delete_missing
        conn_ids = (self.postgres_conn_id, self.redis_conn_id)
        return run(self.sync, context, *conn_ids, self.duckdb_path, shard=self.shard, **options)

    def on_kill(self) -> None:
        """Cancel the run; Airflow calls this on top of `execute`, in its thread."""
        self.stopped = True
        cancellation.cancel("Airflow")


def run(
    sync: str,
    context: Mapping[str, Any],
    postgres_conn_id: str = POSTGRES_CONN_ID,
    redis_conn_id: str = REDIS_CONN_ID,
    duckdb_path: str | None = None,
    **options: Any,
) -> SyncResult:
    """Run one sync inside a task; its result is in XCom, also when it failed.

    Args:
        sync: its name.
        context: of the task.
        postgres_conn_id: as `settings` has it.
        redis_conn_id: as `settings` has it.
        duckdb_path: as `settings` has it.
        options: what its `sync()` takes.

    Raises:
        AirflowFailException: trying again is no use.
        AirflowException: the cause may pass by itself, or the task was stopped; Airflow retries.
    """
    try:
        with cancellation.cancellable():
            module = importlib.import_module(f"etl.{sync}")
            given = settings(postgres_conn_id, redis_conn_id, duckdb_path)
            result: SyncResult = module.sync(settings=given, **options)
            return result
    except ImportError as error:
        raise AirflowFailException(f"{error}; {_INSTALL}") from None
    except (SyncError, Cancelled) as error:
        told = _told(sync, error)
        context["ti"].xcom_push("return_value", told)
        again = isinstance(error, Cancelled) or error.retryable
        # `from None`: the causes have nothing to add, and Airflow would log them.
        raise (AirflowException if again else AirflowFailException)(told["error"]) from None


def _told(sync: str, error: SyncError | Cancelled) -> dict[str, Any]:
    """The result of a run that did not go through, in Airflow's words."""
    told: dict[str, Any] = dict(error.result or {"sync": sync, "status": error.status})
    words = told.get("error") or str(error)
    told["error"] = words.replace(FORCE, "If this is meant, run again with `force`")
    return told
