"""The warehouse: what cannot be read is said in one line, and the destination stays as it was."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from conftest import as_nobody, command, results, segments
from fixture_types import Failing, Mart, OwnQuery, Select
from marts import opened

from etl import recommendations, user_segments, warehouse
from etl.errors import Refused, SyncError
from etl.settings import Settings
from etl.user_segments import UserSegment
from etl.warehouse import file, stream

ONE_USER = segments("('a', 'regular', 3, 1, 9.5)")


# The file


def test_a_missing_file_is_named(failing: Failing, environment: Path) -> None:
    error = failing(Path.unlink)

    assert str(error) == f"warehouse {environment}: no such file; run dbt, or set DUCKDB_PATH"
    assert (error.exit_code, error.status) == (1, "failed")


def test_a_folder_is_no_warehouse(failing: Failing, environment: Path) -> None:
    error = failing(Path.unlink, Path.mkdir)

    assert str(error) == (
        f"warehouse {environment}: is a folder; set DUCKDB_PATH to the file in it"
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_text("user_id,segment\n" * 1000), id="text"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(
            lambda path: (path.unlink(), sqlite3.connect(path).execute("CREATE TABLE t (x)")),
            id="SQLite",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_at_once(
    failing: Failing, environment: Path, make: Callable[[Path], object]
) -> None:
    error = failing(make)

    assert str(error) == (
        f"warehouse {environment}: not a DuckDB file; set DUCKDB_PATH to the file dbt writes"
    )


def test_a_pipe_is_not_waited_for(failing: Failing, environment: Path) -> None:
    error = failing(Path.unlink, os.mkfifo)

    assert str(error).startswith(f"warehouse {environment}: not a DuckDB file;")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: overwrite(path, 0, b"\xff" * 8), id="checksum of the header"),
        pytest.param(lambda path: overwrite(path, 4096, noise(8192)), id="both headers"),
        pytest.param(lambda path: overwrite(path, 12_288 + 64, noise(4096)), id="first block"),
        pytest.param(lambda path: os.truncate(path, 100), id="cut in the header"),
        pytest.param(lambda path: os.truncate(path, 12_288), id="cut after the header"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size - 500), id="cut short"),
    ],
)
def test_a_damaged_file_is_called_so(
    failing: Failing, environment: Path, spoil: Callable[[Path], object]
) -> None:
    error = failing(spoil)

    assert str(error) == f"warehouse {environment}: damaged; restore it or let dbt build it anew"


def test_damage_in_the_data_is_found_while_reading(failing: Failing, environment: Path) -> None:
    error = failing(
        "CREATE OR REPLACE TABLE mart_user_segments AS SELECT md5(n::VARCHAR) AS user_id,"
        " md5((n + 1)::VARCHAR) AS segment, n AS total_searches, n AS total_conversions,"
        " n AS lifetime_value FROM range(200_000) AS r(n)",
        lambda path: overwrite(path, path.stat().st_size // 2, noise(1000)),
    )

    assert str(error) == f"warehouse {environment}: damaged; restore it or let dbt build it anew"


@pytest.mark.parametrize(
    ("version", "meaning"),
    [
        (1000, "written by a newer DuckDB; upgrade the duckdb package of this service"),
        (
            51,
            "written by DuckDB version v0.8.0 or v0.8.1, which is too old; let dbt build it anew",
        ),
    ],
)
def test_a_file_of_another_storage_version_is_called_so(
    failing: Failing, environment: Path, version: int, meaning: str
) -> None:
    error = failing(lambda path: stamp(path, version))

    assert str(error) == f"warehouse {environment}: {meaning}"


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_called_so(closed: str, environment: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "dbt")
        folder.mkdir()
        path = folder / "warehouse.duckdb"
        duckdb.connect(path).close()
        for place in (Path(name), folder):
            place.chmod(0o755)
        (path if closed == "file" else folder).chmod(0)

        with as_nobody(), pytest.raises(SyncError) as raised:
            warehouse.read("user_segments", UserSegment, Settings(duckdb_path=str(path)))
        folder.chmod(0o755)

    assert str(raised.value) == (
        f"warehouse {path}: Permission denied; let the user that runs the sync read it"
    )


def test_a_writer_that_holds_the_file_is_named(
    failing: Failing, environment: Path, select: Select
) -> None:
    with contextlib.ExitStack() as stack:
        error = failing(lambda path: stack.enter_context(writer(path)))
        seen = command("etl.user_segments", "--json")

    assert str(error).startswith(f"warehouse {environment}: locked by a writer, ")
    assert str(error).endswith("); run again when dbt is done")
    assert "(PID " in str(error)
    assert seen.returncode == 1
    assert "locked by a writer" in results(seen)[0]["error"]
    assert user_segments.sync()["inserted"] == 1


def test_a_connection_of_this_process_is_told_from_damage(
    failing: Failing, environment: Path
) -> None:
    with contextlib.ExitStack() as stack:
        error = failing(lambda path: stack.enter_context(duckdb.connect(path)))

    assert str(error) == (
        f"warehouse {environment}: is open in this very process; close that connection first"
    )


@pytest.mark.parametrize("spoil", ["", "ALTER TABLE mart_user_segments DROP segment"])
def test_dbt_can_write_as_soon_as_the_read_is_over(
    mart: Mart, environment: Path, spoil: str
) -> None:
    mart(ONE_USER, spoil)

    outcome: object
    try:
        outcome = warehouse.read("user_segments", UserSegment, Settings.from_environment())
    except SyncError as error:
        outcome = error

    assert isinstance(outcome, SyncError) is bool(spoil)
    with writer(environment):
        pass


def test_a_run_that_is_stopped_between_two_batches_lets_go_of_the_file(
    mart: Mart, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(batches: warehouse.Batches, *_: Any) -> None:
        next(iter(batches))
        raise KeyboardInterrupt

    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    monkeypatch.setattr(warehouse, "write", stopped)

    with pytest.raises(KeyboardInterrupt) as kept:  # traceback, frames and all
        user_segments.sync()

    with writer(environment):
        assert kept.tb


# The mart


def test_a_mart_that_is_nowhere_is_named(failing: Failing) -> None:
    error = failing("DROP TABLE mart_user_segments")

    assert str(error) == (
        "mart_user_segments (sql/warehouse/user_segments.sql) is in no schema of the warehouse;"
        " run dbt, or correct DUCKDB_PATH"
    )


def test_a_mart_in_two_schemas_needs_a_choice(
    failing: Failing, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failing(
        "CREATE SCHEMA dev_marketing; CREATE TABLE dev_marketing.mart_user_segments AS"
        " FROM main.mart_user_segments; UPDATE main.mart_user_segments SET segment = 'of_main'"
    )
    monkeypatch.setenv("MART_SCHEMA", "Main")
    result = user_segments.sync()

    assert str(error) == (
        "mart_user_segments (sql/warehouse/user_segments.sql) is in several schemas:"
        " dev_marketing, main; set MART_SCHEMA to the right one"
    )
    assert result["inserted"] == 1
    assert select("SELECT segment FROM crm.user_segments WHERE user_id = 'a'") == [
        {"segment": "of_main"}
    ]


def test_a_schema_without_the_mart_is_named_with_those_that_have_it(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failing(lambda _: monkeypatch.setenv("MART_SCHEMA", "marketing"))

    assert str(error) == (
        "mart_user_segments (sql/warehouse/user_segments.sql) is not in schema marketing but in"
        " main; correct MART_SCHEMA"
    )


@pytest.mark.few(2)
@pytest.mark.parametrize("schema", ['a.b"c', "main_marketing", "two words, a comma", "Ünïcode'"])
@pytest.mark.parametrize("named", [True, False])
def test_a_schema_may_have_any_name(
    mart: Mart, monkeypatch: pytest.MonkeyPatch, schema: str, named: bool
) -> None:
    quoted = '"' + schema.replace('"', '""') + '"'
    mart(
        f"CREATE SCHEMA {quoted}",
        ONE_USER.replace("TABLE mart_user_segments", f"TABLE {quoted}.mart_user_segments"),
    )
    if named:
        monkeypatch.setenv("MART_SCHEMA", schema)

    assert user_segments.sync()["inserted"] == 1


def test_a_mart_may_be_a_view(mart: Mart) -> None:
    mart(
        ONE_USER,
        "ALTER TABLE mart_user_segments RENAME TO stg_users",
        "CREATE SCHEMA marketing",
        "CREATE VIEW marketing.mart_user_segments AS FROM main.stg_users",
    )

    assert user_segments.sync()["inserted"] == 1


def test_a_view_on_another_database_names_it(failing: Failing, environment: Path) -> None:
    other = environment.with_name("other.duckdb")
    error = failing(
        f"ATTACH '{other}'; CREATE TABLE other.stg_users AS FROM mart_user_segments;"
        " DROP TABLE mart_user_segments;"
        " CREATE VIEW mart_user_segments AS FROM other.main.stg_users",
    )

    assert str(error) == (
        f"warehouse {environment}: a view reads from a database called other; if that is this"
        " file, name it other.duckdb as dbt knows it, else make the mart a table"
    )


def test_every_missing_column_is_named_with_both_its_names(failing: Failing) -> None:
    error = failing(
        "CREATE OR REPLACE TABLE mart_user_segments AS"
        " SELECT 'a' AS user_id, 1 AS searches, 2 AS lifetime_conversions"
    )

    assert str(error) == (
        "the mart has no column segment;"
        " it has no column total_searches or lifetime_searches;"
        " it has no column lifetime_value or lifetime_revenue;"
        " it has user_id, searches, lifetime_conversions;"
        " map the names in sql/warehouse/user_segments.sql"
    )


def test_both_names_of_a_pair_are_one_too_many(failing: Failing) -> None:
    error = failing("ALTER TABLE mart_user_segments ADD COLUMN total_searches BIGINT DEFAULT 7")

    assert str(error).startswith(
        "the mart has both lifetime_searches and total_searches, of which one must go; it has"
    )


def test_every_column_of_a_type_that_cannot_serve_is_named(failing: Failing) -> None:
    error = failing(
        "CREATE OR REPLACE TABLE mart_user_segments AS SELECT 1 AS user_id, ['x'] AS segment,"
        " '3' AS total_searches, true AS total_conversions, {'eur': 5} AS lifetime_value,"
        " 'today' AS segmented_at"
    )

    assert str(error) == (
        "sql/warehouse/user_segments.sql: user_id is INTEGER, which is not text;"
        " segment is VARCHAR[], which is not text;"
        " total_searches is VARCHAR, which is not a number;"
        " total_conversions is BOOLEAN, which is not a number;"
        " lifetime_value is STRUCT(eur INTEGER), which is not a number;"
        " built_at is VARCHAR, which is not a timestamp;"
        " correct the mart or cast in that file"
    )


def test_recommendations_know_their_own_names(mart: Mart, keys: Any) -> None:
    mart("CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, true AS rank")

    with pytest.raises(SyncError) as raised:
        recommendations.sync()

    assert str(raised.value).startswith(
        "the mart has no column recommended_destination or destination;"
        " it has no column recommendation_score or score; it has user_id, rank; map"
    )
    assert keys.dbsize() == 0


def test_an_empty_mart_is_refused(failing: Failing, mart: Mart) -> None:
    error = failing("DELETE FROM mart_user_segments")
    seen = command("etl.user_segments")

    assert isinstance(error, Refused)
    assert str(error).startswith("empty: the mart has no rows")
    assert seen.returncode == 3


def test_whatever_duckdb_says_is_told_in_its_first_line_with_where_to_look(
    failing: Failing, environment: Path
) -> None:
    error = failing(
        "ALTER TABLE mart_user_segments RENAME TO stg",
        "CREATE VIEW mart_user_segments AS"
        " SELECT * REPLACE (error('no rate for EUR\nin stg') AS segment) FROM stg",
    )

    assert str(error) == (
        f"warehouse {environment}: Invalid Input Error: no rate for EUR;"
        " correct sql/warehouse/user_segments.sql or the mart"
    )


# Shards


@pytest.mark.parametrize("id_type", ["VARCHAR", "ENUM ('a', 'b', 'c', 'd', 'ü')"])
def test_shards_part_the_mart_and_know_the_whole(
    mart: Mart, environment: Path, id_type: str
) -> None:
    mart(
        "CREATE TABLE mart_user_segments AS"
        f" SELECT id::{id_type} AS user_id, 'regular' AS segment, 1 AS total_searches,"
        " 1 AS total_conversions, 1 AS lifetime_value, built AS segmented_at FROM (VALUES"
        " ('a', TIMESTAMP '2026-01-01'), ('b', TIMESTAMP '2026-03-01'), ('c', 'infinity'),"
        " ('d', NULL), ('ü', NULL), (NULL, NULL)) AS v(id, built)"
    )

    shards = [opened(frames_and_stats, (index, 3)) for index in range(3)]

    ids = [user for frames, _ in shards for frame in frames for user in frame["user_id"]]
    assert sorted(map(str, ids)) == ["None", "a", "b", "c", "d", "ü"]
    assert max(sum(map(len, frames)) for frames, _ in shards) < 6
    newest = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    assert {stats for _, stats in shards} == {warehouse.Stats(6, newest)}


def test_batches_come_in_the_order_of_the_keys_with_all_rows_of_one_in_one(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Keys of all sorts, each twice, and rows without one.
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "UPDATE mart_user_segments SET user_id = NULL",
        "INSERT INTO mart_user_segments BY NAME SELECT * EXCLUDE (n, range) REPLACE ("
        " CASE n % 3 WHEN 0 THEN 'u' || n WHEN 1 THEN chr(n::INT + 32)"
        " ELSE chr(128512 + n::INT) END AS user_id)"
        " FROM mart_user_segments, range(5000) AS r(n), range(3)",
    )
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)

    frames, _ = opened(frames_and_stats)

    keys = [frame["user_id"].drop_nulls().unique(maintain_order=True) for frame in frames]
    assert len(keys) > 5
    assert sum(map(len, keys)) == pl.concat(keys).n_unique() == 5_000
    encoded = [key.encode() for each in keys for key in each]
    assert encoded == sorted(encoded)
    assert sum(map(len, frames)) == 15_001


def test_a_key_of_more_rows_than_a_batch_stays_together(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments BY NAME SELECT * EXCLUDE n REPLACE ("
        " CASE WHEN n < 9000 THEN 'b' ELSE 'c' END AS user_id)"
        " FROM mart_user_segments, range(9002) AS r(n)",
    )
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)

    frames, _ = opened(frames_and_stats)

    assert [len(frame) for frame in frames if "b" in frame["user_id"]][:1] >= [9_000]
    assert sum("b" in frame["user_id"] for frame in frames) == 1
    assert sum(map(len, frames)) == 9_003


def test_a_collation_of_the_key_neither_doubles_nor_loses_users(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "ALTER TABLE mart_user_segments ALTER user_id TYPE VARCHAR COLLATE NOCASE",
        "INSERT INTO mart_user_segments BY NAME"
        " SELECT * EXCLUDE n REPLACE ((CASE n % 2 WHEN 0 THEN 'k' ELSE 'K' END || n) AS user_id)"
        " FROM mart_user_segments, range(5999) AS r(n)",
    )
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)

    result = user_segments.sync()

    assert (result["extracted"], result["rejected"], result["inserted"]) == (6_000, 0, 6_000)


def test_a_view_and_a_query_of_ones_own_are_computed_once(
    mart: Mart, own_query: OwnQuery, select: Select
) -> None:
    """Were they computed twice, a random number would differ from itself."""
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "ALTER TABLE mart_user_segments RENAME TO stg",
        "CREATE VIEW mart_user_segments AS SELECT * REPLACE ('u' || n AS user_id),"
        " (random() * 1e9)::BIGINT AS number FROM stg, range(100000) AS r(n)",
    )
    own_query(
        "SELECT user_id, number::VARCHAR AS segment, number AS total_searches,"
        " 1 AS total_conversions, 1 AS lifetime_value, segmented_at AS built_at"
        " FROM mart_user_segments"
    )

    result = user_segments.sync()

    assert result["inserted"] == 100_000
    assert not select("SELECT FROM crm.user_segments WHERE segment <> total_searches::text LIMIT 1")


@pytest.mark.parametrize(
    ("as_what", "size", "allowed"),
    [
        ("TABLE", 1_000, (2, "90.5 MiB")),
        ("TABLE", 0, (1, "90.5 MiB")),
        ("VIEW", 1_000, (1, "133.5 MiB")),
    ],
)
def test_a_sort_has_few_threads_and_memory_by_its_bytes_however_many_cores_there_are(
    as_what: str,
    size: int,
    allowed: tuple[int, str],
    mart: Mart,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each thread takes memory: with 16 of them a sort in 120 MB ends at once."""
    made = segments("('b', 'regular', 1, 0, 0)").replace("mart_user_segments", "stg")
    mart(made, f"CREATE {as_what} mart_user_segments AS SELECT * FROM stg")
    monkeypatch.setattr(file, "_BYTES_OF_TWO_THREADS", size)

    def settings(mart: warehouse.Mart) -> object:
        names = ("threads", "memory_limit")
        asked = [duckdb.SQLExpression(f"current_setting('{name}')") for name in names]
        return mart.relation.select(*asked).fetchall()[0]

    assert opened(settings) == allowed


