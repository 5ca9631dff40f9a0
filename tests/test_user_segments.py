"""user_segments: mart_user_segments -> crm.user_segments."""

from __future__ import annotations

import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from conftest import segments
from destinations import execute
from examples import examples
from fixture_types import Mart, Select
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import postgres, user_segments, warehouse
from etl.errors import SyncError
from etl.postgres import Connection
from etl.settings import Settings
from etl.warehouse import compare, order, stream

# More users than a batch of 2,048 takes.
CROWD = (
    "INSERT INTO mart_user_segments BY NAME"
    " SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
    " FROM mart_user_segments, range(9999) AS r(n)"
)
SESSIONS = "SELECT FROM pg_stat_activity WHERE application_name LIKE 'etl.user_segments %'"


def test_a_first_run_inserts_every_user(mart: Mart, select: Select) -> None:
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


def test_unchanged_rows_are_not_written_again(mart: Mart, select: Select) -> None:
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


def test_what_somebody_changed_by_hand_is_put_right(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'regular', 3, 0, 0.01), ('b', 'regular', 9, 1, 999999999999.99)"))
    user_segments.sync()
    execute(
        "UPDATE crm.user_segments SET lifetime_value = lifetime_value - 0.01",
        "DELETE FROM crm.user_segments WHERE user_id = 'a'",
        "INSERT INTO crm.user_segments (user_id, segment, total_searches, total_conversions,"
        " lifetime_value) VALUES ('c', 'regular', 3, 0, 0.01)",
    )

    result = user_segments.sync()

    assert (result["inserted"], result["updated"], result["unchanged"]) == (1, 1, 0)
    rows = select("SELECT user_id, lifetime_value FROM crm.user_segments ORDER BY user_id")
    assert [tuple(row.values()) for row in rows] == [
        ("a", "0.01"),
        ("b", "999999999999.99"),
        ("c", "0.01"),
    ]


def test_a_user_whom_somebody_adds_in_the_middle_of_a_run_is_merged_like_any_other(
    mart: Mart, select: Select, database: Connection
) -> None:
    mart(segments("('a', 'high_value', 3, 0, 0), ('b', 'regular', 9, 1, 5)"))
    add = "INSERT INTO crm.user_segments VALUES ('b', 'new_user', 1, 0, 0)"
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%staging%'"

    with ThreadPoolExecutor() as pool:
        with postgres.session(Settings.from_environment(), "tests") as other:
            postgres.execute(other, add)
            run = pool.submit(user_segments.sync)
            while not run.done() and not select(waits):
                time.sleep(0.01)
            other.commit()
        result = run.result(30)

    assert (result["inserted"], result["updated"], result["unchanged"]) == (1, 1, 0)
    rows = select("SELECT user_id, segment, previous_segment FROM crm.user_segments ORDER BY 1")
    assert [tuple(row.values()) for row in rows] == [
        ("a", "high_value", None),
        ("b", "regular", "new_user"),
    ]


def test_users_who_are_there_are_updated_in_place(mart: Mart, select: Select) -> None:
    """Not inserted ON CONFLICT, which takes twice as long; on their page, while it has room."""
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments BY NAME"
        " SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        " FROM mart_user_segments, range(999) AS r(n)",
    )
    user_segments.sync()
    execute(
        "CREATE FUNCTION crm.fail() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION ''inserted''; END'",
        "CREATE TRIGGER no_more BEFORE INSERT ON crm.user_segments"
        " FOR EACH ROW EXECUTE FUNCTION crm.fail()",
    )
    on_pages = (
        "SELECT user_id, (ctid::text::point)[0] AS page FROM crm.user_segments ORDER BY user_id"
    )
    pages = select(on_pages)
    mart(
        "UPDATE mart_user_segments SET lifetime_searches = 2"
        " WHERE regexp_matches(user_id, '[05]0$')"
    )

    result = user_segments.sync()

    assert result["updated"] == 19
    assert select(on_pages) == pages


def test_a_mart_read_in_batches_comes_to_the_same(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    rows = "SELECT user_id, total_searches FROM crm.user_segments ORDER BY user_id"
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments BY NAME"
        " SELECT * EXCLUDE n REPLACE (user_id || n AS user_id)"
        " FROM mart_user_segments, range(9999) AS r(n)",
    )
    first = user_segments.sync()
    inserted = select(rows)
    loaded = [
        row["user_id"] for row in select("SELECT user_id FROM crm.user_segments ORDER BY ctid")
    ]
    mart("UPDATE mart_user_segments SET lifetime_searches = 2 WHERE user_id IN ('a', 'a5')")
    second = user_segments.sync()

    assert (first["inserted"], second["updated"], second["unchanged"]) == (10_000, 2, 9_998)
    assert len(inserted) == 10_000
    assert loaded == [row["user_id"] for row in inserted]  # in the order of the key's index
    changed = [row["user_id"] for row in select(rows) if row["total_searches"] == 2]
    assert changed == ["a", "a5"]


