"""A mart in shards: the same end and the same counts as in one piece."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import segments
from destinations import execute, in_shards
from examples import examples
from fixture_types import Mart, Select
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from etl import user_segments
from etl.result import COMMON_COUNTS

IDS = st.sampled_from(["a", "b", "c", "d", "ä", "😀", "", " x ", "'", None])
SEGMENTS = st.sampled_from(["regular", "at_risk", "new_user", None])
MARTS = st.lists(st.tuples(IDS, SEGMENTS, st.integers(-1, 2)), min_size=1, max_size=12)


@pytest.mark.slow
@settings(
    max_examples=examples(2, 8),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(marts=st.tuples(MARTS, MARTS), shards=st.integers(2, 5), delete_missing=st.booleans())
def test_shards_end_as_the_whole_does(
    mart: Mart, select: Select, marts: Any, shards: int, delete_missing: bool
) -> None:
    before, after = marts
    mart(values(before))
    user_segments.sync(force=True)
    keep_a_copy()
    mart(values(after))
    whole: Any = user_segments.sync(force=True, delete_missing=delete_missing)
    expected = target(select)
    restore_the_copy()

    walked: Any = in_shards(user_segments.sync, shards, force=True, delete_missing=delete_missing)

    assert target(select) == expected
    assert {name: walked[name] for name in COMMON_COUNTS} == {
        name: whole[name] for name in COMMON_COUNTS
    }


def test_each_shard_has_its_row(mart: Mart, select: Select) -> None:
    mart(values([(f"u{n}", "regular", 1) for n in range(50)]))

    in_shards(user_segments.sync, 4)

    rows = select(
        "SELECT shard, shards, status, mart_rows, extracted, inserted FROM etl.sync_runs"
        " ORDER BY shard"
    )
    assert [(row["shard"], row["shards"], row["status"]) for row in rows] == [
        (shard, 4, "ok") for shard in range(4)
    ]
    assert {row["mart_rows"] for row in rows} == {50}
    assert sum(row["extracted"] for row in rows) == sum(row["inserted"] for row in rows) == 50
    assert all(0 < row["extracted"] < 50 for row in rows)


def test_shards_of_a_scheduler_add_up_to_the_whole(mart: Mart, select: Select) -> None:
    mart(values([(f"u{n}", "regular", 1) for n in range(50)]))

    parts = [user_segments.sync(shard=(shard, 3)) for shard in range(3)]

    assert sum(part["inserted"] or 0 for part in parts) == 50
    assert len(target(select)) == 50
    assert user_segments.sync()["unchanged"] == 50


def test_the_hash_costs_no_call_of_a_function(select: Select) -> None:
    plan = str(
        select(
            # With a parameter, because the driver wraps what has none in COPY.
            "EXPLAIN (VERBOSE)"
            " SELECT FROM crm.user_segments WHERE etl.shard_of(user_id, $1::int) = 1",
            4,
        )
    )

    assert "md5" in plan
    assert "shard_of" not in plan


def values(rows: list[tuple[str | None, str | None, int]]) -> str:
    return segments(", ".join(f"({_text(u)}, {_text(s)}, {n}, 0, 1.5)" for u, s, n in rows))


def _text(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def target(select: Select) -> list[dict[str, Any]]:
    return select(
        "SELECT user_id, segment, total_searches, lifetime_value, previous_segment"
        " FROM crm.user_segments ORDER BY user_id"
    )


def keep_a_copy() -> None:
    execute("DROP TABLE IF EXISTS crm.kept", "CREATE TABLE crm.kept AS TABLE crm.user_segments")


def restore_the_copy() -> None:
    execute("TRUNCATE crm.user_segments", "INSERT INTO crm.user_segments TABLE crm.kept")
