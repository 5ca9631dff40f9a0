"""The syncs in Airflow 3: an operator, and settings from Airflow's Connections.

`from etl.airflow import SyncOperator` imports nothing heavy: a DAG processor parses files again
and again, and Polars wants to be loaded in the process that runs the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etl.airflow.connections import settings
from etl.airflow.operator import SyncOperator, run
from etl.plumbing import log

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SyncOperator", "deadline_missed", "run", "settings"]


def deadline_missed(*, context: Mapping[str, Any] | None = None, **_: Any) -> None:
    """Log that a DAG run is late: the least that a `DeadlineAlert` can do as its callback."""
    told = (context or {}).get("dag_run") or {}
    log.warning("deadline.missed", dag_run=str(told.get("dag_run_id", "")))
