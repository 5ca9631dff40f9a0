"""Bring the database up to sql/postgres/schema.sql: `python -m etl.init_db`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

from etl import postgres
from etl.cli import report
from etl.cli.exits import exit_with
from etl.errors import SyncError, UsageError
from etl.mail import templates
from etl.plumbing import failure, queries
from etl.postgres import trust
from etl.settings import Settings

_LOCKED = {"55P03", "40P01"}  # SQLSTATE of a lock that did not come in time, and of a deadlock

# A worker waits for a try of ours no longer than this.
_SHORTLY = "SET LOCAL lock_timeout = '50ms'"
_PATIENCE, _PAUSE = 2, 0.1  # seconds

T = TypeVar("T")


@failure.sanitised()
def init_db() -> list[str]:
    """Create what is missing and return its names; what is there is not touched.

    The catalog is read first, so that a run with nothing to do takes no lock. Where DDL is
    due it gives up after two seconds rather than queue behind a long query and make every
    later one wait behind it. An index of a table with rows is built last and beside whoever
    writes to it. Rows of crm.email_templates are added for the rules that have none.

    Raises:
        SyncError: Postgres cannot be reached, does not let this role create tables, a table
            to complete is locked, or what is there has an untrusted owner; nothing was made.
    """
    settings = Settings.from_environment()
    with postgres.trusted_session(settings, "etl.init_db") as connection:
        missing = due_statements(connection)
        if missing:
            missing = _in_short_tries(connection, settings, partial(_make, connection, settings))
            _build_indices(connection, settings, missing)
        if templates.missing(connection):
            templates.update(connection, settings)
            connection.commit()
    return list(missing)


class _LockedError(SyncError):
    """What was to be made needs a lock that another session has."""


def _in_short_tries(
    connection: postgres.Connection, settings: Settings, make: Callable[[], T]
) -> T:
    """Do DDL as one transaction; again for two seconds where another session has a lock.

    A try waits for a moment only, and lets go of what it had locked, because whoever comes
    meanwhile waits behind it.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            postgres.execute(connection, _SHORTLY)
            made = make()
            connection.commit()
        except _LockedError as error:
            connection.rollback()
            if time.monotonic() > until:
                raise SyncError(
                    f"Postgres ({settings.postgres_address}): gave up making {error}: another"
                    f" session has held the lock it takes for {_PATIENCE} seconds; nothing was"
                    " made, run it again later"
                ) from error
            time.sleep(_PAUSE)
        else:
            return made


def _make(connection: postgres.Connection, settings: Settings) -> dict[str, str]:
    """Make all but the indices of tables that are there; return what was missing."""
    _execute(connection, queries.load("postgres", "init_db_lock"), "anything")
    missing = due_statements(connection)
    for name, ddl in missing.items():
        if _index_of_old_table(ddl, missing) is None:
            _execute(connection, ddl, name)
    trust.check(connection, settings)  # somebody may have made one of them just before us
    return missing


def _execute(
    connection: postgres.Connection,
    statement: str,
    makes: str,
    *,
    alone: bool = False,
) -> None:
    try:
        (postgres.execute_alone if alone else postgres.execute)(connection, statement)
    except SyncError as error:
        if error.sqlstate in _LOCKED:
            raise _LockedError(makes) from error
        raise


def _index_of_old_table(ddl: str, missing: dict[str, str]) -> str | None:
    """Return the index that a statement makes, where its table was there before."""
    made = re.search(
        r"^CREATE (?:UNIQUE )?INDEX IF NOT EXISTS (\S+)\s+ON (\w+)\.(\w+)", ddl, re.MULTILINE
    )
    if made is None or f"{made[2]}.{made[3]}" in missing:
        return None
    return f"{made[2]}.{made[1]}"


def _build_indices(
    connection: postgres.Connection, settings: Settings, missing: dict[str, str]
) -> None:
    """Build what is missing without a lock that writers notice; one that was cut is built anew.

    What stands behind an index in its statement, such as a key that takes it over, comes last.
    """
    due = {name: ddl for name, ddl in missing.items() if _index_of_old_table(ddl, missing)}
    if not due:
        return

    def build() -> None:
        # One at a time, in a transaction beside those of the indices, which can be in none.
        _execute(connection, queries.load("postgres", "init_db_lock"), "anything")
        with postgres.session(settings, "etl.init_db") as builder:
            for name in due.keys() & due_statements(connection).keys():
                index = _index_of_old_table(due[name], missing)
                ddl = due[name].partition(";")[0].replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
                drop = f"DROP INDEX CONCURRENTLY IF EXISTS {index}"
                _execute(builder, drop, name, alone=True)
                _execute(builder, ddl, name, alone=True)

    def use() -> None:
        for name, ddl in due.items():
            if rest := ddl.partition(";")[2].strip():
                _execute(connection, rest, name)

    _in_short_tries(connection, settings, build)
    _in_short_tries(connection, settings, use)


def due_statements(connection: postgres.Connection) -> dict[str, str]:
    """Return the statements of schema.sql that are due, by the name of what each makes."""
    catalog = postgres.select(connection, queries.load("postgres", "catalog"))
    present = {row["name"] for row in catalog}
    missing = {name: ddl for name, ddl in _statements() if name not in present}
    # A new table comes with all its columns.
    return {
        name: ddl
        for name, ddl in missing.items()
        if name.rpartition(".")[0] not in missing or name.count(".") < 2
    }


def _statements() -> list[tuple[str, str]]:
    text = queries.load("postgres", "schema")
    return re.findall(r"^-- makes: (\S+)\n(.*?)(?=^-- makes: |\Z)", text, re.MULTILINE | re.DOTALL)


def main() -> NoReturn:
    """Say what was made, or why not, and exit."""

    def work() -> int:
        if {"-h", "--help"} & set(sys.argv[1:]):
            report.write(f"usage: python -m etl.init_db\n\n{__doc__}")
        elif sys.argv[1:]:
            raise UsageError("init_db takes no arguments; settings come from the environment")
        else:
            report.write("\n".join(f"made {name}" for name in init_db()) or "nothing to do")
        return 0

    exit_with(work)


if __name__ == "__main__":
    main()
