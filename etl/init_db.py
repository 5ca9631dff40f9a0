"""Bring the database up to sql/postgres/schema.sql: `python -m etl.init_db`."""

from __future__ import annotations

import re

from etl import postgres, queries
from etl.settings import Settings


def init_db() -> list[str]:
    """Create what is missing and return its names; what is there is not touched.

    The catalog is read first, so that a run with nothing to do takes no lock. Where DDL is
    due it gives up after two seconds rather than queue behind a long query and make every
    later one wait behind it.

    Raises:
        SyncError: Postgres cannot be reached, or does not let this role create tables.
    """
    from adbc_driver_postgresql import dbapi

    settings = Settings.from_environment()
    connection = postgres.connect(settings, "etl.init_db")
    try:
        missing = _missing(connection)
        postgres.execute(connection, "SET LOCAL lock_timeout = '2s'")
        for ddl in missing.values():
            postgres.execute(connection, ddl)
        connection.commit()
    except dbapi.Error as error:
        raise postgres.explained(error, settings) from error
    finally:
        connection.close()
    return list(missing)


def _missing(connection: postgres.Connection) -> dict[str, str]:
    """The statements to run, by the name of what each makes."""
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


if __name__ == "__main__":
    from etl import cli

    cli.init_db()
