"""`etl.check` of Postgres: each test breaks one thing for real, and a dry run says the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import test_roles
from checks import GOOD, agrees, looked, states
from destinations import as_superuser, execute, lock_held
from fixture_types import Mart, Select
from pace import HANG, soon
from refusing import pgbouncer
from test_roles import Become

from demo import sample
from etl import email_triggers, postgres, user_segments
from etl.check import check
from etl.check.rights import needed
from etl.init_db import init_db
from etl.settings import Settings
from etl.syncs import SYNCS

if TYPE_CHECKING:
    from demo.embedded import Servers

become = test_roles.become

DROP_ALL = (
    "CREATE FUNCTION crm.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
)
HIDE = "CREATE POLICY hide ON crm.email_queue USING (status = 'pending')"
SAID_BY_COLUMN = "; run `python -m etl.init_db` (make init-db) to bring the database up to date"

# What is broken, by which statements, what check says of it, and of its line what a run says too
# where its words are others.
BROKEN = {
    "no tables": (["DROP SCHEMA crm, etl CASCADE"], {"Postgres tables": "fail"}, ""),
    "an old table": (
        ["ALTER TABLE etl.sync_runs DROP COLUMN unmapped"],
        {"Postgres tables": "fail"},
        SAID_BY_COLUMN,
    ),
    "no function": (["DROP FUNCTION etl.shard_of"], {"Postgres tables": "fail"}, ""),
    "no unique index": (["DROP INDEX crm.email_queue_open"], {"Postgres tables": "fail"}, ""),
    "no index": (["DROP INDEX crm.email_queue_sent"], {"Postgres tables": "warn"}, ""),
    "no view": (["DROP VIEW crm.email_report"], {"Postgres tables": "warn"}, ""),
    "a child": (
        ["CREATE TABLE crm.archive () INHERITS (crm.user_segments)"],
        {"Postgres tables": "fail"},
        "",
    ),
    "a policy": (
        [
            "ALTER TABLE crm.email_queue ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE crm.email_queue FORCE ROW LEVEL SECURITY",
            HIDE,
        ],
        {"Postgres row security": "fail"},
        "",
    ),
    "a trigger that drops rows": (
        [
            DROP_ALL,
            "CREATE TRIGGER no BEFORE INSERT ON crm.user_segments FOR EACH ROW"
            " EXECUTE FUNCTION crm.nothing()",
        ],
        {"Postgres triggers": "warn"},
        "trigger no (function crm.nothing)",
    ),
    "a trigger that raises": (
        [
            DROP_ALL.replace("RETURN NULL", 'RAISE "no"').replace('"no"', "''no''"),
            "CREATE TRIGGER no AFTER INSERT ON crm.user_segments EXECUTE FUNCTION crm.nothing()",
        ],
        {"Postgres triggers": "warn"},
        "function crm.nothing",
    ),
    "a rule": (
        ["CREATE RULE no AS ON INSERT TO crm.user_segments DO INSTEAD NOTHING"],
        {"Postgres triggers": "fail"},
        "rule no; mend it or disable it",
    ),
    "another type": (
        [
            "CREATE TYPE crm.kind AS ENUM ('regular', 'at_risk')",
            "ALTER TABLE crm.user_segments ALTER segment TYPE crm.kind USING segment::crm.kind",
        ],
        {"Postgres tables": "fail"},
        "compare the table with sql/postgres/schema.sql, and alter its column",
    ),
    "a type of the same kind": (
        ["ALTER TABLE crm.user_segments ALTER total_searches TYPE integer"],
        {"Postgres tables": "warn"},
        "compare the table with sql/postgres/schema.sql, and alter its column",
    ),
    "no column": (
        ["ALTER TABLE crm.user_segments DROP COLUMN total_searches"],
        {"Postgres tables": "fail"},
        "sql/postgres/schema.sql",
    ),
    "no key": (
        ["ALTER TABLE crm.user_segments DROP CONSTRAINT user_segments_pkey"],
        {"Postgres tables": "fail"},
        "sql/postgres/schema.sql",
    ),
    "a generated column": (
        [
            "ALTER TABLE crm.user_segments DROP COLUMN total_conversions,"
            " ADD COLUMN total_conversions bigint GENERATED ALWAYS AS (1) STORED"
        ],
        {"Postgres tables": "fail"},
        "total_conversions",
    ),
    "a column that must be filled": (
        ["ALTER TABLE crm.user_segments ADD COLUMN owner text NOT NULL"],
        {"Postgres tables": "fail"},
        "owner",
    ),
    "a constraint": (
        ["ALTER TABLE crm.user_segments ADD CONSTRAINT few CHECK (total_searches < 2)"],
        {"Postgres tables": "warn"},
        "few",
    ),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_with_tables_is_told_as_a_run_tells_it(what: str, mart: Mart) -> None:
    statements, expected, phrase = BROKEN[what]
    mart(*GOOD)
    execute(*statements)

    findings = check()

    found = {name: state for name, state in states(findings).items() if state != "skipped"}
    assert found == expected
    assert all(one.advice for one in findings if one.state in ("warn", "fail"))
    assert agrees(findings, phrase)


LACKING = [right for right in needed() if right["privilege"] != "CONNECT"]


@pytest.mark.few(3)
@pytest.mark.parametrize("place", range(len(LACKING)))
def test_each_right_that_is_missing_is_told_with_the_grant(
    place: int, mart: Mart, become: Become, servers: Servers
) -> None:
    become("etl")
    mart(*GOOD)
    right = LACKING[place]
    kind = right["kind"].upper() if right["kind"] != "table" else ""
    name = "searchflow" if kind == "DATABASE" else right["name"]
    columns = f" ({', '.join(right['columns'])})" if right["columns"] else ""
    privilege = f"{right['privilege']}{columns} ON {kind} {name}"
    as_superuser(servers, f"REVOKE {privilege} FROM searchflow_etl, PUBLIC")

    findings = check()

    assert states(findings)["Postgres rights"] == "fail"
    (one,) = [one for one in findings if one.state == "fail"]
    assert f"grant it to guest_etl; GRANT {right['privilege']}" in one.advice
    assert agrees(findings)
    as_superuser(servers, f"GRANT {privilege} TO PUBLIC")


def test_a_role_with_the_rights_of_the_syncs_and_no_more_may_check(
    mart: Mart, become: Become
) -> None:
    become("etl")
    mart(*GOOD)

    assert states(check()) == {}


LOGIN = {
    "a wrong password": {"POSTGRES_PASSWORD": "wrong"},
    "a port where nobody is": {"POSTGRES_PORT": "1"},
    "a database that is not there": {"POSTGRES_DB": "nowhere"},
    "a host that is not there": {"POSTGRES_HOST": "nowhere.invalid"},
    "TLS that the server does not have": {"PGSSLMODE": "require"},
}


@pytest.mark.few(2)
@pytest.mark.parametrize("what", LOGIN)
def test_a_server_that_lets_nobody_in_is_told_and_what_it_would_tell_is_skipped(
    what: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(*GOOD)
    with monkeypatch.context() as changed:
        for name, value in LOGIN[what].items():
            changed.setenv(name, value)

        findings = check()

        assert agrees(findings)
    assert [one.name for one in findings if ": 2 rows, " in one.found] == list(SYNCS[:2])
    assert states(findings) == {
        "Postgres": "fail",
        **dict.fromkeys(
            ["Postgres tables", "Postgres rights", "Postgres triggers", "runs", "mail queue"],
            "skipped",
        ),
    }


def test_a_server_that_takes_no_writes_is_told_as_a_run_tells_it(
    mart: Mart, servers: Servers
) -> None:
    mart(*GOOD)
    as_superuser(servers, "ALTER ROLE airflow SET default_transaction_read_only = on")
    try:
        findings = check()

        assert states(findings)["Postgres"] == "fail"
        # The verb is that of the statement which each sync comes to first.
        assert agrees(
            findings, " in a read-only transaction; it takes no writes: let POSTGRES_HOST"
        )
    finally:
        as_superuser(servers, "ALTER ROLE airflow RESET default_transaction_read_only")


def test_a_sync_that_runs_just_now_is_a_warning(mart: Mart) -> None:
    mart(*GOOD)
    with lock_held("user_segments"):
        findings = check()

        assert states(findings) == {"runs": "warn"}
        assert agrees(findings)


def test_what_holds_mails_back_is_a_warning(mart: Mart) -> None:
    mart(*GOOD)
    execute(
        "INSERT INTO crm.email_allowlist (user_id) VALUES ('tester')",
        "UPDATE crm.email_templates SET paused = true WHERE template = 'welcome'",
    )

    found = [one.found for one in looked("mail queue", "warn")]

    assert found == [
        "only 1 user is mailed: crm.email_allowlist is on",
        "paused templates: welcome",
    ]


def test_not_even_what_is_rolled_back_is_written(mart: Mart, select: Select) -> None:
    mart(*GOOD)
    user_segments.sync()
    execute(
        "DELETE FROM crm.email_templates",  # a run adds its templates
        "CREATE SEQUENCE crm.written",
        "CREATE FUNCTION crm.note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM nextval(''crm.written''); RETURN NULL; END'",
        "CREATE TRIGGER note AFTER INSERT ON crm.email_templates EXECUTE FUNCTION crm.note()",
    )

    check()

    assert select("SELECT is_called FROM crm.written") == [{"is_called": False}]
    assert len(select("SELECT FROM etl.sync_runs")) == 1


def test_the_answer_tells_version_tls_encoding_and_whether_a_pooler_is_between(
    environment: object,
) -> None:
    (server,) = looked("Postgres", "ok")

    port = os.environ["POSTGRES_PORT"]
    assert server.found == f"airflow@127.0.0.1:{port}/searchflow: 18.6, no TLS, UTF8, direct"


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_is_told_and_one_that_holds_no_transaction_fails_as_a_run_does(
    mode: str, mart: Mart, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(*GOOD)
    with pgbouncer(servers, mode, "default_pool_size = 3") as port, monkeypatch.context() as to:
        to.setenv("POSTGRES_PORT", str(port))

        findings = check()

        (server,) = [one for one in findings if one.name == "Postgres"]
        assert server.state == ("ok" if mode == "transaction" else "fail")
        assert mode == "statement" or server.found.endswith("through a pooler or proxy")
        assert agrees(findings)


def test_a_database_that_cannot_hold_every_character_is_a_warning(
    servers: Servers, environment: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = "CREATE DATABASE old OWNER airflow ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    as_admin = {**servers.environment, "POSTGRES_USER": "postgres"}
    with postgres.session(Settings.from_environment(as_admin), "tests") as connection:
        postgres.execute_alone(connection, make)
        with monkeypatch.context() as changed:
            changed.setenv("POSTGRES_DB", "old")
            init_db()
            (server,) = looked("Postgres", "warn")
        postgres.execute_alone(connection, "DROP DATABASE old WITH (FORCE)")

    assert "LATIN1" in server.found
    assert server.advice.startswith("use a database in UTF8")


def test_the_mails_of_the_queue_are_not_read(environment: Path, select: Select) -> None:
    sample.build(environment, 2_000)
    mails = email_triggers.sync(force=True)["inserted"] or 0
    before = _rows_read(select)

    check()

    assert _rows_read(select) - before < mails


def _rows_read(select: Select) -> int:
    """How many rows of the queue all sessions have read, which is known when they end."""
    sessions = "SELECT FROM pg_stat_activity WHERE application_name LIKE 'etl.%'"
    assert soon(lambda: not select(sessions), HANG)
    table = "SELECT * FROM pg_stat_user_tables WHERE relname = 'email_queue'"
    (rows,) = select(f"SELECT seq_tup_read + idx_tup_fetch AS read FROM ({table}) AS t")
    read: int = rows["read"]
    return read
