"""What the warehouse file holds cannot stand in for DuckDB's functions, or for macros of ours."""

from __future__ import annotations

import datetime as dt
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pytest
from conftest import ROOT, segments
from destinations import in_shards
from fixture_types import Mart, OwnQuery, Select, Sync

from etl import email_triggers, recommendations, user_segments, warehouse
from etl.email_triggers import EmailCandidate
from etl.recommendations import Recommendation
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    import dataframely as dy


# As DuckDB calls what is written between two values, and the brackets of a list.
OPERATORS = ("+", "-", "*", "/", "//", "%", "||", "->", "->>", "~~", "list_value", "array_extract")

# Functions of tables, whose stand-ins are macros of tables.
TABLES = ("json_tree", "duckdb_tables", "duckdb_views", "duckdb_schemas", "duckdb_databases")

SQL = sorted((ROOT / "sql" / "warehouse").glob("*.sql"))

ROWS = segments(
    "('a', 'at_risk', 3, 1, 9.5), ('b', 'regular', 99999999999999999999, 0, 1),"
    " ('C', 'new_user', 5, 2, 0), (NULL, 'regular', 1, 1, 1)"
)

RECOMMENDED = (
    "CREATE TABLE mart_recommendations AS SELECT 'u' || n AS user_id, 'Rome' AS destination,"
    " 0.9::DOUBLE AS score, 1.0::DOUBLE AS rank, current_date::TIMESTAMP AS generated_at"
    " FROM range(9) AS r(n)"
)

SYNCS: dict[str, tuple[Sync, type[dy.Schema]]] = {
    "user_segments": (user_segments.sync, UserSegment),
    "email_triggers": (email_triggers.sync, EmailCandidate),
    "recommendations": (recommendations.sync, Recommendation),
}


def functions() -> list[str]:
    """Every function that our SQL and our expressions call, macros of ours among them."""
    code = "\n".join(re.sub(r"--.*", "", path.read_text()) for path in SQL)
    built = "\n".join(path.read_text() for path in (ROOT / "etl").rglob("*.py"))
    found = set(re.findall(r"\b([a-z_]\w*)\(", code))
    found |= set(re.findall(r'(?:FunctionExpression|_macro)\("(\w+)"', built))
    return sorted(found | set(TABLES))


def hijack(connection: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Define each of them otherwise, for any number of values."""
    for name in [*functions(), *OPERATORS]:
        quoted = f'{schema}."{name}"'
        made = "(a) AS 'stolen', (a, b) AS 'stolen', (a, b, c) AS 'stolen', () AS 'stolen'"
        if name in TABLES:
            made = "() AS TABLE (SELECT 'stolen' AS x), (a) AS TABLE (SELECT 'stolen' AS x)"
        connection.execute(f"CREATE MACRO {quoted}{made}")


@pytest.mark.parametrize(
    "name", ["md5", "epoch_us", "lower", "trunc", "list", "unnest", "as_whole"]
)
def test_the_functions_are_found(name: str) -> None:
    assert name in functions()


@pytest.mark.few(2)
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("shard", [(0, 1), (1, 3)])
@pytest.mark.parametrize("schema", ["main", "marketing"])
def test_macros_of_the_file_change_nothing(
    mart: Mart, environment: Path, sync: str, shard: tuple[int, int], schema: str
) -> None:
    mart(f"CREATE SCHEMA IF NOT EXISTS {schema}; USE {schema}; {ROWS}; {RECOMMENDED}")
    before = read(sync, shard)

    with duckdb.connect(environment) as connection:
        for each in {"main", schema}:
            hijack(connection, each)
    with duckdb.connect(environment, read_only=True) as connection:
        stolen = connection.execute("SELECT md5('a'), epoch_us(now()), 5 % 3").fetchall()

    assert stolen == [("stolen", "stolen", "stolen")]
    assert read(sync, shard) == before


@pytest.mark.few(1)
@pytest.mark.parametrize("sync", SYNCS)
def test_a_run_over_a_file_full_of_macros_is_the_run_without(
    mart: Mart, environment: Path, select: Select, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    run = SYNCS[sync][0]
    mart(f"{ROWS}; {RECOMMENDED}")
    run()

    with duckdb.connect(environment) as connection:
        hijack(connection, "main")
    again = in_shards(run, 2)

    assert (again["extracted"], again["rejected"]) == ((9, 0) if "reco" in sync else (4, 2))
    assert again.get("inserted") in (0, None)
    assert again.get("cancelled") in (0, None)


@pytest.mark.few(1)
@pytest.mark.parametrize("schema", ["main", "marketing"])
def test_types_tables_and_schemas_named_like_duckdbs_change_nothing(
    mart: Mart, environment: Path, schema: str
) -> None:
    mart(f"CREATE SCHEMA IF NOT EXISTS {schema}; USE {schema}; {ROWS}")
    before = read("user_segments", (0, 1))

    with duckdb.connect(environment) as connection:
        for name in ("bigint", "decimal", "timestamptz", "timestamp", "uinteger", "varchar"):
            with suppress(duckdb.Error):  # of `main` most are taken
                connection.execute(f"CREATE TYPE {schema}.{name} AS ENUM ('stolen')")
        for name in (*TABLES, "information_schema", "pg_catalog", "tables", "system", "temp"):
            connection.execute(f"CREATE VIEW {schema}.{name} AS SELECT 'stolen' AS table_name")
        connection.execute("CREATE SCHEMA system; CREATE SCHEMA temp")
        connection.execute("CREATE TABLE warehouse.system.tables AS SELECT 'stolen' AS table_name")

    assert read("user_segments", (0, 1)) == before


def test_a_macro_that_the_mart_itself_calls_is_the_teams_own(mart: Mart, select: Select) -> None:
    mart(
        ROWS.replace("mart_user_segments", "stg"),
        "DELETE FROM stg WHERE user_id IS NULL OR user_id = 'b'",
        "CREATE MACRO lower(x) AS x || '!'; CREATE MACRO own(x) AS lower(x) || '?'",
        "CREATE VIEW mart_user_segments AS SELECT * REPLACE (own(user_id) AS user_id) FROM stg",
    )

    user_segments.sync()

    assert select("SELECT user_id FROM crm.user_segments ORDER BY user_id") == [
        {"user_id": "C!?"},
        {"user_id": "a!?"},
    ]


def test_a_query_of_ones_own_may_call_macros_of_the_file(
    mart: Mart, select: Select, own_query: OwnQuery
) -> None:
    mart(ROWS, "CREATE MACRO own(x) AS x || '?'; CREATE MACRO lower(x) AS 'stolen'")
    own_query(
        "SELECT own(lower(user_id)) AS user_id, segment, 1 AS total_searches,"
        " 1 AS total_conversions, 1 AS lifetime_value, NULL AS built_at"
        " FROM mart_user_segments WHERE user_id = 'C'"
    )

    user_segments.sync()

    assert select("SELECT user_id FROM crm.user_segments") == [{"user_id": "c?"}]


def read(sync: str, shard: tuple[int, int]) -> tuple[Any, ...]:
    now, settings = dt.datetime.now(dt.UTC), Settings.from_environment()
    with (
        tempfile.TemporaryDirectory() as spill,
        warehouse.open_mart(
            sync, SYNCS[sync][1], settings, shard, spill=Path(spill), now=now
        ) as mart,
    ):
        rows = pl.concat(mart.frames(), how="diagonal").to_dicts()
        return sorted(rows, key=str), mart.source.columns, mart.stats
