"""Postgres over ADBC: connect, select, stage a frame by COPY, merge it.

Nothing here commits on its own except `connect`; a run commits once, at its end.
"""

from __future__ import annotations

import contextvars
import logging
import os
import re
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pyarrow as pa

from etl import log, queries
from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl
    from adbc_driver_manager.dbapi import Connection as _Connection

    from etl.settings import Settings

    Connection: TypeAlias = _Connection

# Rows of one COPY message: each is buffered whole by the driver, and 65,536 rows of a few
# columns are some 5 MB.
COPY_ROWS = 65_536

_T = TypeVar("_T")

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


@contextmanager
def session(settings: Settings, purpose: str) -> Iterator[Connection]:
    """Connect for the length of a block; what it did not commit is undone.

    Raises:
        SyncError: whatever Postgres complains of, in one line.
    """
    from adbc_driver_postgresql import dbapi

    connection = connect(settings, purpose)
    try:
        yield connection
    except dbapi.Error as error:
        raise explained(error, settings) from error
    finally:
        with suppress(dbapi.Error):
            connection.close()


def ask(connection: Connection, name: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run sql/postgres/<name>.sql and return its rows."""
    return select(connection, queries.load("postgres", name), *parameters)


def select(connection: Connection, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run one statement and return its rows; `$1` is the first parameter."""

    def work() -> list[dict[str, Any]]:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            rows: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
            return rows

    return _interruptible(connection, work)


def execute(connection: Connection, sql: str, *parameters: Any) -> None:
    """Run one statement that returns no rows."""

    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)

    _interruptible(connection, work)


def stage(connection: Connection, table: str, frame: pl.DataFrame) -> None:
    """COPY a frame into a temporary table of this session, its columns typed as in the frame."""
    execute(connection, f'DROP TABLE IF EXISTS pg_temp."{table}"')

    def work() -> None:
        with connection.cursor() as cursor:
            cursor.adbc_ingest(table, _batches(frame), mode="create", temporary=True)

    _interruptible(connection, work)
    # Without statistics the planner takes a million staged rows for a thousand.
    execute(connection, f'ANALYZE pg_temp."{table}"')


def merge(connection: Connection, name: str, *parameters: Any) -> dict[str, int]:
    """Run sql/postgres/<name>.sql over the staged tables; return its one row of counts."""
    log.event("merge.started", logging.DEBUG, merge=name)
    begun = time.perf_counter()
    (counts,) = ask(connection, name, *parameters)
    log.event("merge.done", merge=name, seconds=round(time.perf_counter() - begun, 3))
    return counts


def undo(connection: Connection) -> None:
    """Roll back, but wait for it no longer than two seconds.

    A connection that the server has cut cannot roll back, and one that was interrupted at the
    wrong moment may never answer: the server undoes both when the process is gone.
    """

    def work() -> None:
        with suppress(Exception):
            connection.rollback()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=2)


def explained(error: BaseException, settings: Settings) -> SyncError:
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


def _interruptible(connection: Connection, work: Callable[[], _T]) -> _T:
    """Do blocking work on a connection in a thread, and cancel it when this thread is stopped.

    Python's signal handlers run between two steps of the main thread, hence not while that
    waits inside the driver: a stop would only be noticed when a long merge is through.
    """
    with ThreadPoolExecutor(1, "etl-postgres") as pool:
        future = pool.submit(contextvars.copy_context().run, work)
        try:
            return future.result()
        except BaseException:
            _cancel(connection, future)
            raise


def _cancel(connection: Connection, future: Future[Any]) -> None:
    # More than once: a cancel that comes just before its statement is lost.
    while not wait([future], timeout=0).done:
        connection.adbc_cancel()
        wait([future], timeout=0.2)


def _batches(frame: pl.DataFrame) -> pa.RecordBatchReader:
    """Cut a frame into COPY messages, and tell of each."""
    reader = frame.to_arrow().to_reader(max_chunksize=COPY_ROWS)

    def told() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader:
            yield batch
            rows += batch.num_rows
            log.event("rows.copied", logging.DEBUG, rows=rows, of=len(frame))

    return pa.RecordBatchReader.from_batches(reader.schema, told())


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


def _primary_message(error: BaseException) -> str:
    """The server's own first line: no DETAIL, which holds row values, and no query text."""
    for key, value in getattr(error, "details", None) or []:
        if key == b"PG_DIAG_MESSAGE_PRIMARY":
            return " ".join(value.decode(errors="replace").split())
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    first = re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", first)
    first = first.replace("Failed to connect: connection to server at ", "cannot connect to ")
    return first.replace("Failed to connect: ", "cannot connect: ")


def _connect_hint(message: str) -> str:
    if "password" in message or "no pg_hba.conf entry" in message:
        return "check POSTGRES_USER and POSTGRES_PASSWORD"
    if "database" in message and "does not exist" in message:
        return "check POSTGRES_DB"
    return "is it up, and are POSTGRES_HOST and POSTGRES_PORT right?"
