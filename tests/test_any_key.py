"""A sync whose key has eight columns, none of them `user_id` and none of them text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl
import pytest
from destinations import execute, in_shards
from fixture_types import Mart, Select

from etl import postgres
from etl.errors import SyncError
from etl.options import Options
from etl.plumbing import queries
from etl.run import Run
from etl.run import execute as run_sync
from etl.syncs import BY_NAME, Sync
from etl.warehouse import keys

KEY = ("day", "at", "wall", "small", "big", "price", "ratio", "flag")
NAMES = ", ".join(KEY)
TEXT = " || '|' || ".join(f"etl.key_text(t.{name})" for name in KEY)
SAME = " AND ".join(f"t.{name} = s.{name}" for name in KEY)

TABLE = f"""
    CREATE TABLE crm.odd (
        day date, at timestamptz, wall timestamp, small smallint, big numeric(20), price numeric,
        ratio double precision, flag boolean, n int, PRIMARY KEY ({NAMES})
    )
"""
SQL = {
    "warehouse/odd": "FROM mart_odd",
    "postgres/odd": f"""
        WITH written AS (
            INSERT INTO crm.odd ({NAMES}, n) SELECT {NAMES}, n FROM pg_temp.staging
            ON CONFLICT ({NAMES}) DO UPDATE SET n = excluded.n RETURNING n
        )
        SELECT count(*) FILTER (WHERE n < 100) AS inserted, count(*) FILTER (WHERE n >= 100)
            AS updated, (SELECT count(*) FROM pg_temp.staging) - count(*) AS unwritten FROM written
    """,
    "postgres/odd_current": f"""
        SELECT t.* FROM crm.odd AS t, pg_temp.shard AS s
        WHERE s.shards = 1 OR etl.shard_of({TEXT}, s.shards) = s.index
    """,
    "postgres/odd_mirror": f"""
        WITH deleted AS (DELETE FROM crm.odd AS t USING pg_temp.gone AS s WHERE {SAME} RETURNING 1)
        SELECT count(*) AS deleted, (SELECT count(*) FROM pg_temp.gone) - count(*) AS unwritten
        FROM deleted
    """,
}

MART = """
    CREATE TABLE mart_odd AS
    SELECT
        DATE '2026-01-01' + (i % 7)::INTEGER AS day,
        TIMESTAMPTZ '2026-01-01 00:00:00.000001+02' + INTERVAL (i) HOUR AS at,
        TIMESTAMP '2026-01-01' - INTERVAL (i) MINUTE AS wall,
        (i % 3)::UTINYINT AS small,
        18446744073709551615::UHUGEINT - i::UHUGEINT AS big,
        (i / 4)::DECIMAL(10, 2) AS price,
        i / 3 - 1 AS ratio,
        i % 2 = 0 AS flag,
        i AS n,
        now() AS built_at
    FROM range(30) AS r(i)
