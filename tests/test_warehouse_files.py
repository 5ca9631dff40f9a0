"""The warehouse beside other files: what views read, what is no warehouse, what a writer left."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import duckdb
import pytest
from conftest import command, segments
from fixture_types import Failing, Mart, OwnQuery

from etl import user_segments
from etl.errors import SyncError

ONE_USER = segments("('a', 'regular', 3, 1, 9.5)")


# Views over files


class Beside(Protocol):
    """Make a warehouse in a folder, with the mart as this view over a file."""

    def __call__(self, view: str, folder: str = "target") -> Path: ...


@pytest.fixture
def beside(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    """Make a warehouse in a folder, with the mart as a view over a file beside it."""

    def make(view: str, folder: str = "target") -> Path:
        home = tmp_path / folder
        (home / "data").mkdir(parents=True)
        monkeypatch.chdir(home)
        with duckdb.connect("dev.duckdb") as connection:
            connection.execute(ONE_USER)
            for name in ("seg.parquet", "seg.csv", "seg.json"):
                connection.execute(f"COPY mart_user_segments TO 'data/{name}'")
            connection.execute("DROP TABLE mart_user_segments")
            connection.execute(f"CREATE VIEW mart_user_segments AS {view}")
        monkeypatch.setenv("DUCKDB_PATH", str(home / "dev.duckdb"))
        monkeypatch.chdir("/")
        return home

    return make


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "view",
    [
        "FROM read_parquet('data/seg.parquet')",
        "FROM 'data/seg.parquet'",
        "FROM read_parquet(['./data/seg.parquet'])",
        "FROM read_parquet('data/*.parquet')",
        "FROM read_parquet('**/seg.parquet')",
        "FROM read_csv('data/seg.csv')",
        "FROM 'data/*.csv'",
        "SELECT * REPLACE (segmented_at::TIMESTAMPTZ AS segmented_at) FROM 'data/seg.json'",
        "FROM '../target/data/seg.parquet'",
        "FROM (FROM 'data/seg.parquet' WHERE segment <> 'no file.csv')",
    ],
)
def test_a_view_reads_files_relative_to_the_warehouse(beside: Beside, view: str) -> None:
    beside(view)

    assert user_segments.sync()["inserted"] == 1


@pytest.mark.few(2)
@pytest.mark.parametrize("folder", ["a, b", "it's", 'two "words"', "ünï"])
def test_the_folder_of_the_warehouse_may_have_any_name(beside: Beside, folder: str) -> None:
    beside("FROM 'data/seg.parquet'", folder)

    assert user_segments.sync()["inserted"] == 1


def test_a_link_to_the_warehouse_leads_to_the_files_beside_it(
    beside: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current.duckdb"
    link.symlink_to(beside("FROM 'data/seg.parquet'") / "dev.duckdb")
    monkeypatch.setenv("DUCKDB_PATH", str(link))

    assert user_segments.sync()["inserted"] == 1


def test_a_view_over_views_over_files_is_read(beside: Beside) -> None:
    home = beside("FROM 'data/seg.parquet'")
    with duckdb.connect(home / "dev.duckdb") as connection:
        connection.execute(f"SET file_search_path = '{home}'")
        connection.execute("ALTER VIEW mart_user_segments RENAME TO stg")
        connection.execute("CREATE SCHEMA marts; CREATE VIEW marts.mart_user_segments AS FROM stg")

    assert user_segments.sync()["inserted"] == 1


def test_another_file_of_that_name_where_the_run_was_started_is_not_read(
    beside: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = beside("FROM 'data/seg.parquet'")
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    duckdb.execute("COPY (SELECT 'wrong' AS user_id) TO 'data/seg.parquet'")

    with pytest.raises(SyncError) as raised:
        user_segments.sync()
    monkeypatch.chdir(home)

    assert str(raised.value) == (
        "'data/seg.parquet', which a view or sql/warehouse/user_segments.sql reads, is in the"
        f" warehouse's folder and, another file, in {tmp_path / 'elsewhere'};"
        " run from another folder"
    )
    assert user_segments.sync()["inserted"] == 1


def test_a_file_that_a_view_misses_is_named(failing: Failing, environment: Path) -> None:
    (environment.parent / "gone.parquet").touch()
    error = failing(
        f"COPY mart_user_segments TO '{environment.parent}/gone.parquet'",
        "DROP TABLE mart_user_segments",
        f"SET file_search_path = '{environment.parent}';"
        " CREATE VIEW mart_user_segments AS FROM 'gone.parquet'",
        lambda path: path.with_name("gone.parquet").unlink(),
    )

    assert 'No files found that match the pattern "gone.parquet"' in str(error)


# What is no warehouse


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        *(
            (f"{scheme}{rest}", f"warehouse: DUCKDB_PATH begins with {scheme}, which is not")
            for scheme, rest in (
                ("s3:", "//bucket/marts.duckdb"),
                ("gs:", "//key:geheim@bucket/marts.duckdb"),
                ("md:", "marts?motherduck_token=geheim"),
                ("motherduck:", "marts"),
                ("https:", "//user:geheim@host/marts.duckdb"),
                ("ducklake:", "postgres:dbname=lake password=geheim"),
                ("file:", "///data/marts.duckdb"),
                ("postgres:", "//user:geheim@host/db"),
                ("sqlite:", "marts.db"),
            )
        ),
        ("~/marts.duckdb", "warehouse ~/marts.duckdb: ~ is not expanded; write the whole path"),
        ("~dbt/marts.duckdb", "warehouse ~dbt/marts.duckdb: ~ is not expanded; write the whole"),
        (":memory:", "warehouse :memory:: no such file; run dbt, or set DUCKDB_PATH"),
        ("x" * 5000, f"warehouse {'x' * 5000}: File name too long; "),
    ],
)
@pytest.mark.usefixtures("environment")
def test_a_path_that_is_not_supported_is_told_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, path: str, problem: str
) -> None:
    monkeypatch.setenv("DUCKDB_PATH", path)

    with pytest.raises(SyncError) as raised:
        user_segments.sync()

    assert str(raised.value).startswith(problem)
    assert "geheim" not in str(raised.value)


@pytest.mark.usefixtures("environment")
def test_a_file_named_like_an_address_is_read(
    mart: Mart, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(ONE_USER)
    monkeypatch.chdir(environment.parent)
    environment.rename("md:marts.duckdb")
    monkeypatch.setenv("DUCKDB_PATH", "md:marts.duckdb")

    assert user_segments.sync()["inserted"] == 1


def test_an_encrypted_file_is_called_so(failing: Failing, environment: Path) -> None:
    def encrypt(path: Path) -> None:
        path.unlink()
        with duckdb.connect() as connection:
            connection.execute("SET force_mbedtls_unsafe = 'true'")
            connection.execute(f"ATTACH '{path}' AS locked (ENCRYPTION_KEY 'geheim')")
            connection.execute("CREATE TABLE locked.t (x INT)")

    error = failing(encrypt)

    assert str(error) == (
        f"warehouse {environment}: is encrypted, which is not supported;"
        " let dbt write it without a key"
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_a_data_file_is_no_warehouse(failing: Failing, environment: Path, kind: str) -> None:
    def replaced(path: Path) -> None:
        path.unlink()
        duckdb.execute(f"COPY (SELECT 'a' AS user_id FROM range(99)) TO '{path}' (FORMAT {kind})")

    assert str(failing(replaced)).startswith(f"warehouse {environment}: not a DuckDB file; ")


@pytest.mark.parametrize("target", ["/dev/zero", "/no/such/file", "/dev/null"])
def test_a_link_to_what_is_no_file_is_told_at_once(
    failing: Failing, environment: Path, target: str
) -> None:
    error = failing(Path.unlink, lambda path: path.symlink_to(target))

    assert str(error).startswith(f"warehouse {environment}: no")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "view",
    [
        "FROM read_parquet('s3://bucket/seg.parquet')",
        "FROM 'https://host/seg.csv'",
        "FROM sqlite_scan('a.db', 'seg')",
    ],
)
def test_a_view_that_needs_an_extension_is_told(
    failing: Failing, environment: Path, own_query: OwnQuery, view: str
) -> None:
    error = failing(lambda _: own_query(view))

    assert str(error).startswith(
        f"warehouse {environment}: a view or the query needs DuckDB's extension "
    )
    assert str(error).endswith(", which is not loaded here; make the mart a table")


# What a writer left


def test_a_log_beside_the_file_is_told_once(
    mart: Mart, environment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mart(ONE_USER)
    killed(environment, ONE_USER.replace("'regular'", "'vip'"))

    with caplog.at_level(logging.WARNING, logger="etl"):
        user_segments.sync()

    told = [record for record in caplog.records if record.message.startswith("warehouse.wal")]
    assert len(told) == 1
    assert f"{environment}.wal" in told[0].message


def test_a_file_without_a_log_is_read_without_a_word(mart: Mart) -> None:
    mart(ONE_USER)

    assert "warehouse.wal" not in command("etl.user_segments").stderr


def killed(path: Path, statement: str) -> None:
    """A writer that dies before it has written its change into the file itself."""
    script = (
        f"import duckdb, os; c = duckdb.connect({str(path)!r}); c.execute({statement!r});"
        f" os.kill(os.getpid(), {signal.SIGKILL:d})"
    )
    subprocess.run([sys.executable, "-c", script], check=False, env=dict(os.environ))
    assert path.with_name(f"{path.name}.wal").stat().st_size
