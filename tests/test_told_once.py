"""Whoever reads along is told each reason once, in the log, on stderr or beside the table."""

from __future__ import annotations

import json

import pytest
from conftest import command, segments
from fixture_types import Mart

from etl.syncs import SYNCS

# What is wrong, and the words of it.
FAILING: dict[str, tuple[dict[str, str], str]] = {
    "no tables": ({"POSTGRES_DB": "postgres"}, "does not exist"),
    "Postgres away": ({"POSTGRES_PORT": "1"}, "Connection refused"),
    "a wrong password": ({"POSTGRES_PASSWORD": "wr0ng"}, "authentication failed"),
    "no warehouse": ({"DUCKDB_PATH": "/nowhere/x"}, "no such file"),
    "a guard": ({"GUARD_MAX_AGE_HOURS": "0"}, "stale: the mart"),
    "a setting": ({"GUARD_MAX_AGE_HOURS": "x"}, "is not a number"),
}


@pytest.fixture
def marts(mart: Mart) -> None:
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Miami' AS destination,"
        " 0.9 AS score, now() AS generated_at",
    )


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", FAILING)
def test_people_read_each_reason_once(kind: str, marts: None) -> None:
    given, words = FAILING[kind]

    finished = command("etl", LOG_FORMAT="text", **given)

    # A sync that was not run says for itself which other one failed, and of what.
    lines = (finished.stdout + finished.stderr).splitlines()
    added = set(SYNCS) - {"user_segments", "email_triggers", "recommendations"}
    ours = [line for line in lines if not any(name in line for name in added)]
    told = "\n".join(line for line in ours if ": not run, because " not in line)
    failures = {"no warehouse": 2, "a guard": 2}.get(kind, 1)  # recommendations fails by itself
    assert finished.returncode
    assert told.count(words) == failures, told


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", FAILING)
def test_as_json_each_stream_tells_what_a_machine_needs(kind: str, marts: None) -> None:
    given, words = FAILING[kind]

    finished = command("etl", "--json", "--sync", "user_segments", LOG_FORMAT="json", **given)

    errors = [json.loads(line)["error"] for line in finished.stdout.splitlines()]
    assert [words in error for error in errors] == ([] if kind == "a setting" else [True])
    ends = [line for line in finished.stderr.splitlines() if '"error":' in line]
    assert len(ends) == len(errors)
