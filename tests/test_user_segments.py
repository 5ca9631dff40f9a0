"""user_segments: mart_user_segments -> crm.user_segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import segments

from etl import user_segments

Select = Callable[..., list[dict[str, Any]]]


def test_a_first_run_inserts_every_user(mart: Callable[..., None], select: Select) -> None:
    mart(segments("('a', 'new_user', 3, 0, 0), ('b', 'high_value', 90, 12, 1234.56)"))

    result = user_segments.sync()

    assert (result["status"], result["extracted"], result["inserted"]) == ("ok", 2, 2)
    assert select(
        "SELECT user_id, segment, total_searches, total_conversions, lifetime_value,"
        " previous_segment FROM crm.user_segments ORDER BY user_id"
    ) == [
        {
            "user_id": "a",
            "segment": "new_user",
            "total_searches": 3,
            "total_conversions": 0,
            "lifetime_value": "0.00",
            "previous_segment": None,
        },
        {
            "user_id": "b",
            "segment": "high_value",
            "total_searches": 90,
            "total_conversions": 12,
            "lifetime_value": "1234.56",
            "previous_segment": None,
        },
    ]


def test_unchanged_rows_are_not_written_again(mart: Callable[..., None], select: Select) -> None:
    mart(segments("('a', 'new_user', 3, 0, 0), ('b', 'regular', 9, 1, 5)"))
    user_segments.sync()
    before = select("SELECT ctid::text, * FROM crm.user_segments ORDER BY user_id")

    mart(segments("('a', 'new_user', 3, 0, 0), ('b', 'regular', 10, 1, 5)"))
    result = user_segments.sync()

    after = select("SELECT ctid::text, * FROM crm.user_segments ORDER BY user_id")
    assert (result["inserted"], result["updated"], result["unchanged"]) == (0, 1, 1)
    assert after[0] == before[0]
    assert after[1]["synced_at"] > before[1]["synced_at"]
    assert after[1]["segment_changed_at"] == before[1]["segment_changed_at"]