@pytest.mark.slow
def test_rows_are_sorted_in_little_memory_also_where_their_texts_are_long(mart: Mart) -> None:
    """An id of 12 characters is sorted in its place, a longer one takes memory of its own."""
    mart(
        segments("('b', 'regular', 1, 0, 0)"),
        "INSERT INTO mart_user_segments BY NAME"
        " SELECT * EXCLUDE n REPLACE (repeat(md5(n::VARCHAR), 4) AS user_id)"
        " FROM mart_user_segments, range(1_500_000) AS r(n)",
    )

    assert opened(lambda mart: sum(map(len, mart.frames()))) == 1_500_001


def test_a_mart_without_any_key_is_read(mart: Mart) -> None:
    mart(segments("(NULL, 'regular', 1, 0, 0), (NULL, 'regular', 2, 0, 0)"))

    frames, _ = opened(frames_and_stats)

    assert sum(map(len, frames)) == 2


def frames_and_stats(mart: warehouse.Mart) -> tuple[list[pl.DataFrame], warehouse.Stats | None]:
    return list(mart.frames()), mart.stats


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def stamp(path: Path, version: int) -> None:
    """Give a DuckDB file another storage version, under a checksum that is right."""
    header = bytearray(path.read_bytes()[:4096])
    header[12:20] = struct.pack("<Q", version)
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", header[8:]):
        checksum ^= (word * 0xBF58476D1CE4E5B9) % 2**64
    overwrite(path, 0, struct.pack("<Q", checksum) + header[8:])


@contextlib.contextmanager
def writer(path: Path) -> Iterator[None]:
    """Another process that holds the file open for writing, as dbt does."""
    script = f"import duckdb; c = duckdb.connect({str(path)!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
        process.communicate("\n")
