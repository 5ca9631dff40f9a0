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
from etl.check import rights, tables
from etl.check.findings import FAIL, OK, WARN, Finding, failed, has_failed, skipped
from etl.check.tables import TABLES, TRIGGERS
from etl.errors import SyncError
from etl.mail import rules
from etl.plumbing.counted import counted
from etl.postgres import Connection, trust
from etl.run import ledger
from etl.settings import Settings
from etl.syncs import SYNCS

_SERVER, _RIGHTS, _RUNS, _MAILS = "Postgres", "Postgres rights", "runs", "mail queue"

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
        later = skipped(_SERVER, TABLES, _RIGHTS, TRIGGERS, _RUNS, _MAILS)
        return None, [failed(_SERVER, error), *later]
    findings = [_server(server, settings)]
    findings += _attempt(TABLES, connection, settings, _tables)
    findings += _attempt(_RIGHTS, connection, settings, _rights)
    findings += _attempt(TRIGGERS, connection, settings, tables.look)
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
        found.append(failed(TABLES, error))
    due = init_db.due_statements(connection)
    if absent := [words for name, ddl in due.items() if (words := _absent(name, ddl, due))]:
        first = failed(TABLES, postgres.foreseen(settings, "42P01", absent[0]))
        found.append(replace(first, found=", ".join([first.found, *absent[1:]])))
    elif due:
        advice = "run `python -m etl.init_db` (make init-db)"
        found.append(Finding(TABLES, WARN, f"not up to date, without {', '.join(due)}", advice))
    return found or [Finding(TABLES, OK, "up to date, of trusted owners, without children")]


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
