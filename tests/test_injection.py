"""What stands in a mart or a setting is data, whatever it looks like to SQL, Redis or a shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import command, results
from destinations import last_run
from fixture_types import Mart, Select

from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import SyncError
from etl.settings import Settings

ODD = [
    "'; DROP TABLE crm.user_segments; --",
    '"; DROP SCHEMA crm CASCADE; --',
    "$$; DELETE FROM crm.email_queue; $$",
    "\\'; TRUNCATE etl.sync_runs; --\\",
    "a\r\nFLUSHALL\r\n",
    "*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$1\r\n1\r\n",
    "line\nfeed\ttab\x0b\x0c\x1f",
    "\x1b[2J\x1b]0;title\x07\x9b31m\u202e",
    "\\.\n",
    "*",
    "[a-z]?",
    "../../etc/passwd",
    "$1 %s %(x)s {0} ${HOME} `id` $(id)",
    "{a,b},(c)",
    "NULL",
    "é☃😀",
]

# Names of files; DuckDB takes a backslash for a slash.
FILES = [name.replace("/", ":").replace("\\", "|") for name in ODD]


# In a mart


def test_ids_and_segments_come_out_of_postgres_as_they_were(mart: Mart, select: Select) -> None:
    mart(_users(zip(ODD, ODD, strict=True)))
    user_segments.sync()
    mart(_users(zip(ODD, reversed(ODD), strict=True)))
    user_segments.sync(force=True)
    user_segments.sync(delete_missing=True)

    rows = select("SELECT user_id, segment, previous_segment FROM crm.user_segments")

    known = {row["user_id"]: (row["segment"], row["previous_segment"]) for row in rows}
    assert known == {one: (other, one) for one, other in zip(ODD, reversed(ODD), strict=True)}


def test_ids_and_countries_reach_mail_workers_as_they_were(mart: Mart, select: Select) -> None:
    mart(_users((one, "at_risk") for one in ODD))
    email_triggers.sync()

    for worker in ODD:
        with postgres.session(Settings.from_environment(), "worker") as connection:
            (mail,) = postgres.query(connection, "claim_emails", 1, worker)
            claim = (mail["id"], worker, mail["claimed_at"])
            assert postgres.query(connection, "complete_email", *claim, True, worker)
            connection.commit()

    rows = select(
        "SELECT user_id, payload->>'country' AS country, worker, reason FROM crm.email_queue"
    )
    assert {row["user_id"] for row in rows} == set(ODD)
    assert all(row["country"] == row["user_id"] for row in rows)
    assert {row["worker"] for row in rows} == {row["reason"] for row in rows} == set(ODD)


def test_rejected_rows_are_kept_as_they_were(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    mart(_users((one, one) for one in ODD), "UPDATE mart_user_segments SET lifetime_searches = -1")

    user_segments.sync()

    rows = select("SELECT key, row->>'segment' AS segment FROM etl.rejected_rows")
    assert {row["key"] for row in rows} == set(ODD)
    assert all(row["key"] == row["segment"] for row in rows)


def test_ids_and_destinations_are_all_that_reaches_redis(mart: Mart, keys: redis.Redis) -> None:
    values = ", ".join(f"({_sql(one)})" for one in ODD)
    mart(
        "CREATE TABLE mart_recommendations AS"
        " SELECT id AS user_id, id AS destination, 0.9 AS score, now() AS generated_at"
        f" FROM (VALUES {values}) AS v(id)"
    )
    keys.set("other", "stays")

    recommendations.sync()

    names: Any = keys.keys("*")
    assert {name.decode() for name in names} == {f"reco:{one}" for one in ODD} | {"other"}


def test_names_from_a_mart_give_no_orders_to_a_terminal(mart: Mart) -> None:
    mart(_users((one, "at_risk") for one in ODD[4:9]))

    page = command("etl.email_triggers", "--dry-run", LOG_FORMAT="text")
    told = command("etl.email_triggers", "--dry-run", "--json")
    mart(f'CREATE SCHEMA "{ODD[7]}"', f'CREATE TABLE "{ODD[7]}".mart_user_segments (x int)')
    failed = command("etl.email_triggers", LOG_FORMAT="text")

    assert (page.returncode, failed.returncode) == (0, 1)
    for shown in (page.stdout, page.stderr, failed.stdout, failed.stderr):
        assert all(line.isprintable() for line in shown.split("\n"))
    assert "several schemas" in failed.stderr
    assert results(told)[0]["outcomes"][0]["users"] == sorted(ODD[4:9])


# In a setting


@pytest.mark.slow
def test_a_schema_may_have_any_name_and_is_not_read_as_anything_else(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(ODD):
        quoted = '"' + name.replace('"', '""') + '"'
        rows = _users([(f"u{number}", "regular")])
        mart(
            f"CREATE SCHEMA {quoted}",
            rows.replace("TABLE mart_user", f"TABLE {quoted}.mart_user"),
        )

    for name in ODD:
        monkeypatch.setenv("MART_SCHEMA", name)
        assert user_segments.sync()["inserted"] == 1

    monkeypatch.setenv("MART_SCHEMA", 'main"; DROP SCHEMA main; --')
    with pytest.raises(SyncError, match='is not in schema main"; DROP SCHEMA main; -- but in'):
        user_segments.sync()


def test_files_and_folders_may_have_any_name(
    mart: Mart,
    environment: Path,
    tmp_path: Path,
    select: Select,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mart(_users([("a", "regular")]))
    own = (
        "SELECT user_id, '{}' AS segment, 1 AS total_searches, 2 AS total_conversions,"
        " 3 AS lifetime_value, NULL AS built_at FROM mart_user_segments"
    )
    for number, name in enumerate(FILES):
        folder = tmp_path / "folders" / name
        folder.mkdir(parents=True)
        (folder / "user_segments.sql").write_text(own.format(number))
        os.link(environment, folder / name)
        monkeypatch.setenv("ETL_SQL_DIR", str(folder / ".." / name))
        monkeypatch.setenv("DUCKDB_PATH", str(folder / name))

        user_segments.sync()

        assert select("SELECT segment FROM crm.user_segments") == [{"segment": str(number)}]


@pytest.mark.parametrize(
    "name", ["host=evil.invalid", "x host=evil.invalid", "postgresql://evil.invalid/x", "a' b='"]
)
def test_a_database_or_user_is_a_name_and_no_connection_string(
    name: str, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as setting:
        setting.setenv("POSTGRES_DB", name)
        with pytest.raises(SyncError, match="check POSTGRES_DB") as database:
            postgres.connect(Settings.from_environment(), "tests")
    with monkeypatch.context() as setting:
        setting.setenv("POSTGRES_USER", name)
        with pytest.raises(SyncError, match="check POSTGRES_USER") as user:
            postgres.connect(Settings.from_environment(), "tests")

    assert f'database "{name}" does not exist' in str(database.value)
    assert f'password authentication failed for user "{name}"' in str(user.value)


@pytest.mark.parametrize("name", ['it\'s \\ "x" host=evil.invalid', "' host='evil.invalid"])
def test_a_session_is_named_as_it_was_asked(name: str, environment: Path) -> None:
    asked = "SELECT current_setting('application_name') AS name"

    with postgres.session(Settings.from_environment(), name) as connection:
        (row,) = postgres.select(connection, asked)

    assert row["name"].startswith(f"{name} {os.getpid()}@")


def test_who_started_a_run_is_recorded_as_he_is_called(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(_users([("a", "regular")]))

    for name in ODD[::3]:
        monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", name)
        user_segments.sync()

        assert last_run(select)["started_by"] == f"airflow {name}"


# Helpers


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _users(rows: Any) -> str:
    """SQL for a mart with these ids and segments; everybody comes from a country of his name."""
    values = ", ".join(f"({_sql(user_id)}, {_sql(segment)})" for user_id, segment in rows)
    return f"""
        CREATE OR REPLACE TABLE mart_user_segments AS
        SELECT
            user_id, segment, 1 AS lifetime_searches, 0 AS lifetime_conversions,
            0 AS lifetime_revenue, now() - INTERVAL 1 HOUR AS last_seen_at,
            now() - INTERVAL 1 HOUR AS first_seen_at, user_id AS primary_country,
            now() AS segmented_at
        FROM (VALUES {values}) AS v(user_id, segment)
    """
