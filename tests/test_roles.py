"""sql/postgres/roles.sql: every job does its work with its own rights, and can do nothing else."""

from __future__ import annotations

import datetime as dt
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, command, segments
from destinations import as_superuser, execute, last_run
from fixture_types import Mart, Select

from etl import email_triggers, postgres, recommendations, user_segments
from etl.errors import Refused, SyncError
from etl.explain import explain
from etl.init_db import init_db
from etl.plumbing import queries
from etl.prune import prune
from etl.settings import Settings
from etl.status import Flags, status

if TYPE_CHECKING:
    from pathlib import Path

    from demo.embedded import Servers

Become = Callable[[str], None]

SYNCS: tuple[Any, ...] = (user_segments, email_triggers, recommendations)

ROLES = ("etl", "etl_mirror", "prune", "status", "support", "mailer", "marketing", "reader")


@pytest.fixture
def become(
    servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Become]:
    """Log in as a member of a role, in a database that gives the public nothing."""
    as_superuser(servers, "REVOKE ALL ON DATABASE searchflow FROM PUBLIC")
    _run_roles_sql(servers)
    logins = []
    with monkeypatch.context() as settings:

        def become(role: str) -> None:
            logins.append(f"guest_{role}")
            create = (
                f"CREATE ROLE guest_{role} LOGIN PASSWORD 'pass-word' IN ROLE searchflow_{role}"
            )
            as_superuser(servers, create)
            settings.setenv("POSTGRES_USER", f"guest_{role}")
            settings.setenv("POSTGRES_PASSWORD", "pass-word")

        yield become
    as_superuser(
        servers,
        "GRANT CONNECT, TEMPORARY ON DATABASE searchflow TO PUBLIC",
        *(f"DROP ROLE {login}" for login in logins),
        *_drop_roles(),
    )


# What they may


