"""Postgres: reached, what it is, tables, rights, what stands in a run's way. Reads only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import orjson

from etl import init_db, postgres
from etl.check import rights
from etl.check.findings import FAIL, OK, WARN, Finding, failed, has_failed, skipped
from etl.errors import SyncError
from etl.mail import rules
from etl.plumbing.counted import counted
from etl.postgres import Connection, trust
from etl.run import ledger
from etl.settings import Settings
from etl.syncs import SYNCS

_SERVER, _TABLES, _RIGHTS, _TRIGGERS, _RUNS, _MAILS = (
    "Postgres",
    "Postgres tables",
    "Postgres rights",
    "Postgres triggers",
    "runs",
    "mail queue",
)

# Of each transaction that looks: Postgres itself sees to it that nothing is written.
READ_ONLY = "SET TRANSACTION READ ONLY"

# The oldest that docs/deployment.md promises.
_OLDEST = 140_000


def look(settings: Settings, stack: ExitStack) -> tuple[Connection | None, list[Finding]]:
    """Look at the server and the tables.

    Args:
        settings: where it is.
        stack: keeps the connection open.

    Returns:
        A connection that a run would get on with, None where it would not; and the findings.
    """
    try:
        connection = stack.enter_context(postgres.session(settings, "etl.check"))
        (server,) = postgres.query(connection, "check_server")
    except SyncError as error:
        later = skipped(_SERVER, _TABLES, _RIGHTS, _TRIGGERS, _RUNS, _MAILS)
        return None, [failed(_SERVER, error), *later]
    findings = [_server(server, settings)]
    findings += _attempt(_TABLES, connection, settings, _tables)
    findings += _attempt(_RIGHTS, connection, settings, _rights)
    findings += _attempt(_TRIGGERS, connection, settings, _odd)
    if has_failed(findings):
        because = next(one.name for one in findings if one.state == FAIL)
        return None, [*findings, *skipped(because, _RUNS, _MAILS)]
    findings += _attempt(_RUNS, connection, settings, _runs)
    findings += _attempt(_MAILS, connection, settings, _reins)
    return (None if has_failed(findings) else connection), findings


def _attempt(
    name: str,
    connection: Connection,
    settings: Settings,
    step: Callable[[Connection, Settings], Iterable[Finding]],
) -> list[Finding]:
    """Take one step; what goes wrong is its finding."""
    try:
        postgres.execute(connection, READ_ONLY)
        return list(step(connection, settings))
    except SyncError as error:
        connection.try_rollback()
        return [failed(name, error)]


def _server(server: dict[str, Any], settings: Settings) -> Finding:
    tls = server["tls"] or "no TLS"
    way = "through a pooler or proxy" if _is_behind(server, settings) else "direct"
    found = f"{settings.postgres_address}: {server['version']}, {tls}, {server['encoding']}, {way}"
    if server["number"] < _OLDEST:
        advice = f"the oldest supported is {_OLDEST // 10_000}: upgrade the server"
        return Finding(_SERVER, FAIL, found, advice)
    if server["read_only"]:
        words = "cannot execute DROP TABLE in a read-only transaction"
        return failed(_SERVER, postgres.foreseen(settings, "25006", words))
    if server["encoding"] not in ("UTF8", "SQL_ASCII"):
        advice = "use a database in UTF8: a character that this one cannot hold ends a run"
        return Finding(_SERVER, WARN, found, advice)
    address = server["address"]
    if address and not server["tls"] and ipaddress.ip_address(address).is_global:
        advice = "rows and login cross the internet as they are: set PGSSLMODE=verify-full"
        return Finding(_SERVER, WARN, found, advice)
    return Finding(_SERVER, OK, found)


def _is_behind(server: dict[str, Any], settings: Settings) -> bool:
    """Return whether something stands between: it took no options, or listens elsewhere."""
    by_socket = settings.postgres_host.startswith("/")
    expected = None if by_socket else settings.postgres_port
    return not server["options"] or server["port"] != expected


def _tables(connection: Connection, settings: Settings) -> Iterable[Finding]:
    """Owners, child tables, and what init_db would make."""
    found = []
    try:
        trust.check(connection, settings)
    except SyncError as error:
        found.append(failed(_TABLES, error))
    due = init_db.due_statements(connection)
    if absent := [words for name, ddl in due.items() if (words := _absent(name, ddl, due))]:
        first = failed(_TABLES, postgres.foreseen(settings, "42P01", absent[0]))
        found.append(replace(first, found=", ".join([first.found, *absent[1:]])))
    elif due:
        advice = "run `python -m etl.init_db` (make init-db)"
        found.append(Finding(_TABLES, WARN, f"not up to date, without {', '.join(due)}", advice))
    return found or [Finding(_TABLES, OK, "up to date, of trusted owners, without children")]


def _absent(name: str, ddl: str, due: Collection[str]) -> str:
    """Say that something which a run needs is not there, as Postgres does; "": none needs it."""
    used = {table["name"] for table in rights.tables()}
    if name in used:
        return f'relation "{name}" does not exist'
    if name in rights.FUNCTIONS:
        return f"function {name}({rights.FUNCTIONS[name]}) does not exist"
    table = name.rpartition(".")[0]
    if name.count(".") == 2 and table in used:
        return f'{"column" if "ADD COLUMN" in ddl else "constraint"} "{name}" does not exist'
    unique = re.search(r"CREATE UNIQUE INDEX.*?\bON (\S+)", ddl, re.DOTALL)
    if unique and unique[1] in used and unique[1] not in due:
        return f'index "{name}" does not exist'
    return ""


def _rights(connection: Connection, settings: Settings) -> Iterable[Finding]:
    user = settings.postgres_user
    needed = [right for right in rights.needed() if right["privilege"] != "CONNECT"]
    asked = orjson.dumps(needed).decode()
    lacking = postgres.query(connection, "check_rights", asked)
    for one in lacking:
        error = postgres.foreseen(settings, "42501", _denied(one, settings))
        where = one["kind"].upper() + " " if one["kind"] != "table" else ""
        name = settings.postgres_db if one["kind"] == "database" else one["name"]
        yield failed(_RIGHTS, error, f"GRANT {one['privileges']} ON {where}{name} TO {user}")
    if not lacking:
        yield Finding(_RIGHTS, OK, f"{user} has those of searchflow_etl (sql/postgres/roles.sql)")


def _denied(lacking: dict[str, Any], settings: Settings) -> str:
    kind, name = lacking["kind"], lacking["name"].rpartition(".")[2]
    if kind == "database":
        database = settings.postgres_db
        return f'permission denied to create temporary tables in database "{database}"'
    return f"permission denied for {kind} {name}"


def _odd(connection: Connection, settings: Settings) -> Iterable[Finding]:
    """What makes the tables others than those of schema.sql."""
    found = postgres.query(connection, "check_tables", orjson.dumps(rights.tables()).decode())
    for one in found:
        yield _odd_finding(one["kind"], one["name"], one["what"], settings)
    if not found:
        yield Finding(_TRIGGERS, OK, "no triggers, rules, policies or columns of other types")


def _odd_finding(kind: str, name: str, what: str, settings: Settings) -> Finding:
    if kind == "policy":
        table = name.rpartition(".")[2]
        words = f'query would be affected by row-level security policy for table "{table}"'
        return failed("Postgres row security", postgres.foreseen(settings, "42501", words))
    place, state, said, advice = _ODD[kind]
    return Finding(place, state, f"{name} {said} {what}".rstrip(), advice)


_ALTER = "compare the table with sql/postgres/schema.sql, and alter its column"

# By the kind that check_tables.sql tells: where it is shown, whether it stops a run, what to do.
_ODD = {
    "rule": (_TRIGGERS, FAIL, "cannot be written by a run: rule", "mend it or disable it"),
    "dropper": (
        _TRIGGERS,
        WARN,
        "may lose rows, which ends a run, by trigger",
        "see that it drops none; mend it or disable it",
    ),
    "trigger": (
        _TRIGGERS,
        WARN,
        "has trigger",
        "it is part of each run: what it raises ends that, and its time adds to it",
    ),
    "type": (_TABLES, WARN, "is", _ALTER),
    "other type": (_TABLES, FAIL, "is", _ALTER),
    "absent": (
        _TABLES,
        FAIL,
        "has no column",
        "add what sql/postgres/schema.sql gives the table: `python -m etl.init_db` does not, where"
        " the table was made with it",
    ),
    "key": (
        _TABLES,
        FAIL,
        "has no unique index of the columns",
        "give it the key that sql/postgres/schema.sql has",
    ),
    "generated": (
        _TABLES,
        FAIL,
        "is generated, and a run writes it",
        "ALTER TABLE ... ALTER COLUMN ... DROP EXPRESSION",
    ),
    "collation": (
        _TABLES,
        WARN,
        "takes different texts for the same by its collation",
        'let it have that of sql/postgres/schema.sql, or COLLATE "C"',
    ),
    "not null": (
        _TABLES,
        FAIL,
        "is NOT NULL, and no run has a value for it",
        "give it a DEFAULT, or drop NOT NULL",
    ),
    "constraint": (
        _TABLES,
        WARN,
        "has a constraint that is not of schema.sql:",
        "a row of the mart that breaks it ends a run: see that none does",
    ),
}


def _runs(connection: Connection, _: Settings) -> Iterable[Finding]:
    """Who runs just now."""
    found = [who for sync in SYNCS if (who := ledger.running(connection, sync))]
    for who in found:
        yield failed(_RUNS, SyncError(who), state=WARN)
    if not found:
        yield Finding(_RUNS, OK, "no sync is running")


def _reins(connection: Connection, _: Settings) -> Iterable[Finding]:
    """What people set to hold mails back."""
    (reins,) = postgres.query(connection, "status_reins")
    if reins["allowlist"]:
        users = counted(reins["allowlist"], "user is", "users are")
        found = f"only {users} mailed: crm.email_allowlist is on"
        yield Finding(_MAILS, WARN, found, "right for a test; else DELETE FROM crm.email_allowlist")
    if reins["paused"]:
        advice = "their mails wait: UPDATE crm.email_templates SET paused = false when that is over"
        yield Finding(_MAILS, WARN, f"paused templates: {reins['paused']}", advice)
    if not (reins["allowlist"] or reins["paused"]):
        caps = f", daily caps: {reins['daily_caps']}" if reins["daily_caps"] else ""
        yield Finding(_MAILS, OK, f"{counted(len(rules.RULES), 'template')}, none paused{caps}")
