"""Marts of a few rows for the contracts, and what becomes of their rows."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from duckdb_files import written
from fixture_types import Select

from etl import warehouse
from etl.run import contract
from etl.run.contract import Rejects
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    from collections.abc import Callable

    import dataframely as dy


NAMES = "user_id, segment, lifetime_searches, lifetime_conversions, lifetime_value"


def users(*rows: str) -> str:
    """SQL for a mart of VALUES rows in the order of NAMES."""
    return f"CREATE TABLE mart_user_segments AS FROM (VALUES {', '.join(rows)}) AS v({NAMES})"


def user_with(**values: str) -> str:
    """SQL for a mart of two users: `bad` has these values, of whatever type; `good` is good."""
    good = {
        "user_id": "'good'",
        "segment": "'regular'",
        "lifetime_searches": "3",
        "lifetime_conversions": "1",
        "lifetime_value": "1",
    }
    bad = {**good, "user_id": "'bad'", **values}
    columns = ", ".join(f"{value} AS {name}" for name, value in bad.items())
    return (
        f"CREATE TABLE mart_user_segments AS SELECT {columns};"
        f" INSERT INTO mart_user_segments ({', '.join(good)}) SELECT {', '.join(good.values())}"
    )


def scores(*rows: str) -> str:
    """SQL for mart_recommendations of VALUES rows: user, destination, score, rank."""
    names = "user_id, destination, score, rank"
    return f"CREATE TABLE mart_recommendations AS FROM (VALUES {', '.join(rows)}) AS v({names})"


def accepted(
    schema: type[dy.Schema], mart: str, sync: str = "user_segments"
) -> tuple[pl.DataFrame, Rejects]:
    """Read a mart made by this SQL and apply the contract, without any server."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "warehouse.duckdb")
        with written(path) as connection:
            connection.execute(mart)
        frame = warehouse.read(sync, schema, Settings(duckdb_path=str(path)))
    validator = contract.Validator(schema, 100, dt.datetime.now(dt.UTC))
    return validator.valid_rows(frame), validator.rejects()


def kept_reasons(select: Select) -> dict[str | None, list[str]]:
    """What etl.rejected_rows holds: key -> reasons, sorted."""
    rows = select("SELECT key, reasons FROM etl.rejected_rows")
    return {row["key"]: sorted(row["reasons"]) for row in rows}


MANY = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT
        'user_' || u AS user_id, 'Destination ' || d AS recommended_destination,
        1.0 - d * 0.1 AS recommendation_score, d + 1 AS rank, now() AS generated_at
    FROM range({users}) AS u(u), range(2) AS d(d)
"""


def recommended(rows: str) -> str:
    """SQL for mart_recommendations with these VALUES rows: id, destination, score, rank."""
    return f"""
        CREATE OR REPLACE TABLE mart_recommendations AS
        SELECT
            user_id::VARCHAR AS user_id,
            recommended_destination::VARCHAR AS recommended_destination,
            recommendation_score::DOUBLE AS recommendation_score,
            7::BIGINT AS supporting_users,
            rank::BIGINT AS rank,
            now() AS generated_at
        FROM (VALUES {rows}) AS v(user_id, recommended_destination, recommendation_score, rank)
    """


def opened(
    look: Callable[[warehouse.Mart], Any],
    shard: tuple[int, int] = (0, 1),
    *,
    ordered: bool = True,
) -> Any:
    """What `look` sees of the mart of user_segments, whose file is open meanwhile."""
    now, settings = dt.datetime.now(dt.UTC), Settings.from_environment()
    with (
        tempfile.TemporaryDirectory() as spill,
        warehouse.open_mart(
            "user_segments",
            UserSegment,
            settings,
            shard,
            spill=Path(spill),
            now=now,
            ordered=ordered,
        ) as mart,
    ):
        return look(mart)