def test_the_syncs_do_with_their_role(
    become: Become, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    become("etl")
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")

    mart(FIRST, RECOMMENDED)
    outcomes = [module.sync(dry_run=dry)["inserted"] for dry in (True, False) for module in SYNCS]
    mart(CHANGED)
    changed = [module.sync() for module in SYNCS]

    assert outcomes == [2, 1, 1, 2, 1, None]
    assert (changed[0]["updated"], changed[1]["cancelled"], changed[2]["written"]) == (2, 1, 1)
    assert [run["status"] for run in select("SELECT * FROM etl.sync_runs")] == ["ok"] * 6
    assert len(select("SELECT FROM etl.rejected_rows")) == 2


def test_unsubscribes_follow_a_renamed_template_with_the_role_of_the_syncs(
    become: Become, select: Select
) -> None:
    execute("INSERT INTO crm.email_suppressions (user_id, template) VALUES ('a', 'old')")
    become("etl")

    with postgres.session(Settings.from_environment(), "etl") as connection:
        postgres.select(connection, "SELECT crm.rename_email_suppressions('old', 'new')")
        connection.commit()

    rows = select("SELECT user_id, template FROM crm.email_suppressions ORDER BY template")
    assert [tuple(row.values()) for row in rows] == [("a", "new"), ("a", "old")]


def test_a_refused_run_is_recorded_with_the_role_of_the_syncs(
    become: Become, mart: Mart, select: Select
) -> None:
    become("etl")
    mart(FIRST)

    with pytest.raises(Refused):
        user_segments.sync()

    assert last_run(select)["status"] == "refused"
    assert len(select("SELECT FROM etl.rejected_rows")) == 1


def test_init_db_has_nothing_to_do_for_a_role_that_may_do_nothing(become: Become) -> None:
    become("etl")

    assert init_db() == []


def test_only_the_role_of_the_mirror_may_delete_users(
    become: Become, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_DELETE", "1")
    mart(segments("('gone', 'regular', 1, 0, 0), ('stays', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('stays', 'regular', 1, 0, 0)"))

    become("etl")
    finished = command("etl.user_segments", "--delete-missing", LOG_FORMAT="text", ETL_DEBUG="")
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("etl: ")]
    kept = len(select("SELECT FROM crm.user_segments"))
    become("etl_mirror")
    deleted = user_segments.sync(delete_missing=True)["deleted"]

    assert (finished.returncode, "Traceback" in finished.stderr) == (1, False)
    assert line.endswith("permission denied for table user_segments; grant it to guest_etl")
    assert (kept, deleted) == (2, 1)


def test_mail_workers_do_with_their_role(become: Become, mart: Mart, select: Select) -> None:
    mart(
        segments("('a', 'at_risk', 1, 0, 0), ('b', 'at_risk', 1, 0, 0), ('c', 'at_risk', 1, 0, 0)")
    )
    email_triggers.sync()
    become("mailer")

    with postgres.session(Settings.from_environment(), "worker") as connection:
        postgres.execute(connection, UNSUBSCRIBE, "a")
        mail, late = postgres.query(connection, "claim_emails", 9, "worker")
        claim = (mail["id"], "worker", mail["claimed_at"])
        (done,) = postgres.query(connection, "complete_email", *claim, True, None)
        connection.commit()
        (released,) = postgres.query(connection, "release_stale_emails", 0.0)
        connection.commit()

    assert {mail["user_id"], late["user_id"]} == {"b", "c"}
    assert (done["status"], released["id"]) == ("sent", late["id"])
    assert {row["status"] for row in select("SELECT * FROM crm.email_queue")} == {"pending", "sent"}


def test_the_status_page_does_with_its_role(become: Become, mart: Mart) -> None:
    mart(FIRST)
    with suppress(Refused):
        user_segments.sync()
    email_triggers.sync(force=True)
    become("status")

    page = status(Flags(), dt.datetime.now(dt.UTC))

    assert page["syncs"][0]["rejects"] == {"segment:null": 1}
    assert page["queue"]["pending"]["mails"] == 1


def test_support_explains_a_user_with_its_role(become: Become, mart: Mart) -> None:
    mart(FIRST)
    with suppress(Refused):
        user_segments.sync()
    email_triggers.sync(force=True)
    become("support")

    a, bad = explain("a"), explain("bad")

    sections = ("mart", "crm", "mails", "rejections", "runs")
    assert [name for name in sections if "error" in a[name] or "error" in bad[name]] == []
    assert [a[name]["next_run"].get("error") for name in ("crm", "mails")] == [None, None]
    assert [mail["status"] for mail in a["mails"]["mails"]] == ["pending"]
    assert bad["rejections"]["last"][0]["reasons"] == ["segment:null"]


def test_pruning_does_with_its_role(become: Become, mart: Mart, select: Select) -> None:
    mart(FIRST)
    for _ in range(2):
        with suppress(Refused):
            user_segments.sync()
    email_triggers.sync(force=True)
    execute(
        "UPDATE etl.sync_runs SET finished_at = 'epoch'",
        "UPDATE etl.rejected_rows SET rejected_at = 'epoch'",
        "UPDATE crm.email_queue SET status = 'cancelled', episode_at = 'epoch',"
        " updated_at = 'epoch'",
    )
    become("prune")

    foretold = prune(9, dry_run=True)

    assert prune(9) == foretold
    assert foretold == {"etl.sync_runs": 1, "etl.rejected_rows": 3, "crm.email_queue": 1}


def test_readers_of_the_crm_do_with_their_role(become: Become) -> None:
    become("reader")

    with postgres.session(Settings.from_environment(), "reader") as connection:
        for table in ("user_segments", "email_queue", "email_suppressions", "email_report"):
            assert postgres.select(connection, f"SELECT * FROM crm.{table}") == []


def test_marketing_holds_the_reins_of_the_page_with_its_role(
    become: Become, mart: Mart, select: Select
) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0), ('user_000042', 'at_risk', 1, 0, 0)"))
    email_triggers.sync()
    page = (ROOT / "docs/email-queue.md").read_text(encoding="utf-8")
    reins = next(sql for sql in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if "paused" in sql)
    statements = re.sub(r"^--.*", "", reins, flags=re.MULTILINE).split(";")[:-1]
    become("marketing")

    with postgres.session(Settings.from_environment(), "marketing") as connection:
        for statement in statements:
            postgres.execute(connection, statement)
        connection.commit()
        report = postgres.select(connection, "SELECT template, waiting FROM crm.email_report")
        since = "SELECT template, count(*) AS users FROM crm.email_suppressions GROUP BY template"
        unsubscribed = postgres.select(connection, f"{since} ORDER BY template")

    assert len(statements) == 7
    assert report == [{"template": "win_back", "waiting": 2}]
    assert [row["template"] for row in unsubscribed] == ["*", "loyalty"]
    capped = select("SELECT paused, daily_cap FROM crm.email_templates WHERE daily_cap > 0")
    assert capped == [{"paused": False, "daily_cap": 500}]
    assert select("SELECT FROM crm.email_allowlist") == []


