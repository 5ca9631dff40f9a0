"""The sample warehouse: a dbt project's types, and the same rows for the same epoch."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from demo import days, sample
from etl.plumbing import queries

EPOCH = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = EPOCH + timedelta(days=1)


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "warehouse.duckdb"
    sample.build(path, epoch=EPOCH, built_at=LATER)
    return path


def test_users_have_the_columns_and_types_of_the_mart(warehouse: Path) -> None:
    assert rows(
        warehouse, "SELECT column_name, column_type FROM (DESCRIBE mart_user_segments)"
    ) == [
        ("user_id", "VARCHAR"),
        ("segment", "VARCHAR"),
        ("engagement_score", "BIGINT"),
        ("lifetime_revenue", "DECIMAL(38,2)"),
        ("lifetime_conversions", "HUGEINT"),
        ("lifetime_searches", "HUGEINT"),
        ("first_seen_at", "TIMESTAMP"),
        ("last_seen_at", "TIMESTAMP"),
        ("days_since_last_seen", "DOUBLE"),
        ("account_age_days", "DOUBLE"),
        ("primary_platform", "VARCHAR"),
        ("primary_country", "VARCHAR"),
        ("segmented_at", "TIMESTAMP WITH TIME ZONE"),
    ]


def test_recommendations_have_the_columns_and_types_of_the_mart(warehouse: Path) -> None:
    described = rows(
        warehouse, "SELECT column_name, column_type FROM (DESCRIBE mart_recommendations)"
    )

    assert described == [
        ("user_id", "VARCHAR"),
        ("recommended_destination", "VARCHAR"),
        ("recommendation_score", "DOUBLE"),
        ("supporting_users", "BIGINT"),
        ("rank", "BIGINT"),
        ("generated_at", "TIMESTAMP WITH TIME ZONE"),
    ]


def test_the_same_epoch_gives_the_same_rows_a_day_later(warehouse: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.duckdb"
    sample.build(again, epoch=EPOCH, built_at=LATER + timedelta(days=1))

    users = """SELECT * EXCLUDE (days_since_last_seen, account_age_days, segmented_at)
        FROM mart_user_segments"""
    destinations = "SELECT * EXCLUDE (generated_at) FROM mart_recommendations"
    assert rows(again, users) == rows(warehouse, users)
    assert rows(again, destinations) == rows(warehouse, destinations)


def test_a_rebuilt_mart_is_fresh(warehouse: Path) -> None:
    built = "SELECT DISTINCT epoch(segmented_at) FROM mart_user_segments"
    ages = """SELECT max(abs(epoch(segmented_at) - epoch(last_seen_at)
        - 86400 * days_since_last_seen)) < 2 FROM mart_user_segments"""

    assert rows(warehouse, built) == [(LATER.timestamp(),)]
    assert rows(warehouse, ages) == [(True,)]


def test_every_segment_has_its_share(warehouse: Path) -> None:
    shares = dict(
        rows(
            warehouse,
            "SELECT segment, count(*) / 10000 FROM mart_user_segments GROUP BY segment",
        )
    )

    expected = {
        "regular": 0.45,
        "new_user": 0.15,
        "at_risk": 0.15,
        "abandoned_search": 0.15,
        "high_value": 0.10,
    }
    assert shares == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("segment", "rule"),
    [
        ("new_user", f"first_seen_at >= TIMESTAMP '{EPOCH:%Y-%m-%d %H:%M}' - INTERVAL 14 DAY"),
        ("at_risk", "days_since_last_seen BETWEEN 30.9 AND 216.1"),
        ("abandoned_search", "lifetime_searches > 0 AND days_since_last_seen < 12"),
        ("high_value", "lifetime_revenue > 2000"),
    ],
)
def test_figures_agree_with_the_segment(warehouse: Path, segment: str, rule: str) -> None:
    broken = f"SELECT user_id FROM mart_user_segments WHERE segment = '{segment}' AND NOT ({rule})"

    assert rows(warehouse, broken) == []


def test_every_user_is_valid(warehouse: Path) -> None:
    valid = """SELECT count(*) FROM mart_user_segments
        WHERE COLUMNS(*) IS NOT NULL AND first_seen_at <= last_seen_at
            AND lifetime_conversions BETWEEN 0 AND lifetime_searches AND lifetime_revenue >= 0"""
    distinct = "SELECT count(DISTINCT user_id) FROM mart_user_segments"
    foreign = "SELECT count(*) FROM mart_user_segments WHERE length(user_id) < strlen(user_id)"

    assert rows(warehouse, valid) == [(10_000,)]
    assert rows(warehouse, distinct) == [(10_000,)]
    assert rows(warehouse, foreign) == [(50,)]


def test_recommendations_are_ranked_by_score_and_the_best_has_one(warehouse: Path) -> None:
    broken = """SELECT user_id FROM mart_recommendations
        WHERE recommendation_score NOT BETWEEN 0 AND 1
            OR (rank = 1) <> (recommendation_score = 1) OR rank > 10
        QUALIFY rank <> row_number() OVER (PARTITION BY user_id ORDER BY rank)"""
    unordered = """SELECT user_id FROM mart_recommendations
        QUALIFY rank <> row_number() OVER (
            PARTITION BY user_id ORDER BY recommendation_score DESC, rank)"""
    users = """SELECT count(DISTINCT user_id) / 10000,
        count(*) = count(DISTINCT (user_id, recommended_destination)) FROM mart_recommendations"""

    assert rows(warehouse, broken) == []
    assert rows(warehouse, unordered) == []
    assert rows(warehouse, users) == [(pytest.approx(0.97, abs=0.01), True)]


def test_a_build_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    sample.build(path, 10, epoch=EPOCH)
    before = path.read_bytes()

    with pytest.raises(ValueError, match="time zone"):
        sample.build(path, 10, epoch=datetime(2026, 3, 1))
    with pytest.raises(duckdb.Error):
        sample.build(path, "many", epoch=EPOCH)  # type: ignore[arg-type]

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_day_2_has_three_bad_rows_and_day_1_fewer_users(tmp_path: Path) -> None:
    days.build(tmp_path, 300, EPOCH, EPOCH)

    users = {
        day: rows(
            tmp_path / f"{day}.duckdb",
            "SELECT count(*), max(segmented_at)::DATE::VARCHAR FROM mart_user_segments",
        )
        for day in ("day1", "day2", "lost")
    }
    assert users["day2"] == [(303, "2026-03-01")]
    assert users["day1"][0][1] == "2026-02-28"
    assert users["lost"][0][0] < 150 < users["day1"][0][0] < 300


def test_every_mart_of_the_sample_is_there_on_each_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(queries.ROOT / "sample", tmp_path / "sample")
    (tmp_path / "sample" / "mart_more.sql").write_text(
        "CREATE TABLE main_marketing.mart_more AS FROM main_marketing.mart_user_segments"
    )
    monkeypatch.setattr(queries, "ROOT", tmp_path)
    monkeypatch.setattr(sample, "MARTS", [*sample.MARTS, "mart_more"])

    days.build(tmp_path, 10, EPOCH, EPOCH)

    for day in ("day1", "day2", "lost"):
        path = tmp_path / f"{day}.duckdb"
        for mart in sample.MARTS:
            assert rows(path, f"SELECT count(*) > 0 FROM {mart}") == [(True,)]


def test_a_day_takes_the_place_of_another(tmp_path: Path) -> None:
    days.build(tmp_path, 10, EPOCH, LATER)
    for day in ("day1", "day2"):
        days.switch(tmp_path, day)
        assert (tmp_path / "warehouse.duckdb").read_bytes() == (
            tmp_path / f"{day}.duckdb"
        ).read_bytes()


def rows(warehouse: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        connection.execute("USE main_marketing")
        return connection.execute(sql).fetchall()
