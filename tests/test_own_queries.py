"""A team's own queries in ETL_SQL_DIR: found, read as they are, and told when they cannot be."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import as_nobody, segments
from fixture_types import Failing, Mart, OwnQuery, Select

from etl import user_segments
from etl.errors import SyncError, UsageError
from etl.settings import Settings
from etl.warehouse import marts

ONE_USER = segments("('a', 'regular', 3, 1, 9.5)")

READ = (
    "SELECT user_id, segment, 1 AS total_searches, 1 AS total_conversions, 1 AS lifetime_value,"
    " segmented_at AS built_at FROM mart_user_segments"
)


def test_a_query_in_etl_sql_dir_comes_first(
    mart: Mart, select: Select, own_query: OwnQuery
) -> None:
    mart("CREATE SCHEMA crm", "CREATE TABLE crm.people AS SELECT 'a' AS id, 'vip' AS tier")
    own_query(
        "SELECT id AS user_id, tier AS segment, 1 AS total_searches, 2 AS total_conversions,"
        " 3 AS lifetime_value, NULL AS built_at FROM people -- not in the schema. people"
    )

    user_segments.sync()

    assert select("SELECT user_id, segment, total_searches::int AS n FROM crm.user_segments") == [
        {"user_id": "a", "segment": "vip", "n": 1}
    ]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("people JOIN tiers USING (user_id)", id="bare names"),
        pytest.param("people JOIN people_tiers.tiers USING (user_id)", id="one with its schema"),
        pytest.param("(FROM WAREHOUSE.PEOPLE.PEOPLE) JOIN Tiers USING (user_id)", id="any case"),
        pytest.param(
            "(WITH people AS (FROM people.people) FROM people) JOIN tiers USING (user_id)",
            id="a step named like its table",
        ),
    ],
)
def test_a_query_may_read_tables_of_several_schemas(
    mart: Mart, own_query: OwnQuery, source: str
) -> None:
    mart(
        "CREATE SCHEMA people; CREATE TABLE people.people AS SELECT 'a' AS user_id",
        "CREATE SCHEMA people_tiers; CREATE TABLE people_tiers.tiers AS"
        " SELECT 'a' AS user_id, 'vip' AS segment",
    )
    own_query(
        "SELECT user_id, segment, 1 AS total_searches, 2 AS total_conversions,"
        f" 3 AS lifetime_value, NULL AS built_at FROM {source}"
    )

    assert user_segments.sync()["inserted"] == 1


def test_a_mart_is_known_behind_a_step_of_its_name(failing: Failing, own_query: OwnQuery) -> None:
    sql = (
        "WITH mart_user_segments AS (FROM main.mart_user_segments)"
        " SELECT COLUMNS('^(user_id)$'), COLUMNS('^(tier|level)$') FROM mart_user_segments"
    )
    error = failing(lambda _: own_query(sql))

    assert str(error).startswith("the mart has no column tier or level; it has user_id, segment,")


@pytest.mark.parametrize("sql", ["", "-- nothing yet"])
def test_a_query_without_rows_to_read_is_told(
    failing: Failing, own_query: OwnQuery, sql: str
) -> None:
    error = failing(lambda _: own_query(sql))

    assert str(error) == (
        f"{own_query(sql)}: does not end in a SELECT; write one that returns the rows"
    )


def test_a_query_must_return_each_column_once(failing: Failing, own_query: OwnQuery) -> None:
    sql = (
        "SELECT user_id, 'x' AS segment, segmented_at AS built_at,"
        " COLUMNS('^(total_searches|lifetime_searches)$') AS total_searches"
        " FROM mart_user_segments CROSS JOIN more"
    )
    error = failing("CREATE TABLE more AS SELECT 7 AS total_searches", lambda _: own_query(sql))

    assert str(error) == (
        f"{own_query(sql)}: total_searches comes more than once; total_conversions is missing;"
        " lifetime_value is missing; correct the mart or cast in that file"
    )


def test_what_to_write_for_a_column_that_may_be_null_is_told(
    failing: Failing, own_query: OwnQuery
) -> None:
    sql = READ.replace(", segmented_at AS built_at", "")

    error = failing(lambda _: own_query(sql))

    assert str(error) == (
        f"{own_query(sql)}: built_at is missing (NULL AS built_at where the mart has none);"
        " correct the mart or cast in that file"
    )


def test_a_query_that_is_not_sql_is_told(
    failing: Failing, own_query: OwnQuery, environment: Path
) -> None:
    sql = "SELEC user_id FROM mart_user_segments"
    error = failing(lambda _: own_query(sql))

    assert str(error) == (
        f'warehouse {environment}: Parser Error: syntax error at or near "SELEC";'
        f" correct {own_query(sql)} or the mart"
    )


def test_a_query_that_is_not_utf_8_is_told(failing: Failing, own_query: OwnQuery) -> None:
    error = failing(lambda _: own_query("").write_bytes(b"SELECT '\xe9'"))

    assert str(error).startswith(f"{own_query('')}: cannot be read (")
    assert str(error).endswith("); save it as UTF-8 text")


def test_a_folder_of_queries_that_is_not_there_is_a_wrong_setting(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failing(lambda _: monkeypatch.setenv("ETL_SQL_DIR", "/no/such/folder"))

    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert str(error) == "settings: ETL_SQL_DIR: /no/such/folder is not a folder"


def test_a_folder_without_this_sync_leaves_the_shipped_query(
    mart: Mart, own_query: OwnQuery
) -> None:
    mart(ONE_USER)
    own_query("SELECT nonsense").rename(own_query("").with_name("recommendations.sql"))

    assert user_segments.sync()["inserted"] == 1


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "wrap",
    [
        "{};",
        "{}; -- comment",
        "{}; -- one; two\n-- three\n",
        "{}; /* a */ ;\n\n; -- b;\n\n\n",
        "{} /* no end */",
        "{} -- ;",
        "-- first\n\n/* second; */ {}",
        "\ufeff{};",
        "\ufeff-- first\n{}",
        "WITH mart AS ({}) FROM mart; -- last",
        "({}) -- ';",
        "  \n\t{}\r\n;\r\n",
        "SELECT * REPLACE ('; -- é' AS segment) FROM ({}); -- é;",
    ],
)
def test_a_query_may_begin_and_end_as_its_author_likes(
    mart: Mart, own_query: OwnQuery, wrap: str
) -> None:
    mart(ONE_USER)
    own_query(wrap.format(READ))

    assert user_segments.sync()["inserted"] == 1


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SET threads = 1; {}", "has 2 statements; write one SELECT"),
        ("{}; {};", "has 2 statements; write one SELECT"),
        ("; -- nothing", "does not end in a SELECT; write one that returns the rows"),
        ("DROP TABLE mart_user_segments", "does not end in a SELECT; write one that returns"),
        ("PIVOT mart_user_segments ON segment USING count(*)", "has a PIVOT without its values"),
    ],
)
def test_what_is_not_one_select_is_told(
    failing: Failing, own_query: OwnQuery, sql: str, problem: str
) -> None:
    error = failing(lambda _: own_query(sql.format(READ, READ)))

    assert str(error).startswith(f"{own_query('')}: {problem}")


# What is no readable file


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "is not a file, nor a link to one"),
        (Path.mkdir, "is not a file, nor a link to one"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file, nor a link to one"),
        (lambda path: path.symlink_to("/no/such/file"), "is not a file, nor a link to one"),
        (lambda path: path.symlink_to(path), "is not a file, nor a link to one"),
        (lambda path: path.symlink_to(path.parent), "is not a file, nor a link to one"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "is not a file, nor a link"),
        (lambda path: grow(path, 2**30), "is larger than 1,000,000 bytes"),
        (lambda path: grow(path, 1_000_001), "is larger than 1,000,000 bytes"),
    ],
    ids=["pipe", "folder", "device", "nowhere", "itself", "to a folder", "socket", "1 GB", "1 MB"],
)
def test_what_is_no_readable_query_is_told_at_once(
    failing: Failing,
    own_query: OwnQuery,
    make: Callable[[Path], object],
    problem: str,
) -> None:
    path = own_query("")
    path.unlink()
    begun = time.monotonic()

    error = failing(lambda _: make(path))

    assert str(error).startswith(f"{path}: {problem}")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_query_that_may_not_be_read_is_told(closed: str, environment: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "sql")
        folder.mkdir()
        path = folder / "user_segments.sql"
        path.write_text(READ)
        Path(name).chmod(0o755)
        (path if closed == "file" else folder).chmod(0)

        with as_nobody(), pytest.raises(SyncError, match="Permission denied") as raised:
            marts.load_query("user_segments", Settings(etl_sql_dir=str(folder)))
        folder.chmod(0o755)

    assert str(raised.value).startswith(f"{path}: ")


def test_a_query_may_read_a_file_beside_the_warehouse(
    mart: Mart, environment: Path, own_query: OwnQuery
) -> None:
    mart(ONE_USER, f"COPY mart_user_segments TO '{environment.parent}/seg.parquet'")
    mart("DROP TABLE mart_user_segments")
    own_query(READ.replace("mart_user_segments", "'seg.parquet'"))

    assert user_segments.sync()["inserted"] == 1


def grow(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)