# What they may not

_NOBODY = (
    "CREATE SCHEMA mine",
    "CREATE TABLE crm.mine (id int)",
    "CREATE TABLE etl.mine (id int)",
    "CREATE TABLE public.mine (id int)",
    "CREATE INDEX ON crm.user_segments (segment)",
    "ALTER TABLE crm.email_queue ADD COLUMN mine int",
    "DROP TABLE crm.user_segments",
    "TRUNCATE crm.email_queue",
    "SELECT FROM crm.others",
    "DELETE FROM crm.email_suppressions",
)
_NO_TEMPORARY = ("CREATE TEMPORARY TABLE mine (id int)",)
_NO_SYNC = (
    "DELETE FROM crm.email_queue",
    "DELETE FROM etl.sync_runs",
    "DELETE FROM etl.rejected_rows",
    "SELECT FROM etl.rejected_rows",
    "UPDATE etl.rejected_rows SET row = '{}'",
    "INSERT INTO crm.email_suppressions (user_id) VALUES ('a')",
)
_NOT_PERSONAL = (
    "SELECT user_id FROM crm.email_queue",
    "SELECT payload FROM crm.email_queue",
    "SELECT row FROM etl.rejected_rows",
    "SELECT key FROM etl.rejected_rows",
    "SELECT FROM crm.email_suppressions",
    "SELECT FROM crm.user_segments",
)
_READS_ONLY = (
    "UPDATE crm.email_queue SET status = 'sent'",
    "UPDATE etl.sync_runs SET error = ''",
    "INSERT INTO crm.email_suppressions (user_id) VALUES ('a')",
    "UPDATE crm.user_segments SET segment = 'x'",
    "DELETE FROM crm.user_segments",
)
FORBIDDEN = {
    "etl": (*_NO_SYNC, "DELETE FROM crm.user_segments"),
    "etl_mirror": (*_NO_SYNC, "TRUNCATE crm.user_segments"),
    "prune": (*_NO_TEMPORARY, *_NOT_PERSONAL, *_READS_ONLY),
    "status": (*_NO_TEMPORARY, *_NOT_PERSONAL, *_READS_ONLY, "DELETE FROM etl.sync_runs"),
    "support": (
        *_NO_TEMPORARY,
        *_READS_ONLY,
        "SELECT row FROM etl.rejected_rows",
        "INSERT INTO crm.email_allowlist (user_id) VALUES ('a')",
        "UPDATE crm.email_templates SET paused = true",
    ),
    "marketing": (
        *_NO_TEMPORARY,
        *_NOT_PERSONAL[:4],
        "SELECT FROM crm.user_segments",
        "SELECT status FROM crm.email_queue",
        "UPDATE crm.email_queue SET status = 'sent'",
        "INSERT INTO crm.email_queue (user_id) VALUES ('a')",
        "DELETE FROM crm.email_queue",
        "SELECT user_id FROM crm.email_suppressions",
        "SELECT reason FROM crm.email_suppressions",
        "UPDATE crm.email_suppressions SET template = '*'",
        "INSERT INTO crm.email_templates (template) VALUES ('a')",
        "UPDATE crm.email_templates SET cooldown = NULL",
        "UPDATE crm.email_templates SET min_gap = '0'",
        "DELETE FROM crm.email_templates",
        "UPDATE crm.email_counts SET mails = 0",
        "SELECT crm.record_sent_email('a', 'a', now())",
        "SELECT crm.rename_email_suppressions('a', 'b')",
        "SELECT FROM etl.sync_runs",
        "UPDATE etl.sync_runs SET error = ''",
    ),
    "reader": (*_NO_TEMPORARY, *_READS_ONLY, "SELECT FROM etl.sync_runs"),
    "mailer": (
        *_NO_TEMPORARY,
        "UPDATE crm.email_queue SET user_id = 'a'",
        "UPDATE crm.email_queue SET template = 'a'",
        "UPDATE crm.email_queue SET payload = '{}'",
        "UPDATE crm.email_queue SET priority = 1",
        "INSERT INTO crm.email_queue (user_id) VALUES ('a')",
        "DELETE FROM crm.email_queue",
        "UPDATE crm.email_suppressions SET reason = ''",
        "SELECT crm.rename_email_suppressions('a', 'b')",
        "SELECT FROM crm.user_segments",
        "SELECT FROM etl.sync_runs",
    ),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_nothing_else(role: str, become: Become) -> None:
    execute("CREATE TABLE crm.others (id int)")
    become(role)

    with postgres.session(Settings.from_environment(), "tests") as connection:
        assert [one for one in (*_NOBODY, *FORBIDDEN[role]) if not _denied(connection, one)] == []


# The file


def test_the_owner_of_the_tables_can_run_the_file_when_he_may_create_roles(
    servers: Servers, environment: Path, select: Select
) -> None:
    as_superuser(servers, "ALTER ROLE airflow CREATEROLE")
    try:
        _run_roles_sql(servers, "airflow")
        assert select("SELECT FROM pg_roles WHERE rolname = 'searchflow_etl_mirror'")
    finally:
        as_superuser(servers, "ALTER ROLE airflow NOCREATEROLE", *_drop_roles())


def test_to_run_the_file_again_takes_back_what_it_does_not_grant(
    servers: Servers, become: Become, select: Select
) -> None:
    before = select(GRANTED)
    execute(
        "GRANT DELETE ON crm.email_queue TO searchflow_etl",
        "GRANT SELECT (user_id) ON crm.email_queue TO searchflow_status",
        "GRANT CREATE ON SCHEMA crm TO searchflow_mailer",
        "GRANT CREATE ON DATABASE searchflow TO searchflow_reader",
    )
    more = [row for row in select(GRANTED) if row not in before]

    _run_roles_sql(servers)

    assert len(more) == 4
    assert select(GRANTED) == before


def test_the_file_tells_what_every_login_may_beside_the_roles(
    servers: Servers, environment: Path
) -> None:
    as_superuser(servers, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    told = _run_roles_sql(servers)
    as_superuser(servers, *told)

    assert _run_roles_sql(servers) == []
    assert told == [
        'REVOKE TEMPORARY ON DATABASE "searchflow" FROM PUBLIC',
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    ]
    as_superuser(servers, "GRANT TEMPORARY ON DATABASE searchflow TO PUBLIC", *_drop_roles())


# Helpers

FIRST = segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0), ('bad', NULL, 1, 0, 0)")
CHANGED = segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 2, 0, 0)")
RECOMMENDED = """
    CREATE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS destination, 1.0 AS score, now() AS generated_at
"""
UNSUBSCRIBE = "INSERT INTO crm.email_suppressions (user_id) VALUES ($1) ON CONFLICT DO NOTHING"
GRANTED = """
    SELECT relname AS name, relacl::text AS acl FROM pg_class
    WHERE relnamespace IN ('crm'::regnamespace, 'etl'::regnamespace)
    UNION ALL
    SELECT attname, attacl::text FROM pg_attribute WHERE attacl IS NOT NULL
    UNION ALL
    SELECT nspname, nspacl::text FROM pg_namespace
    UNION ALL
    SELECT datname, datacl::text FROM pg_database
    ORDER BY 1, 2
"""


def _run_roles_sql(servers: Servers, user: str = "postgres") -> list[str]:
    """Run it twice; return the statements that it advises in its warnings."""
    psql = shlex.split(servers.psql.replace("//airflow@", f"//{user}@"))
    file = str(queries.ROOT / "postgres" / "roles.sql")
    once = [*psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", file]
    done = [subprocess.run(once, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [(one.returncode, one.stdout) for one in done] == [(0, ""), (0, "")], done
    return re.findall(r"^roles\.sql: .*(REVOKE .*)$", done[1].stderr, re.MULTILINE)


def _drop_roles() -> list[str]:
    roles = [f"searchflow_{role}" for role in (*ROLES, "owner")]
    return [f"DROP OWNED BY {', '.join(roles)}", f"DROP ROLE {', '.join(roles)}"]


def _denied(connection: postgres.Connection, statement: str) -> bool:
    try:
        postgres.execute(connection, statement)
    except SyncError as error:
        return error.sqlstate == "42501"
    finally:
        connection.rollback()
    return False
