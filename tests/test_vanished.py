"""recommendations: a mart whose scores lost their meaning is noticed before a key is lost."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from conftest import command
from destinations import dump, execute, in_shards, last_run
from fixture_types import Mart, Select

from etl import recommendations
from etl.errors import Refused
from etl.init_db import init_db
from etl.recommendations import transform
from etl.run.job import PreviousRun

Patch = pytest.MonkeyPatch

HALVED = "UPDATE mart_recommendations SET score = score / 2"


# The rows below


@pytest.mark.few(1)
@pytest.mark.parametrize("shards", [1, 4])
def test_rows_that_score_too_low_are_counted(
    shards: int, mart: Mart, select: Select, keys: redis.Redis
) -> None:
    mart(users(100), "UPDATE mart_recommendations SET score = 0.5 WHERE destination = 'Oslo'")

    dry = in_shards(recommendations.sync, shards, dry_run=True)
    result = in_shards(recommendations.sync, shards)

    assert (dry["below_threshold"], dry["inserted"]) == (100, 100)
    assert (result["below_threshold"], result["written"], result["extracted"]) == (100, 100, 200)
    rows = select("SELECT sum(below_threshold)::bigint AS below FROM etl.sync_runs")
    assert rows == [{"below": 100}]
    if shards == 1:
        assert "100 below the score threshold" in command("etl.status").stdout
    printed = " ".join(command("etl.recommendations").stdout.split())
    assert "100 written, 100 below the score" in printed


def test_a_rejected_row_is_not_below_the_threshold(mart: Mart) -> None:
    mart(users(100), "UPDATE mart_recommendations SET score = -1 WHERE user_id = 'u1'")

    result = recommendations.sync()

    assert (result["rejected"], result["below_threshold"]) == (2, 0)


@pytest.mark.few(2)
@pytest.mark.parametrize(("score", "kept"), [("0", 4), ("0.5", 3), ("0.7", 2), ("0.95", 0)])
def test_the_threshold_is_a_setting(
    score: str, kept: int, mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(
        "CREATE TABLE mart_recommendations AS SELECT 'u' AS user_id, 'D' || n AS destination,"
        " [0.3, 0.6, 0.8, 0.9][n] AS score FROM range(1, 5) AS r(n)"
    )
    monkeypatch.setenv("RECO_MIN_SCORE", score)

    result = recommendations.sync(force=True)

    assert (result["written"], result["below_threshold"]) == (min(kept, 1), 4 - kept)
    value: Any = keys.get("reco:u")
    assert (value.count(b'"D') if value else 0) == kept


def test_a_notebook_may_name_the_threshold(mart: Mart) -> None:
    import polars as pl

    frame = pl.DataFrame({"user_id": ["u"], "destination": ["D"], "score": [0.4], "rank": [1]})

    assert len(transform(frame)) == 0
    assert len(transform(frame, min_score=0.3)) == 1


def test_an_older_ledger_gets_the_column(select: Select) -> None:
    execute("ALTER TABLE etl.sync_runs DROP COLUMN below_threshold")

    assert init_db() == ["etl.sync_runs.below_threshold"]


# The guard


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("before", "after"), [(1, 1), (4, 4), (1, 4), (4, 1), (3, 5)], ids=lambda n: f"{n} shards"
)
def test_far_fewer_keys_than_at_the_last_ok_run_are_refused(
    before: int, after: int, mart: Mart, keys: redis.Redis, select: Select
) -> None:
    mart(users(2_000))
    in_shards(recommendations.sync, before)
    there = dump(keys)
    mart(HALVED, "UPDATE mart_recommendations SET score = 0.9 WHERE hash(user_id) % 3 = 0")

    for dry_run in (True, False):
        with pytest.raises(Refused) as raised:
            in_shards(recommendations.sync, after, dry_run=dry_run)
        said = str(raised.value)
        assert "vanished: " in said
        assert "(GUARD_MAX_SHRINK=0.5)" in said
        assert "rows that do not score above RECO_MIN_SCORE=0.5: " in said
        assert "See whether the model's scores have another scale" in said
        assert raised.value.exit_code == 3
    assert dump(keys) == there
    assert last_run(select, "recommendations")["status"] == "refused"

    assert in_shards(recommendations.sync, after, force=True)["status"] == "ok"


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("before", "after"), [(1, 1), (4, 4), (1, 4), (4, 1), (3, 5)], ids=lambda n: f"{n} shards"
)
def test_a_third_fewer_keys_are_written(before: int, after: int, mart: Mart) -> None:
    mart(users(2_000))
    in_shards(recommendations.sync, before)
    mart("UPDATE mart_recommendations SET score = 0.1 WHERE hash(user_id) % 3 = 0")

    assert in_shards(recommendations.sync, after)["status"] == "ok"


def test_each_shard_of_a_scheduler_is_compared_with_itself(mart: Mart, select: Select) -> None:
    mart(users(40))
    counts = [recommendations.sync(shard=(index, 4))["written"] for index in range(4)]
    mart(HALVED)

    for index, count in enumerate(counts):
        with pytest.raises(Refused, match=f"vanished: 0 keys would be written, {count} at the"):
            recommendations.sync(shard=(index, 4))


@pytest.mark.few(1)
@pytest.mark.parametrize("first", [True, False])
def test_no_key_from_a_mart_with_rows_is_refused(
    first: bool, mart: Mart, keys: redis.Redis
) -> None:
    mart(users(20), HALVED)
    if not first:
        recommendations.sync(force=True)

    for dry_run in (True, False):
        with pytest.raises(Refused, match="vanished: no key would be written from 40 rows; "):
            recommendations.sync(dry_run=dry_run)
    assert keys.dbsize() == 0


def test_a_shard_may_have_no_key_where_another_has(mart: Mart, keys: redis.Redis) -> None:
    mart(users(1))

    assert in_shards(recommendations.sync, 4)["written"] == 1
    assert in_shards(recommendations.sync, 3)["written"] == 1
    assert in_shards(recommendations.sync, 4)["written"] == 1


def test_a_mart_that_shrank_or_is_empty_is_told_once(mart: Mart) -> None:
    mart(users(100))
    recommendations.sync()

    for rows, guard in ((0, "empty"), (10, "shrunk")):
        mart(users(rows))
        with pytest.raises(Refused, match=f"{guard}: ") as raised:
            recommendations.sync()
        assert "vanished" not in str(raised.value)


def test_of_three_keys_two_may_go_but_not_all(mart: Mart) -> None:
    mart(users(3))
    recommendations.sync()
    mart("UPDATE mart_recommendations SET score = 0.1 WHERE user_id < 'u2'")
    recommendations.sync()
    mart(HALVED)

    with pytest.raises(Refused, match="vanished: no key would be written from 6 rows"):
        recommendations.sync()


def test_rejected_rows_alone_are_no_rows_without_a_key(mart: Mart) -> None:
    mart(users(10), "UPDATE mart_recommendations SET score = -1")

    with pytest.raises(Refused, match="rejects: ") as raised:
        recommendations.sync()

    assert "vanished" not in str(raised.value)


@pytest.mark.parametrize(
    ("written", "shards", "of", "expected"),
    [
        ({0: 1_000}, 1, (0, 1), 1_000),
        ({0: 10, 1: 12, 2: 7}, 3, (2, 3), 7),
        ({0: 10, 1: 12, 2: 7}, 3, (0, 1), 29),
        ({0: 1_000, 2: 1_000}, 4, (0, 4), 1_000),
        ({0: 1_000, 2: 1_000}, 4, (1, 4), 905),  # 1,000, as far as that is certain
        ({0: 4_000}, 1, (1, 4), 905),
        ({0: 4}, 1, (1, 4), 0),
        ({}, 1, (0, 1), 0),
    ],
)
def test_what_a_shard_had_is_known_or_a_cautious_guess(
    written: dict[int, int], shards: int, of: tuple[int, int], expected: int
) -> None:
    from datetime import UTC, datetime

    assert PreviousRun(1, datetime.now(UTC), shards, written).keys(of) == expected


def users(count: int) -> str:
    """SQL for a mart of so many users, each with Rome and Oslo, who score above the threshold."""
    return f"""
        CREATE OR REPLACE TABLE mart_recommendations AS
        SELECT 'u' || n AS user_id, destination, 0.9::DOUBLE AS score, now() AS generated_at
        FROM range({count}) AS r(n), (VALUES ('Rome'), ('Oslo')) AS v(destination)
    """
