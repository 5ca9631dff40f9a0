"""Bring the database up to sql/postgres/schema.sql: `python -m etl.init_db`."""

from __future__ import annotations

import re
import sys
from typing import NoReturn

from etl import cli, postgres
from etl.cli import report
from etl.errors import SyncError, UsageError
from etl.mail import templates
from etl.plumbing import failure, queries
from etl.postgres import trust
from etl.settings import Settings

_LOCK_TIMEOUT = "55P03"  # the SQLSTATE


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
    with postgres.session(settings, "etl.init_db") as connection:
        trust.check(connection, settings)
        missing = due_statements(connection)
        if missing:
            _within_two_seconds(connection, settings, queries.load("postgres", "init_db_lock"))
            missing = due_statements(connection)
            for name, ddl in missing.items():
                if not _is_index_of_old_table(name, ddl, missing):
                    _within_two_seconds(connection, settings, ddl, name)
            trust.check(connection, settings)  # somebody may have made one of them just before us
            connection.commit()
            _build_indices(connection, settings, missing)
        if templates.missing(connection):
            templates.update(connection, settings)
            connection.commit()
    return list(missing)


def _is_index_of_old_table(name: str, ddl: str, missing: dict[str, str]) -> bool:
    table = re.search(r"^CREATE (?:UNIQUE )?INDEX IF NOT EXISTS \S+\s+ON (\S+)", ddl, re.MULTILINE)
    return table is not None and table[1] not in missing


def _build_indices(
    connection: postgres.Connection, settings: Settings, missing: dict[str, str]
) -> None:
    """Build what is missing without a lock that writers notice; one that was cut is built anew."""
    due = {name: ddl for name, ddl in missing.items() if _is_index_of_old_table(name, ddl, missing)}
    if not due:
        return
    # One at a time, in a transaction beside those of the indices, which can be in none.
    _within_two_seconds(connection, settings, queries.load("postgres", "init_db_lock"))
    with postgres.session(settings, "etl.init_db") as builder:
        for name in due.keys() & due_statements(connection).keys():
            postgres.execute_alone(builder, f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            postgres.execute_alone(builder, due[name].replace(" INDEX ", " INDEX CONCURRENTLY ", 1))
    connection.commit()


def _within_two_seconds(
    connection: postgres.Connection, settings: Settings, statement: str, makes: str = "anything"
) -> None:
    try:
        postgres.execute(connection, "SET LOCAL lock_timeout = '2s'")
        postgres.execute(connection, statement)
    except SyncError as error:
        if error.sqlstate != _LOCK_TIMEOUT:
            raise
        raise SyncError(
            f"Postgres ({settings.postgres_address}): gave up making {makes}: another session has"
            " held the lock it takes for 2 seconds; nothing was made, run it again later"
        ) from error


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

    cli.exit_with(work)


if __name__ == "__main__":
    main()
