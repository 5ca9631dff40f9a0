"""`etl.check` of the warehouse and its marts: what is broken for real, a dry run says the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from checks import GOOD, agrees, dry_runs, looked, says, states
from conftest import segments
from fixture_types import Mart, OwnQuery

from demo import sample
from etl import email_triggers, user_segments
from etl.check import check
from etl.syncs import BY_NAME, SYNCS

ALL = dict.fromkeys(SYNCS, "skipped")
BOTH = {"user_segments": "fail", "email_triggers": "fail"}
# How much room keys need is told as long as the mart of one sync that writes keys can be read.
ALONE = [one.name for one in BY_NAME.values() if "written" in one.counts] == ["recommendations"]
NO_KEYS = {"recommendations": "fail"} | ({"Redis memory": "skipped"} if ALONE else {})
RENAME = "ALTER TABLE mart_user_segments RENAME {} TO {}"


def _not_duckdb(path: Path) -> None:
    path.write_bytes(b"PAR1" * 100)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _wal(path: Path) -> None:
    with duckdb.connect(str(path), config={"checkpoint_threshold": "1TB"}) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("CREATE TABLE other (id int)")


# What is done to sound marts, and what check says of which thing.
BROKEN: dict[str, tuple[list[str | Callable[[Path], None]], dict[str, str]]] = {
    "no file": ([Path.unlink], {"warehouse": "fail", **ALL}),
    "another kind of file": ([_not_duckdb], {"warehouse": "fail", **ALL}),
    "a folder": ([_folder], {"warehouse": "fail", **ALL}),
    "a log beside it": ([_wal], {"warehouse": "warn"}),
    "no mart": (["ALTER TABLE mart_user_segments RENAME TO mart_user_segment"], BOTH),
    "no mart for Redis": (
        ["ALTER TABLE mart_recommendations RENAME TO recommended"],
        NO_KEYS,
    ),
    "another column": ([RENAME.format("lifetime_searches", "searches_in_all")], BOTH),
    "another type": (
        [
            "ALTER TABLE mart_user_segments ALTER lifetime_searches TYPE VARCHAR",
        ],
        BOTH,
    ),
    "two schemas": (
        [
            "CREATE SCHEMA old",
            "CREATE TABLE old.mart_recommendations AS FROM mart_recommendations",
        ],
        NO_KEYS,
    ),
    "empty": (["DELETE FROM mart_recommendations"], {"recommendations": "fail"}),
    "stale": (
        ["UPDATE mart_user_segments SET segmented_at = now() - INTERVAL 9 DAY"],
        BOTH,
    ),
    "twins": (
        ["INSERT INTO mart_user_segments FROM mart_user_segments WHERE user_id = 'a'"],
        BOTH,
    ),
    "scores of another scale": (
        ["UPDATE mart_recommendations SET score = score / 100"],
        {"recommendations": "fail"},
    ),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_with_a_mart_is_told_as_a_run_tells_it(
    what: str, mart: Mart, environment: Path
) -> None:
    steps, expected = BROKEN[what]
    mart(*GOOD)
    for step in steps:
        mart(step) if isinstance(step, str) else step(environment)

    findings = check()

    assert states(findings) == expected
    assert all(one.advice for one in findings if one.state in ("warn", "fail"))
    assert agrees(findings)


@contextmanager
def _writer(path: Path) -> Iterator[int]:
    """Another process that has the file open to write; its pid."""
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process.pid
        process.communicate("\n")


def test_a_locked_file_is_told_with_who_has_it_and_not_waited_for(
    mart: Mart,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mart(*GOOD)
    with _writer(environment) as pid:
        with monkeypatch.context() as waiting:
            waiting.setenv("WAREHOUSE_WAIT", "0.1")
            findings = check()
            assert "warehouse.locked" not in caplog.text

        (one,) = [one for one in findings if one.state == "fail"]
        assert (one.name, f"PID {pid}" in one.found) == ("warehouse", True)
        assert agrees(findings)


def test_where_a_mart_is_not_found_what_looks_like_it_and_the_file_to_edit_are_named(
    mart: Mart,
) -> None:
    mart(*GOOD, "CREATE SCHEMA dbt")
    mart(
        "CREATE TABLE dbt.user_segment AS FROM mart_user_segments", "DROP TABLE mart_user_segments"
    )

    (one,) = looked("user_segments")

    assert (
        one.found == "mart_user_segments (sql/warehouse/user_segments.sql) is in no schema of"
        " the warehouse"
    )
    assert one.advice.startswith("run dbt, or correct DUCKDB_PATH; what looks like it:")
    assert "dbt.user_segment" in one.advice
    assert "sql/warehouse/user_segments.sql or a file of yours (ETL_SQL_DIR" in one.advice


def test_where_nothing_looks_like_a_mart_the_tables_that_are_there_are_named(
    mart: Mart, environment: Path
) -> None:
    mart(*GOOD)
    with duckdb.connect(environment) as warehouse:
        marts = warehouse.sql("SELECT table_name FROM duckdb_tables()").fetchall()
    mart(*(f"DROP TABLE {name}" for (name,) in marts))
    mart("CREATE TABLE tiers AS SELECT 1 AS one", "CREATE TABLE trips AS SELECT 1 AS one")

    (one,) = looked("user_segments")

    assert "; nothing looks like it; tables: main.tiers, main.trips; name it in" in one.advice


def test_where_every_column_is_found_nothing_is_said_of_names(mart: Mart) -> None:
    mart(*GOOD, "ALTER TABLE mart_user_segments ALTER user_id TYPE BLOB")

    (one,) = looked("user_segments")

    assert one.advice == "correct the mart or cast in that file"


def test_where_a_column_is_not_found_those_that_look_like_it_are_named(mart: Mart) -> None:
    mart(*GOOD, RENAME.format("lifetime_searches", "life_time_searches"))

    (one,) = looked("user_segments")

    assert "no column total_searches or lifetime_searches" in one.found
    assert "what looks like it: main.mart_user_segments.life_time_searches" in one.advice


def test_a_column_that_shares_a_word_is_one_that_looks_like_it(mart: Mart) -> None:
    mart(*GOOD, RENAME.format("lifetime_searches", "search_count"))

    (one,) = looked("user_segments")

    assert "main.mart_user_segments.search_count" in one.advice


def test_columns_of_an_own_query_that_are_not_there_are_looked_for_as_well(
    mart: Mart, own_query: OwnQuery
) -> None:
    mart(*GOOD)
    path = own_query("SELECT user_idd AS user_id FROM mart_user_segments")

    (one,) = looked("user_segments")

    assert "main.mart_user_segments.user_id" in one.advice
    assert one.advice.endswith(f"; name it in {path}")
    assert says([one], dry_runs()["user_segments"])


MISSPELT = {
    "an alias of a table": ("SELECT m.user_id FROM mart_user_segments AS mm", "mm"),
    "a column of an alias": ("SELECT m.user_idd FROM mart_user_segments AS m", "user_id"),
    "a column of a step": (
        "WITH step AS (SELECT user_id AS user_code FROM mart_user_segments)"
        " SELECT user_kode AS user_id FROM step",
        "user_code",
    ),
    "a column left out": (
        "SELECT * EXCLUDE (segmant) FROM mart_user_segments",
        "segment",
    ),
    "the name of a result": (
        "SELECT user_id AS user_idd, segment, 1 AS total_searches, 1 AS total_conversions,"
        " 1 AS lifetime_value, NULL AS built_at FROM mart_user_segments",
        "user_idd",
    ),
}


@pytest.mark.parametrize("what", MISSPELT)
def test_a_misspelt_name_of_an_own_query_is_told_with_those_that_look_like_it(
    what: str, mart: Mart, own_query: OwnQuery
) -> None:
    mart(*GOOD)
    sql, alike = MISSPELT[what]
    path = own_query(sql)

    (one,) = looked("user_segments")

    named = one.advice.partition("; what looks like it: ")[2].partition("; name it in ")
    assert named[0].split(", ")[0] == alike
    assert named[2] == str(path)
    assert says([one], dry_runs()["user_segments"])


def test_rows_to_be_rejected_are_counted_by_reason_as_a_run_counts_them(
    mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    bad = "('n', NULL, 1, 0, 0), ('m', 'x', -1, 0, 0), ('d', 'x', 1, 0, 0), ('d', 'x', 1, 0, 0)"
    mart(*GOOD, segments(f"('a', 'regular', 3, 1, 9.5), {bad}"))

    (one,) = looked("user_segments", "warn")

    assert one.found.startswith("main.mart_user_segments: 5 rows, built just now;")
    reasons = one.found.partition("4 to be rejected: ")[2].split(", ")
    assert sorted(reasons) == ["duplicate 2", "segment:null 1", "total_searches:too_small 1"]
    assert user_segments.sync(dry_run=True)["rejected"] == 4


def test_a_mart_that_lost_rows_since_the_last_run_is_refused_as_by_a_run(mart: Mart) -> None:
    mart(*GOOD, segments("('a', 'x', 1, 0, 0), ('b', 'x', 1, 0, 0), ('c', 'x', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('b', 'x', 1, 0, 0)"))

    findings = check()

    assert states(findings) == {"user_segments": "fail"}
    assert agrees(findings)


def test_a_mart_that_lost_its_visits_is_refused_as_by_a_run(mart: Mart) -> None:
    mart(*GOOD)
    email_triggers.sync()
    mart("ALTER TABLE mart_user_segments DROP last_seen_at")

    findings = check()

    assert states(findings)["email_triggers"] == "fail"
    assert agrees(findings)


@pytest.mark.few(1)
@pytest.mark.parametrize("users", [1, 3_000])
def test_a_sound_sample_is_ok_and_its_rows_and_keys_are_those_of_a_run(
    environment: Path, users: int
) -> None:
    sample.build(environment, users)

    findings = check()

    assert states(findings) == {}
    assert agrees(findings)


def test_rows_that_come_in_no_order_are_counted_alike(mart: Mart, environment: Path) -> None:
    sample.build(environment, 20_000)
    names = (*SYNCS, "Redis memory")
    found = [re.split("; | keys", one.found)[0] for one in check() if one.name in names]
    mart(
        "USE main_marketing",
        "CREATE TABLE shuffled AS FROM mart_recommendations ORDER BY hash(user_id || rank)",
        "DROP TABLE mart_recommendations",
        "ALTER TABLE shuffled RENAME TO mart_recommendations",
    )

    assert [re.split("; | keys", one.found)[0] for one in check() if one.name in names] == found


def test_two_rows_of_a_key_are_found_however_far_apart_they_are(mart: Mart) -> None:
    mart(
        *GOOD,
        "CREATE OR REPLACE TABLE mart_recommendations AS SELECT if(n % 149_999 = 0, 'x', 'u' || n)"
        " AS user_id, 'Rome' AS destination, 0.9 AS score, 1 AS rank, now() AS generated_at"
        " FROM range(150_000) AS r(n)",
    )

    (one,) = looked("recommendations", "warn")

    assert one.found.endswith("; 2 to be rejected: duplicate 2")
