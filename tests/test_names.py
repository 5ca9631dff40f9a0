"""The functions, operators, types and tables that our SQL names are Postgres's own.

Whoever may make functions in a schema of the search path could make one that fits a call of ours
better, or stands before Postgres's own, and have it run with the rights of the sync.
"""

from __future__ import annotations

import datetime as dt
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from conftest import segments
from destinations import as_superuser, execute
from fixture_types import Mart

from etl import email_triggers, postgres, recommendations, user_segments
from etl.init_db import init_db
from etl.plumbing import queries
from etl.prune import prune
from etl.settings import Settings
from etl.status import Flags, status

if TYPE_CHECKING:
    from pathlib import Path

    from demo.embedded import Servers


@pytest.fixture(params=["public", "airflow", "lair"])
def trapped(request: pytest.FixtureRequest, servers: Servers, environment: Path) -> Iterator[str]:
    """A schema with another of everything that our SQL names; no call went there in the end."""
    schema = request.param
    as_superuser(
        servers,
        "CREATE ROLE mallory LOGIN",
        f"CREATE SCHEMA IF NOT EXISTS {schema}",
        f"GRANT ALL ON SCHEMA {schema} TO mallory, airflow",
        "SET ROLE mallory",
        *_traps(schema),
    )
    try:
        yield schema
        called = f"DO $$ BEGIN ASSERT NOT (SELECT is_called FROM {schema}.called); END $$"
        as_superuser(servers, called)
    finally:
        as_superuser(
            servers,
            "ALTER ROLE airflow RESET search_path",
            "ALTER ROLE postgres RESET search_path",
            "DROP OWNED BY mallory CASCADE",
            "DROP ROLE mallory",
            *(() if schema == "public" else (f"DROP SCHEMA {schema}",)),
        )


def test_the_traps_close(trapped: str, servers: Servers) -> None:
    """Or nothing below means anything; both before Postgres's own functions and behind them."""
    called = ("SELECT hashtextextended('a', 0);", "SELECT 1 = 1;", "SELECT 'a'::text;")
    before = _psql(servers, f"SET search_path = {trapped}, pg_catalog;", *called)
    behind = _psql(servers, f"SET search_path = {trapped};", called[0], "SELECT 9::bigint % 2;")

    for name in ("hashtextextended", "=", "type"):
        assert f"trap {trapped}.{name}\n" in before
    for name in ("hashtextextended", "%"):
        assert f"trap {trapped}.{name}\n" in behind
    as_superuser(servers, f"ALTER SEQUENCE {trapped}.called RESTART")


@pytest.mark.few(1)
@pytest.mark.parametrize("place", ["{}, pg_catalog", "{}"])
def test_nothing_of_another_schema_is_called(
    place: str, trapped: str, servers: Servers, mart: Mart
) -> None:
    execute("DROP SCHEMA crm, etl CASCADE")
    as_superuser(servers, f"ALTER ROLE airflow SET search_path = {place.format(trapped)}")

    assert len(init_db()) > 10
    mart(segments(FIRST), RECOMMENDED)
    assert user_segments.sync(dry_run=True)["inserted"] == 3
    assert user_segments.sync()["inserted"] == 3
    assert email_triggers.sync(force=True)["inserted"] == 2
    assert recommendations.sync()["written"] == 1
    mart(segments(SECOND))
    changed = user_segments.sync(force=True, delete_missing=True)
    assert (changed["updated"], changed["deleted"]) == (1, 1)
    for shard in range(2):
        email_triggers.sync(force=True, shard=(shard, 2))
        user_segments.sync(force=True, shard=(shard, 2))
    assert email_triggers.sync(force=True, dry_run=True)["unchanged"] == 1
    _work()
    prune(1)
    overdue = set(status(Flags(), dt.datetime.now(dt.UTC))["overdue"])
    assert not overdue & {"user_segments", "email_triggers", "recommendations"}


@pytest.mark.few(1)
def test_the_scripts_for_psql_call_nothing_either(trapped: str, servers: Servers) -> None:
    """An admin runs them, perhaps as a superuser."""
    as_superuser(servers, f"ALTER ROLE postgres SET search_path = {trapped}, pg_catalog")

    try:
        for script in ("schema", "roles", "roles"):
            path = queries.ROOT / "postgres" / f"{script}.sql"
            assert _psql(servers, rf"\i {path}", user="postgres") == ""
    finally:
        roles = "SELECT string_agg(rolname, ', ') FROM pg_roles WHERE rolname LIKE 'searchflow%'"
        _psql(
            servers,
            "SET search_path = pg_catalog;",
            rf"{roles} \gset",
            "DROP OWNED BY :string_agg; DROP ROLE :string_agg;",
            user="postgres",
        )


def test_a_mail_workers_statements_call_nothing_either(trapped: str, servers: Servers) -> None:
    """Of schemas behind Postgres's own; who puts one before must set search_path."""
    statements = [
        (queries.ROOT / "postgres" / f"{name}.sql").read_text()
        for name in ("claim_emails", "complete_email", "release_stale_emails")
    ]
    claim, complete, release = statements
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        " SELECT 'u' || n, 'x', now(), 1, '{}' FROM generate_series(1, 3) AS n"
    )

    said = _psql(
        servers,
        f"SET search_path = {trapped};",
        rf"{claim} \bind 2 w \gset",
        rf"{claim} \bind 1 w \gset",
        rf"{complete} \bind :id w :'claimed_at' true '' \g",
        f"PREPARE release (int) AS {release}; EXECUTE release (0);",
    )

    assert said == ""


# What stands in the way