"""


class Odd(dy.Schema):
    """Every kind of key that is no text."""

    day = dy.Date(primary_key=True)
    at = dy.Datetime(primary_key=True, time_unit="us", time_zone="UTC")
    wall = dy.Datetime(primary_key=True, time_unit="us")
    small = dy.Int16(primary_key=True)
    big = dy.UInt64(primary_key=True)
    price = dy.Decimal(14, 2, primary_key=True)
    ratio = dy.Float64(primary_key=True)
    flag = dy.Bool(primary_key=True)
    n = dy.Int32(nullable=False)
    built_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)


def sync(**options: Any) -> Any:
    return run_sync("odd", load, Options(**options))


def load(run: Run) -> None:
    reading = run.read_target("crm.odd", Odd)
    rows = run.read(Odd, lambda mart: mart.drop("built_at"))
    target = reading.result() if reading else None
    run.stage("staging", rows, target)
    merged = run.merge(postgres.Merge("odd", "crm.odd", frozenset({"inserted", "updated"})))
    run.count({**merged, "unchanged": rows.rows - sum(merged.values())})
    if target is not None and run.options.delete_missing:
        run.stage_missing("gone", target, rows)
        run.count(run.merge(postgres.Merge("odd_mirror", "crm.odd", frozenset({"deleted"}))))


@pytest.fixture(autouse=True)
def odd(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mart: Mart) -> None:
    root = tmp_path / "sql"
    shutil.copytree(queries.ROOT, root)
    for name, sql in SQL.items():
        (root / f"{name}.sql").write_text(sql)
    monkeypatch.setattr(queries, "ROOT", root)
    monkeypatch.setitem(BY_NAME, "odd", Sync("odd", flags=("delete_missing",)))
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    execute(TABLE)
    mart(MART)


@pytest.mark.few(1)
@pytest.mark.parametrize("shards", [1, 3])
def test_only_what_changed_is_written(mart: Mart, select: Select, shards: int) -> None:
    assert in_shards(sync, shards)["inserted"] == 30
    mart("UPDATE mart_odd SET n = 100 WHERE n IN (7, 8)")

    result = in_shards(sync, shards, delete_missing=True)

    # Where no target is read, the merge of this test writes everything.
    counts = [result[name] for name in ("inserted", "updated", "unchanged", "deleted", "rejected")]
    assert counts == [0, 2, 28, 0, 0]
    assert select("SELECT max(big)::text AS big FROM crm.odd") == [{"big": str(2**64 - 1)}]


@pytest.mark.few(1)
@pytest.mark.parametrize("shards", [1, 3])
def test_who_left_is_deleted_and_who_was_rejected_is_not(
    mart: Mart, select: Select, shards: int
) -> None:
    sync()
    twice = "INSERT INTO mart_odd FROM mart_odd WHERE n IN (10, 11)"
    bad = "UPDATE mart_odd SET n = NULL WHERE n IN (12, 13)"
    mart(
        "DELETE FROM mart_odd WHERE n < 5",
        twice,
        bad,
        "UPDATE mart_odd SET big = NULL WHERE n = 20",
    )

    result = in_shards(sync, shards, delete_missing=True, force=True)

    # Of the key that lost a column nobody knows whose row it is.
    assert (result["deleted"], result["rejected"], result["unchanged"]) == (6, 7, 20)
    left = {row["n"] for row in select("SELECT n FROM crm.odd")}
    assert left == set(range(30)) - {0, 1, 2, 3, 4, 20}


def test_a_rejected_row_is_known_by_the_text_of_its_key(mart: Mart, select: Select) -> None:
    mart("UPDATE mart_odd SET n = NULL WHERE n IN (6)")

    sync()

    (row,) = select("SELECT key, reasons FROM etl.rejected_rows")
    parts = ["2026-01-07", "2026-01-01T04:00:00.000001Z", "2025-12-31T23:54:00.000000", "0"]
    assert row["key"] == "|".join([*parts, str(2**64 - 7), "1.5", "3ff0000000000000", "true"])
    assert row["reasons"] == ["n:null"]


def test_all_rows_of_a_key_are_judged_together(monkeypatch: pytest.MonkeyPatch, mart: Mart) -> None:
    """Wherever DuckDB's batches end: each key comes three times."""
    rows = "FROM mart_odd, range(1_000), range(3) AS t(times) WHERE n = 3"
    mart(f"CREATE TABLE many AS SELECT mart_odd.* REPLACE (range AS ratio) {rows}")
    mart("DROP TABLE mart_odd", "ALTER TABLE many RENAME TO mart_odd")
    monkeypatch.setattr("etl.warehouse.stream.BATCH_ROWS", 2_048)

    result = sync(force=True)

    assert (result["inserted"], result["rejected"]) == (0, 3_000)


def test_a_transform_that_changes_the_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sync()

    def without_day(run: Run) -> None:
        reading = run.read_target("crm.odd", Odd)
        assert reading is not None
        rows = run.read(Odd, lambda mart: mart.with_columns(pl.col("day").cast(pl.String)))
        run.stage_missing("gone", reading.result(), rows)

    with pytest.raises(SyncError, match="the key's column day is large_string here and date32"):
        run_sync("odd", without_day, Options(delete_missing=True))


def test_a_column_that_the_query_of_the_target_forgot_is_named() -> None:
    sync()
    path = queries.ROOT / "postgres" / "odd_current.sql"
    path.write_text(path.read_text().replace("t.*", NAMES))

    with pytest.raises(SyncError, match=r"postgres/odd_current\.sql does not select n, of what"):
        sync()


def test_a_query_that_is_not_there_is_named() -> None:
    (queries.ROOT / "postgres" / "odd_mirror.sql").unlink()

    with pytest.raises(SyncError, match=r"sql/postgres/odd_mirror\.sql is not there; write it"):
        sync(delete_missing=True)


def test_the_text_of_a_key_with_a_null_is_none() -> None:
    assert keys.text(["a", None]) is None
