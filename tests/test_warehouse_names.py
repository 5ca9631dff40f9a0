"""DuckDB's own rules: whatever the file is called, in whatever case its columns are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import duckdb
import pytest
from conftest import segments
from fixture_types import Failing, Mart, OwnQuery, Select

from etl import email_triggers, recommendations, user_segments
from etl.errors import SyncError

ONE_USER = segments("('a', 'at_risk', 3, 1, 9.5)")

READ = "SELECT user_id, segment, 1 AS total_searches, 1 AS total_conversions, 1 AS lifetime_value"

RECOMMENDED = (
    "CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Rome' AS destination,"
    " 0.9 AS score, now() AS generated_at"
)


class Renamed(Protocol):
    """Make a warehouse with these statements, then give its file another name."""

    def __call__(self, stem: str, *statements: str) -> None: ...


@pytest.fixture
def renamed(mart: Mart, environment: Path, monkeypatch: pytest.MonkeyPatch) -> Renamed:
    """Make a warehouse, then give its file another name: `renamed("marts", "CREATE ...")`."""

    def make(stem: str, *statements: str) -> None:
        mart(*statements)
        path = environment.rename(environment.with_name(f"{stem}.duckdb"))
        monkeypatch.setenv("DUCKDB_PATH", str(path))

    return make


@pytest.mark.few(2)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "name", ["marts", "MARTS", "temp", "system", "memory", "a.b", "two words", "a,b", "q'uo\"te"]
)
def test_a_file_may_be_named_like_its_schema(
    renamed: Renamed, monkeypatch: pytest.MonkeyPatch, name: str, named: bool
) -> None:
    schema = '"{}"'.format(name.replace('"', '""').lower())
    renamed(
        name,
        f"CREATE SCHEMA {schema}",
        ONE_USER.replace("mart_user", f"warehouse.{schema}.mart_user"),
        RECOMMENDED.replace("mart_reco", f"warehouse.{schema}.mart_reco"),
    )
    if named:
        monkeypatch.setenv("MART_SCHEMA", name)

    results = [each.sync() for each in (user_segments, email_triggers, recommendations)]

    assert [result["extracted"] for result in results] == [1, 1, 1]


@pytest.mark.few(2)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "stem",
    [
        *("mart_user_segments", "main", "information_schema", "pg_catalog", "duckdb_tables"),
        *(".hidden", "a.b.c", "user_id", "sämple", "select", "x" * 200),
    ],
)
def test_a_file_may_have_any_other_name(
    renamed: Renamed, monkeypatch: pytest.MonkeyPatch, stem: str, named: bool
) -> None:
    renamed(stem, ONE_USER)
    if named:
        monkeypatch.setenv("MART_SCHEMA", "main")

    assert user_segments.sync()["inserted"] == 1


def test_what_is_ambiguous_in_a_query_is_told_with_the_way_out(
    renamed: Renamed, own_query: OwnQuery
) -> None:
    renamed("marts", "CREATE SCHEMA marts", ONE_USER.replace(" mart_user", " marts.mart_user"))
    own_query(f"{READ}, segmented_at AS built_at FROM marts.mart_user_segments")

    with pytest.raises(SyncError, match=r"write the catalog too \(marts.marts.<table>\)") as raised:
        user_segments.sync()
    own_query(f"{READ}, segmented_at AS built_at FROM marts.marts.mart_user_segments")

    assert "\n" not in str(raised.value)
    assert user_segments.sync()["inserted"] == 1


@pytest.mark.parametrize("stem", ["warehouse", "marketing"])
def test_views_over_views_of_several_schemas_are_read(renamed: Renamed, stem: str) -> None:
    renamed(
        stem,
        "CREATE SCHEMA dev; CREATE SCHEMA staging; CREATE SCHEMA marketing_marts",
        ONE_USER.replace("mart_user_segments", "staging.base"),
        "CREATE TABLE dev.base AS SELECT 'of dev' AS user_id",
        "USE staging; CREATE VIEW users AS FROM base",
        "CREATE VIEW marketing_marts.mart_user_segments AS FROM staging.users",
    )

    assert user_segments.sync()["inserted"] == 1


# Columns in any case


@pytest.mark.few(1)
@pytest.mark.parametrize("change", [str.upper, str.title, str.swapcase])
def test_columns_may_be_written_in_any_case(
    mart: Mart, select: Select, change: Callable[[str], str]
) -> None:
    mart(ONE_USER.replace("now() - INTERVAL 40 DAY", "now()"), RECOMMENDED)
    with duckdb.connect(os.environ["DUCKDB_PATH"]) as connection:
        for table in ("mart_user_segments", "mart_recommendations"):
            for name in connection.table(table).columns:
                connection.execute(f'ALTER TABLE {table} RENAME {name} TO "x"')
                connection.execute(f'ALTER TABLE {table} RENAME x TO "{change(name)}"')

    results = [each.sync() for each in (user_segments, email_triggers, recommendations)]

    assert [result["rejected"] for result in results] == [0, 0, 0]
    assert [result["extracted"] for result in results] == [1, 1, 1]
    assert select(
        "SELECT user_id, segment, total_searches, lifetime_value FROM crm.user_segments"
    ) == [{"user_id": "a", "segment": "at_risk", "total_searches": 3, "lifetime_value": "9.50"}]
    # The visit was seen: without one the episode would be of the year 9999.
    assert select("SELECT user_id FROM crm.email_queue WHERE episode_at < now()") == [
        {"user_id": "a"}
    ]


def test_a_missing_and_a_doubled_column_are_told_in_any_case(failing: Failing) -> None:
    error = failing(
        'ALTER TABLE mart_user_segments ADD COLUMN "Total_Searches" BIGINT DEFAULT 7',
        'ALTER TABLE mart_user_segments RENAME user_id TO "Id"',
    )

    assert str(error).startswith(
        "the mart has no column user_id;"
        " it has both lifetime_searches and Total_Searches, of which one must go; it has Id, "
    )


def test_an_own_query_may_return_columns_in_any_case(mart: Mart, own_query: OwnQuery) -> None:
    mart(ONE_USER)
    own_query(
        READ.replace("user_id", "user_id AS USER_ID")
        + ", NULL AS Built_At FROM main.mart_user_segments"
    )

    assert user_segments.sync()["inserted"] == 1


def test_an_own_query_that_asks_for_names_in_one_case_is_told_what_there_is(
    failing: Failing, own_query: OwnQuery
) -> None:
    sql = "SELECT COLUMNS('^(user_id)$') AS user_id FROM mart_user_segments"
    error = failing(
        'ALTER TABLE mart_user_segments RENAME user_id TO "User_ID"', lambda _: own_query(sql)
    )

    assert str(error).startswith("the mart has no column user_id; it has User_ID, segment,")