def test_a_first_load_that_fails_half_way_leaves_nothing(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its COPY is under way by then, and ends with it."""
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    sizes: list[int] = []

    def fail(rows: pl.DataFrame) -> pl.DataFrame:
        sizes.append(len(rows))
        if len(sizes) == 3:
            raise ValueError("no third batch")
        return rows.drop("built_at")

    monkeypatch.setattr(user_segments, "transform", fail)
    mart(segments("('a', 'regular', 1, 0, 0)"), CROWD)

    with pytest.raises(SyncError, match="unexpected ValueError"):
        user_segments.sync()

    assert not select("SELECT FROM crm.user_segments")
    assert [run["status"] for run in select("SELECT status FROM etl.sync_runs")] == ["failed"]
    assert not select(f"{SESSIONS} AND state <> 'idle'")


@pytest.mark.parametrize("many", [3_000, 5_000_000])
def test_twins_are_rejected_also_where_the_mart_need_not_be_sorted(
    many: int, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    monkeypatch.setattr(order, "_HASHES", 2_048)
    monkeypatch.setattr(order, "_MANY_KEYS", many)
    mart(segments("('a', 'regular', 1, 0, 0)"), CROWD)
    user_segments.sync()
    mart("UPDATE mart_user_segments SET lifetime_searches = 2 WHERE user_id IN ('a', 'a5')")
    second = user_segments.sync()
    mart("UPDATE mart_user_segments SET user_id = 'a5' WHERE user_id = 'a9990'")
    third = user_segments.sync()

    assert (second["updated"], second["unchanged"], second["rejected"]) == (2, 9_998, 0)
    assert (third["updated"], third["unchanged"], third["rejected"]) == (0, 9_998, 2)
    assert third["extracted"] == 10_000


def test_two_users_whose_ids_have_one_hash_are_two(mart: Mart) -> None:
    """Anybody can choose such ids, for DuckDB's hash has no secret."""
    twins = "dle4ao2h000a", "o0z9vhsx5eow"
    with duckdb.connect() as connection:
        assert len(set(connection.execute("SELECT hash($1), hash($2)", twins).fetchall()[0])) == 1
    rows = ", ".join(f"('{each}', 'regular', 1, 0, 0)" for each in (twins[0], "between", twins[1]))
    mart(segments(rows))

    assert user_segments.sync()["inserted"] == 3
    assert user_segments.sync()["unchanged"] == 3


def test_the_target_is_read_back_only_where_that_pays(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = postgres.stream, []

    def noted(*arguments: Any) -> Any:
        reads.append(arguments)
        return read(*arguments)

    def reads_of_a_run(**options: Any) -> int:
        reads.clear()
        assert user_segments.sync(**options)["status"] == "ok"
        return len(reads)

    monkeypatch.setattr(postgres, "stream", noted)
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))

    assert reads_of_a_run() == 0  # nothing is there
    assert reads_of_a_run() == 1
    assert reads_of_a_run(shard=(0, 2)) == 0  # the server would have to hash every key
    assert reads_of_a_run(shard=(0, 2), delete_missing=True) == 1  # to see who is missing
    execute(
        "INSERT INTO crm.user_segments SELECT 'old' || n, 'regular', 1, 0, 0"
        " FROM generate_series(1, 10) AS n",
        "ANALYZE crm.user_segments",
    )
    assert reads_of_a_run() == 0  # most of it left the mart long ago


ROW = st.tuples(
    st.sampled_from(["a", "b", "ä", "a b"]),
    st.sampled_from(["x", "y"]),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([Decimal("0.00"), Decimal("0.01"), Decimal("999999999999.99")]),
)
ROWS = st.lists(ROW, max_size=5, unique_by=lambda row: row[0])


@settings(deadline=None, max_examples=examples(10, 30))
@given(ROWS, ROWS)
def test_only_what_the_target_does_not_hold_just_so_differs(
    wanted: list[Any], held: list[Any]
) -> None:
    in_postgres = frame(held).with_columns(pl.col("lifetime_value").cast(pl.Float64))
    with tempfile.TemporaryDirectory() as folder:
        rows = spool(frame(wanted).sort("user_id"), Path(folder, "rows"))
        target = spool(in_postgres, Path(folder, "target"))

        with warehouse.differing(rows, target) as batches:
            differing = pl.DataFrame(pl.from_arrow(batches.read_all()))

    assert differing.rows() == sorted(row for row in wanted if row not in held)


def test_any_number_of_rows_that_all_differ_are_found_in_the_same_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the key: to join them, and then to sort what was found, takes no more."""
    monkeypatch.setattr(compare, "_JOIN_BYTES", 60_000_000)
    numbers = pl.int_range(1_000_000, eager=True)
    ids = "a user of a long name " + numbers.cast(pl.String).str.zfill(9)
    rows = spool(pl.DataFrame({"user_id": ids, "searches": numbers}), tmp_path / "rows")
    target = spool(pl.DataFrame({"user_id": ids, "searches": -1}), tmp_path / "target")

    with warehouse.differing(rows, target) as batches:
        found = pl.concat([pl.DataFrame(pl.from_arrow(batch)) for batch in batches])

    assert found["searches"].equals(numbers)


def test_a_target_without_a_column_is_no_fault_of_the_temporary_folder(tmp_path: Path) -> None:
    rows = spool(frame([("a", "x", 1, 1, Decimal(1))]), tmp_path / "rows")
    target = spool(pl.DataFrame({"user_id": ["a"]}), tmp_path / "target")

    with pytest.raises(SyncError) as failed, warehouse.differing(rows, target):
        pass

    said = str(failed.value)
    assert re.match(r'sql/warehouse/anti_join.sql: Binder Error: Column "segment"', said)
    assert "compare what transform returns with the statements of sql/postgres" in said
    assert "folder" not in said


def spool(rows: pl.DataFrame, path: Path) -> warehouse.Spool:
    return warehouse.write(warehouse.to_batches([rows]), path, ["user_id"])


def frame(rows: list[Any]) -> pl.DataFrame:
    """Rows as `transform` returns them."""
    counts = {"total_searches": pl.Int64, "total_conversions": pl.Int64}
    schema = {"user_id": pl.String, "segment": pl.String, **counts}
    return pl.DataFrame(rows, {**schema, "lifetime_value": pl.Decimal(14, 2)}, orient="row")
