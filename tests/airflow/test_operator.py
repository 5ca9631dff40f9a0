"""`SyncOperator`: what cannot be meant is an error while the DAG's file is read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from airflows import AIRFLOW, Airflow


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("sync='user_segments', dryrun=True", "**kwargs: {'dryrun': True}"),
        ("sync='user_segment'", "unknown sync 'user_segment'; it can be user_segments, "),
        ("sync='recommendations', delete_missing=True", "delete_missing is for user_segments"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_no_task(
    tmp_path: Path, arguments: str, told: str
) -> None:
    make = f"from etl.airflow import SyncOperator; SyncOperator(task_id='t', {arguments})"
    tried = subprocess.run(
        [AIRFLOW / "python", "-c", make],
        env=Airflow(tmp_path).environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert tried.returncode != 0
    assert told in tried.stderr
