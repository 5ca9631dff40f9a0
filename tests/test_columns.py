"""A column of crm.user_segments stands in several places, which must name the same ones."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT, segments
from fixture_types import Mart, Select

from etl import email_triggers, postgres, recommendations, user_segments
from etl.email_triggers import EmailCandidate
from etl.recommendations import Recommendation
from etl.settings import Settings
from etl.user_segments import UserSegment

SQL = ROOT / "sql" / "postgres"

# Of the contract alone, and of the table alone.
BUILT_AT = {"built_at"}
MAINTAINED = {"previous_segment", "segment_changed_at", "synced_at"}


def test_contract_transform_merge_and_table_have_the_same_columns(
    mart: Mart, select: Select
) -> None:
    reshaped = user_segments.transform(UserSegment.create_empty())
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()
    table = select(
        "SELECT attname FROM pg_attribute"
        " WHERE attrelid = 'crm.user_segments'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    merge = (SQL / "user_segments.sql").read_text()
    inserted = re.findall(r"INSERT INTO crm\.user_segments[^(]*\(([^)]*)\)", merge)
    updated = re.findall(r"(\w+) = excluded\.(\w+)", merge)
    compared = re.findall(r"\((t\.[^)]*)\)\s+IS DISTINCT FROM\s+\((s\.[^)]*)\)", merge)
    (row,) = select("SELECT * FROM crm.user_segments")
    update = (SQL / "user_segments_update.sql").read_text()
    staged = re.findall(r"(\w+) = s\.(\w+)", update)
    differing = re.search(r"\((t\.[^)]*)\)\s+IS DISTINCT FROM\s+\((s\.[^)]*)\)", update)
    assert differing is not None
    first = (SQL / "user_segments_insert.sql").read_text()
    first_lists = re.search(r"\(([^)]*)\)\nSELECT ([^;]*?)\nFROM", first)
    assert first_lists is not None
    current = (SQL / "user_segments_current.sql").read_text()
    read_back = re.search(r"SELECT ([^;]*?)\nFROM", current)
    assert read_back is not None
    shown = (SQL / "user_segments_changes.sql").read_text()
    pairs = re.findall(
        r"s\.(\w+)(?: COLLATE \"C\")? IS DISTINCT FROM t\.(\w+)\s+THEN '(\w+)'", shown
    )

    altered = (SQL / "user_segments_altered.sql").read_text()
    sides = re.search(r"AND \((\s*t\.[^)]*)\)\s+IS NOT DISTINCT FROM\s+\((s\.[^)]*)\)", altered)
    assert sides is not None
    explained = re.search(
        r"SELECT\s+(.*?)\nFROM", (SQL / "explain_segment.sql").read_text(), re.DOTALL
    )
    assert explained is not None

    places = {
        "contract": set(UserSegment.column_names()) - BUILT_AT,
        "transform": set(reshaped.columns),
        "table": {each["attname"] for each in table} - MAINTAINED,
        "row": row.keys() - MAINTAINED,
        "user_segments_current.sql": {_name(one) for one in read_back[1].split(",")},
        "user_segments_changes.sql": {a for a, b, c in pairs if a == b == c} | {"user_id"},
        **{
            f"user_segments_insert.sql, {place}": {_name(one) for one in names.split(",")}
            for place, names in zip(("INSERT", "SELECT"), first_lists.groups(), strict=True)
        },
        "user_segments_update.sql, SET": {a for a, b in staged if a == b} | {"user_id"},
        **{
            f"user_segments_update.sql, comparison of {side[0]}": {
                _name(one.strip()[2:]) for one in side.split(",")
            }
            | {"user_id"}
            for side in differing.groups()
        },
        **{
            f"user_segments_altered.sql, comparison of {side.strip()[0]}": {
                _name(one.strip()[2:]) for one in side.split(",")
            }
            | {"user_id"}
            for side in sides.groups()
        },
        "explain_segment.sql": {_name(one) for one in explained[1].split(",")} - MAINTAINED,
        "user_segments.sql, SET": {a for a, b in updated if a == b} - MAINTAINED | {"user_id"},
        **{
            f"user_segments.sql, INSERT {number}": {_name(one) for one in names.split(",")}
            for number, names in enumerate(inserted)
        },
        **{
            f"user_segments.sql, comparison of {side[0]}": {
                _name(one.strip()[2:]) for one in side.split(",")
            }
            | {"user_id"}
            for side in compared[0]
        },
    }

    every = set.union(*places.values())
    missing = {place: every - names for place, names in places.items() if every - names}
    assert missing == {}
    assert len(inserted) == 2


@pytest.mark.parametrize(("kind", "looked_for"), [("text", 0), ("varchar(2)", 1)])
def test_users_are_looked_for_where_any_staged_column_may_be_stored_otherwise(
    environment: Path, kind: str, looked_for: int
) -> None:
    staged = (
        "CREATE TEMP TABLE staging AS SELECT t.*, 'go' AS nickname"
        " FROM (VALUES (1)) AS one LEFT JOIN crm.user_segments AS t ON true"
    )
    with postgres.session(Settings.from_environment(), "tests") as connection:
        postgres.execute(connection, staged)
        postgres.execute(connection, f"ALTER TABLE crm.user_segments ADD COLUMN nickname {kind}")
        (found,) = postgres.query(connection, "user_segments_altered")

    assert found["rows"] == looked_for


@pytest.mark.parametrize(
    ("sync", "schema", "mart_sql"),
    [
        (user_segments, UserSegment, segments("('a', 'x', 1, 0, 0)")),
        (email_triggers, EmailCandidate, segments("('a', 'x', 1, 0, 0)")),
        (
            recommendations,
            Recommendation,
            "CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'b' AS destination,"
            " 0.9 AS score",
        ),
    ],
    ids=["user_segments", "email_triggers", "recommendations"],
)
def test_the_query_of_a_mart_returns_the_columns_of_its_contract(
    sync: object, schema: type[UserSegment], mart_sql: str
) -> None:
    name = str(getattr(sync, "__name__", "")).removeprefix("etl.")
    query = (ROOT / "sql" / "warehouse" / f"{name}.sql").read_text()
    with duckdb.connect() as connection:
        connection.execute(mart_sql)
        columns = connection.sql(query).columns

    own = [name for name in columns if name in schema.column_names()]
    assert sorted(own) == sorted(schema.column_names())
    assert own == columns or sync is email_triggers  # which hands on what a payload may say


def _name(column: str) -> str:
    return re.split("::| COLLATE ", column.strip())[0]
