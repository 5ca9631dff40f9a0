"""No single row decides for all: what is measured against the build time asks accepted rows."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from conftest import segments
from destinations import in_shards
from fixture_types import Mart, Select

from etl import email_triggers, recommendations, user_segments, warehouse
from etl.errors import Refused
from etl.run import contract
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    import redis


USERS = segments(", ".join(f"('u{n:02}', 'abandoned_search', 3, 0, 0)" for n in range(20)))

MOMENTS = ["'9999-12-31'", "now() + INTERVAL 4 DAY", "now() + INTERVAL 61 MINUTE"]


def built(moment: str, user: str = "u07") -> str:
    return f"UPDATE mart_user_segments SET segmented_at = {moment} WHERE user_id = '{user}'"


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch, environment: object) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "0.2")


@pytest.mark.few(2)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("sync", [user_segments.sync, email_triggers.sync])
def test_a_row_built_in_the_future_is_rejected(
    mart: Mart, select: Select, sync: Any, shards: int, moment: str
) -> None:
    mart(USERS, built(moment))

    result = in_shards(sync, shards)

    kept = select("SELECT key, reasons FROM etl.rejected_rows")
    assert (result["extracted"], result["rejected"], result["inserted"]) == (20, 1, 19)
    assert kept == [{"key": "u07", "reasons": ["segmented_at:in_the_future"]}]


def test_a_recommendation_built_in_the_future_is_rejected(
    mart: Mart, select: Select, keys: redis.Redis
) -> None:
    mart(
        "CREATE TABLE mart_recommendations AS SELECT 'u' || n AS user_id, 'Rome' AS destination,"
        " 0.9 AS score, now() + INTERVAL 1 DAY * n AS generated_at FROM range(-4, 2) AS r(n)"
    )

    result = recommendations.sync()

    assert (result["rejected"], keys.dbsize()) == (1, 5)
    assert select("SELECT key, reasons FROM etl.rejected_rows") == [
        {"key": "u1", "reasons": ["generated_at:in_the_future"]}
    ]


def test_a_clock_that_is_less_than_an_hour_ahead_is_no_reason(mart: Mart) -> None:
    mart(USERS, "UPDATE mart_user_segments SET segmented_at = now() + INTERVAL 58 MINUTE")

    assert user_segments.sync()["rejected"] == 0


def test_the_future_begins_an_hour_after_the_clock_of_the_run(mart: Mart) -> None:
    mart(USERS, "UPDATE mart_user_segments SET segmented_at = '2026-05-01 13:00:00+00'")
    read = warehouse.read("user_segments", UserSegment, Settings.from_environment())
    noon = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)

    for clock, rejected in ((noon, 0), (noon - dt.timedelta(microseconds=1), 20)):
        validator = contract.Validator(UserSegment, 5, clock)
        validator.valid_rows(read)
        assert validator.rejects().total == rejected


@pytest.mark.few(2)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_row_built_in_the_future_cancels_nobodys_mail(
    mart: Mart, select: Select, shards: int, moment: str
) -> None:
    mart(USERS)
    email_triggers.sync()

    mart(built(moment))
    result = in_shards(email_triggers.sync, shards)

    assert result["cancelled"] == 0
    assert select("SELECT status, count(*)::int AS n FROM crm.email_queue GROUP BY status") == [
        {"status": "pending", "n": 20}
    ]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "bad",
    [
        *(f"segmented_at = {moment}" for moment in MOMENTS),
        "segmented_at = now(), segment = NULL",
        "segmented_at = now(), user_id = NULL",
        "segmented_at = now(), lifetime_searches = 99999999999999999999",
    ],
)
@pytest.mark.parametrize("how", [{}, {"shard": (0, 2)}, {"shard": (1, 2)}])
def test_a_rejected_row_does_not_make_a_stale_mart_fresh(
    mart: Mart, how: dict[str, Any], bad: str
) -> None:
    mart(
        USERS,
        "UPDATE mart_user_segments SET segmented_at = now() - INTERVAL 49 HOUR",
        f"UPDATE mart_user_segments SET {bad} WHERE user_id = 'u07'",
    )

    with pytest.raises(Refused, match="stale: the mart was built 49 hours ago"):
        user_segments.sync(**how)


def test_a_rejected_row_of_any_reason_does_not_make_a_whole_mart_fresh(mart: Mart) -> None:
    mart(
        USERS,
        "UPDATE mart_user_segments SET segmented_at = now() - INTERVAL 49 HOUR",
        "UPDATE mart_user_segments SET segmented_at = now(), lifetime_searches = -1"
        " WHERE user_id = 'u07'",
    )

    with pytest.raises(Refused, match="stale: the mart was built 49 hours ago"):
        user_segments.sync()


def test_a_mart_all_of_the_future_leaves_everything_as_it_was(mart: Mart, select: Select) -> None:
    mart(USERS)
    email_triggers.sync()

    mart("UPDATE mart_user_segments SET segmented_at = now() + INTERVAL 5 DAY")
    result = email_triggers.sync(force=True)

    assert (result["rejected"], result["inserted"], result["cancelled"]) == (20, 0, 0)
    assert select("SELECT count(*)::int AS n FROM crm.email_queue WHERE status = 'pending'") == [
        {"n": 20}
    ]
