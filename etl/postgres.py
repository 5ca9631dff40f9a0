"""Postgres over ADBC: connect, select, stage a frame by COPY, merge it.

Nothing here commits on its own except `connect`; a run commits once, at its end.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from etl import queries
from etl.errors import SyncError

if TYPE_CHECKING:
    import polars as pl
    from adbc_driver_manager.dbapi import Connection as _Connection

    from etl.settings import Settings

    Connection: TypeAlias = _Connection

# Rows of one COPY message: each is buffered whole by the driver, and 65,536 rows of a few
# columns are some 5 MB.
COPY_ROWS = 65_536

_UNDEFINED = {"3F000", "42P01", "42703"}  # schema, table, column
_INIT = "run `python -m etl.init_db` (make init-db) to bring the database up to date"


def connect(settings: Settings, purpose: str) -> Connection:
    """Open a connection that names itself `purpose pid@host` in pg_stat_activity.

    Raises:
        SyncError: the server cannot be reached or does not let us in.
    """
    from adbc_driver_postgresql import dbapi

    try:
        connection: Connection = dbapi.connect(
            _conninfo(settings, f"{purpose} {os.getpid()}@{socket.gethostname()}"),
            # The driver's own default reads all of pg_attribute first: 40 ms.
            db_kwargs={"adbc.postgresql.type_resolver_mode": "builtin"},
        )
        select(connection, queries.load("postgres", "session"))
        connection.commit()
    except dbapi.Error as error:
        raise explained(error, settings) from error
    return connection


def select(connection: Connection, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run one statement and return its rows; `$1` is the first parameter."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        rows: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
        return rows


def execute(connection: Connection, sql: str, *parameters: Any) -> None:
    """Run one statement that returns no rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def stage(connection: Connection, table: str, frame: pl.DataFrame) -> None:
    """COPY a frame into a temporary table of this session, its columns typed as in the frame."""
    execute(connection, f'DROP TABLE IF EXISTS pg_temp."{table}"')
    with connection.cursor() as cursor:
        reader = frame.to_arrow().to_reader(max_chunksize=COPY_ROWS)
        cursor.adbc_ingest(table, reader, mode="create", temporary=True)
    # Without statistics the planner takes a million staged rows for a thousand.
    execute(connection, f'ANALYZE pg_temp."{table}"')


def merge(connection: Connection, name: str, *parameters: Any) -> dict[str, int]:
    """Run sql/postgres/<name>.sql over the staged tables; return its one row of counts."""
    (counts,) = select(connection, queries.load("postgres", name), *parameters)
    return counts


def explained(error: Exception, settings: Settings) -> SyncError:
    """Turn a driver's error into one line: what, where, what to do."""
    where = f"Postgres ({settings.postgres_address})"
    sqlstate = getattr(error, "sqlstate", None)
    message = _primary_message(error)
    if sqlstate in _UNDEFINED:
        return SyncError(f"{where}: {message}; {_INIT}")
    if sqlstate == "42501":
        return SyncError(f"{where}: {message}; grant it to {settings.postgres_user}")
    if sqlstate is None and "connect" in message:
        return SyncError(f"{where}: {message}; {_connect_hint(message)}")
    return SyncError(f"{where}: {message}" + (f" (SQLSTATE {sqlstate})" if sqlstate else ""))


def _conninfo(settings: Settings, application: str) -> str:
    parts = {
        "host": settings.postgres_host,
        "port": settings.postgres_port,
        "dbname": settings.postgres_db,
        "user": settings.postgres_user,
        "password": settings.postgres_password,
        "application_name": application,
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    return " ".join(f"{key}={_quoted(value)}" for key, value in parts.items() if value is not None)


def _quoted(value: object) -> str:
    """Quote a conninfo value as libpq asks for it, so that any character may be in a password."""
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _primary_message(error: Exception) -> str:
    """The server's own first line: no DETAIL, which holds row values, and no query text."""
    for key, value in getattr(error, "details", None) or []:
        if key == "PG_DIAG_MESSAGE_PRIMARY":
            return " ".join(value.decode(errors="replace").split())
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    first = re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", first)
    return re.sub(r"Failed to connect: (connection to server at )?", "cannot connect to ", first)


def _connect_hint(message: str) -> str:
    if "password" in message or "no pg_hba.conf entry" in message:
        return "check POSTGRES_USER and POSTGRES_PASSWORD"
    if "database" in message and "does not exist" in message:
        return "check POSTGRES_DB"
    return "is it up, and are POSTGRES_HOST and POSTGRES_PORT right?"
