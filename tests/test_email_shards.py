"""A whole run and shards decide alike for every user, whatever the mart and the queue hold."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from destinations import execute, in_shards
from duckdb_files import written
from examples import examples
from fixture_types import Mart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mails import NOW, audience, user

from etl import email_triggers, postgres
from etl.mail.rules import RULES
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.result import SyncResult

SEGMENTS = st.sampled_from(["regular", "", *(rule.segment for rule in RULES)])
VISITS = st.sampled_from([None, 0, 1, 30, 80, 800, 2_300, 5_000])  # hours ago
PEOPLE = st.lists(st.tuples(SEGMENTS, VISITS, VISITS, st.integers(-1, 2)), min_size=8, max_size=8)
COUNTS = ("extracted", "rejected", "inserted", "updated", "unchanged", "cancelled", "held_back")


@pytest.mark.slow
@settings(
    max_examples=examples(3, 8),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(before=PEOPLE, after=PEOPLE)
def test_shards_decide_for_every_user_as_a_whole_run_does(
    environment: Path, before: list[Any], after: list[Any]
) -> None:
    whole, parts = (outcome(environment, (before, after), shards) for shards in (1, 4))

    assert parts == whole


def outcome(warehouse: Path, marts: Any, shards: int) -> Any:
    """What is counted and what the queue holds after a run over each mart."""
    execute("TRUNCATE crm.email_queue")
    results = []
    for people in marts:
        with written(warehouse) as connection:
            connection.execute(mart_of(people))
        result: SyncResult = in_shards(email_triggers.sync, shards, force=True)
        results.append([result[name] for name in COUNTS])  # type: ignore[literal-required]
    with postgres.session(Settings.from_environment(), "look") as session:
        rows = postgres.select(
            session,
            "SELECT user_id, template, episode_at, status, reason, priority, payload::text"
            " FROM crm.email_queue ORDER BY user_id, template, episode_at",
        )
    return results, rows


def mart_of(people: list[Any]) -> str:
    def ago(hours: int | None) -> dt.datetime | None:
        return None if hours is None else NOW - dt.timedelta(hours=hours)

    return audience(
        *(
            user(f"u{number}", segment, first=ago(first), last=ago(last), searches=searches)
            for number, (segment, first, last, searches) in enumerate(people)
        )
    )


def test_a_mart_is_as_old_in_each_shard_as_in_a_whole_run_also_where_rows_are_rejected(
    mart: Mart,
) -> None:
    built, visit = NOW - dt.timedelta(hours=10), NOW - dt.timedelta(hours=80)
    newer = (
        "INSERT INTO mart_user_segments SELECT * REPLACE ('bad' AS user_id, -1 AS"
        " lifetime_searches, segmented_at + INTERVAL 9 HOUR AS segmented_at)"
        " FROM mart_user_segments LIMIT 1"
    )
    people = [user(f"u{n}", "abandoned_search", last=visit) for n in range(8)]
    mart(audience(*people, built_at=built), newer)

    def told(**shard: Any) -> dict[str, int]:
        found = email_triggers.sync(dry_run=True, force=True, **shard)["outcomes"]
        return {one["outcome"]: one["mails"] for one in found}

    whole, parts = told(), [told(shard=(index, 2)) for index in range(2)]

    assert whole == {"old news": 8}
    assert [set(part) for part in parts] == [{"old news"}] * 2
