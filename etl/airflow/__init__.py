"""The syncs in Airflow 3: an operator, and settings from Airflow's Connections.

`from etl.airflow import SyncOperator` imports nothing heavy: a DAG processor parses files again
and again, and Polars wants to be loaded in the process that runs the task.
"""

from etl.airflow.connections import settings
from etl.airflow.operator import SyncOperator, run

__all__ = ["SyncOperator", "run", "settings"]
