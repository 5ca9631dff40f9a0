"""notebooks/explore.ipynb on servers that are not its demo.

`make test-notebook` runs this in a venv with the notebook's packages, beside nbmake's own run
of the notebook on its demo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT
from fixture_types import Select

from demo import sample
from etl import postgres, recommendations, user_segments
from etl.settings import Settings

pytest.importorskip("nbmake", reason="needs the notebook's packages: make test-notebook")

PICTURES = 6


@pytest.fixture
def live(environment: Path) -> None:
    """Destinations as a run left them, and marts with a hundred users more since."""
    sample.build(environment, 300)
    user_segments.sync()
    recommendations.sync()
    sample.build(environment, 400)


@pytest.fixture
def analyst(live: None, keys: redis.Redis) -> Iterator[dict[str, str]]:
    """Settings of a role and a Redis user that may read what the notebook reads, no more."""
    settings = Settings.from_environment()
    connection = postgres.connect(replace(settings, postgres_user="postgres"), "tests")
    for statement in (
        f"CREATE ROLE analyst LOGIN PASSWORD '{settings.postgres_password}'",
        "GRANT USAGE ON SCHEMA crm TO analyst",
        "GRANT SELECT ON crm.user_segments TO analyst",
    ):
        postgres.execute(connection, statement)
    connection.commit()
    keys.acl_setuser(
        "analyst",
        enabled=True,
        reset=True,
        passwords=["+secret"],
        keys=["reco:*"],
        commands=["+ping", "+mget"],
    )
    yield {
        "POSTGRES_USER": "analyst",
        "REDIS_USERNAME": "analyst",
        "REDIS_PASSWORD": "secret",
    }
    keys.acl_deluser("analyst")
    postgres.execute(connection, "DROP OWNED BY analyst")
    postgres.execute(connection, "DROP ROLE analyst")
    connection.commit()
    connection.close()


def test_on_live_servers_it_needs_to_read_only(
    analyst: dict[str, str], select: Select, tmp_path: Path
) -> None:
    crm = "SELECT xmin::text, * FROM crm.user_segments ORDER BY user_id"
    before = select(crm)
    would = recommendations.sync(dry_run=True)

    outputs = _run_notebook(tmp_path, analyst)

    said = "".join("".join(output.get("text", ())) for output in outputs)
    assert f"{would['inserted']} inserted, 0 updated, {would['unchanged']} unchanged" in said
    assert "300 unchanged, 100 new" in said
    assert "dry run" not in said
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES
    told = [picture["metadata"]["image/png"]["alt"] for picture in pictures]
    assert len(set(told)) == PICTURES
    assert "300 unchanged, 100 new" in told[0]  # as who sees the bars reads it
    assert select(crm) == before


def _run_notebook(folder: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """The outputs of a copy of the notebook, run from top to bottom."""
    copy = folder / "explore.ipynb"
    copy.write_bytes((ROOT / "notebooks" / "explore.ipynb").read_bytes())
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "--nbmake-timeout=60", copy],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", ())]