FIRST = "('a', 'at_risk', 1, 0, 0), ('b', 'abandoned_search', 2, 1, 3.5), ('c', 'regular', 1, 0, 0)"
SECOND = "('a', 'at_risk', 9, 9, 9), ('c', 'regular', 1, 0, 0)"
RECOMMENDED = """
    CREATE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS destination, 1.0 AS score, now() AS generated_at
"""
SQL = "\n".join(
    re.sub(r"--.*", "", path.read_text()) for path in queries.ROOT.glob("postgres/*.sql")
)
# `(unknown, "any")` and the like take anything, and would never fit better.
CLOSER = (
    ("VARIADIC ", ""),
    ('"any"', "text"),
    ("anyelement", "text"),
    ("anycompatiblearray", "text[]"),
    ("anycompatible", "text"),
    ("anyarray", "text[]"),
    ("bigint", "integer"),
    ("double precision", "integer"),
)


def _traps(schema: str) -> list[str]:
    """Statements that make the traps, each of which rings a bell that no rollback silences."""
    functions, operators = sorted(_functions()), sorted(_operators())
    names = [f"CREATE TABLE {schema}.{name} ()" for name in sorted(_catalogs())]
    return [
        f"CREATE SEQUENCE {schema}.called",
        f"GRANT ALL ON SEQUENCE {schema}.called TO PUBLIC",
        TRAPS.format(schema=schema, functions=_array(functions), operators=_array(operators)),
        *names,
        *(
            f"CREATE DOMAIN {schema}.{name} AS pg_catalog.{name} CHECK ({schema}.bell())"
            for name in sorted(_types())
        ),
        f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO PUBLIC",
    ]


TRAPS = """
DO $do$
DECLARE
    found record;
    near text[];
    near_right text;
    body text;
    n int := 0;
BEGIN
    CREATE FUNCTION {schema}.bell() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_catalog.nextval('{schema}.called'); RAISE EXCEPTION 'trap {schema}.type'; END $$;
    FOR found IN
        SELECT p.proname AS name, pg_get_function_arguments(p.oid) AS arguments,
            pg_get_function_result(p.oid) AS result, NULL AS left, NULL AS right
        FROM pg_proc AS p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY({functions})
        UNION ALL
        SELECT o.oprname, '', format_type(o.oprresult, NULL),
            format_type(o.oprleft, NULL), format_type(o.oprright, NULL)
        FROM pg_operator AS o
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprname = ANY({operators})
            AND o.oprkind = 'b'
    LOOP
        FOREACH near SLICE 1 IN ARRAY ARRAY[ARRAY['', ''], {closer}] LOOP
            n := n + 1;
            body := format(
                'RETURNS %s LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.nextval(%L);'
                ' RAISE EXCEPTION %L; END $$',
                replace(found.result, near[1], near[2]),
                '{schema}.called', 'trap {schema}.' || replace(found.name, '%', '%%')
            );
            near_right := replace(found.right, near[1], near[2]);
            BEGIN
                IF found.right IS NULL THEN
                    EXECUTE format('CREATE FUNCTION {schema}.%I(%s) %s',
                        found.name, replace(found.arguments, near[1], near[2]), body);
                ELSE
                    EXECUTE format('CREATE FUNCTION {schema}.op_%s(%s, %s) %s',
                        n, found.left, near_right, body);
                    EXECUTE format(
                        'CREATE OPERATOR {schema}.%s (LEFTARG = %s, RIGHTARG = %s,'
                        ' FUNCTION = {schema}.op_%s)', found.name, found.left, near_right, n);
                END IF;
            EXCEPTION WHEN OTHERS THEN
                -- It is there already, or only C can take such arguments.
            END;
        END LOOP;
    END LOOP;
END
$do$
""".replace("{closer}", ", ".join(f"ARRAY['{near}', '{then}']" for near, then in CLOSER))


def _functions() -> set[str]:
    return set(re.findall(r"(?<![.\w])([a-z_0-9]+)\(", SQL)) | {"version"}


def _operators() -> set[str]:
    """With those that stand behind words."""
    text = re.sub(r"'[^']*'|\$\d|=>|::", " ", SQL)
    return set(re.findall(r"[-+*/<>=~!@#%^&|]+", text)) | {"=", "<>", "~~"}


def _types() -> set[str]:
    """Those that the parser does not know by itself, such as `int`."""
    return set(re.findall(r"::([a-z_0-9]+)\b(?!\.)", SQL)) - {
        "int",
        "bigint",
        "boolean",
        "bit",
        "smallint",
    }


def _catalogs() -> set[str]:
    return set(re.findall(r"\b(?:pg_catalog\.|FROM |JOIN )(pg_[a-z_]+)\b(?!\()", SQL)) - {"pg_temp"}


def _array(names: list[str]) -> str:
    return "ARRAY[" + ", ".join(f"'{name}'" for name in names) + "]"


# Helpers


def _work() -> None:
    """What a mail worker runs, and what a run asks that finds another in its way."""
    with postgres.session(Settings.from_environment(), "worker") as connection:
        (mail,) = postgres.query(connection, "claim_emails", 1, "worker")
        claim = (mail["id"], "worker", mail["claimed_at"])
        assert postgres.query(connection, "release_stale_emails", 600.0) == []
        assert postgres.query(connection, "complete_email", *claim, True, None)
        assert postgres.query(connection, "lock_owner", "etl.user_segments", None, None) == []
        assert postgres.query(connection, "blockers", 0) == []
        connection.commit()


def _psql(servers: Servers, *commands: str, user: str = "airflow") -> str:
    """What it has to say of errors."""
    psql = [*shlex.split(servers.psql.replace("//airflow@", f"//{user}@")), "-Xq"]
    text = "\n".join(commands)
    done = subprocess.run(psql, input=text, capture_output=True, text=True, check=False)
    return "".join(f"{line}\n" for line in done.stderr.splitlines() if "ERROR" in line)
