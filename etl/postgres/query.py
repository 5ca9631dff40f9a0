"""Statements of sql/postgres, run on a connection; `$1` is the first parameter."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from etl.errors import SyncError
from etl.plumbing import queries
from etl.postgres import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.postgres.call import Call
    from etl.postgres.session import Connection

_T = TypeVar("_T")

# Some 65,536 rows of a few columns.
_BATCHES = {"adbc.postgresql.batch_size_hint_bytes": "4000000"}

# For the rest of the transaction. Rows are taken one by one: workers cost a third more of the
# server's CPU and save no time.
_NO_WORKERS = "SET LOCAL max_parallel_workers_per_gather = 0"


def query(connection: Connection, name: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run sql/postgres/<name>.sql and return its rows."""
    return select(connection, queries.load("postgres", name), *parameters)


def select(connection: Connection, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run one statement and return its rows."""
    return connection.call(partial(session.fetch_raw, sql=sql, parameters=parameters))


def execute(connection: Connection, sql: str, *parameters: Any) -> None:
    """Run one statement that returns no rows."""
    connection.call(partial(session.execute_raw, sql=sql, parameters=parameters))


def stream(
    connection: Connection, name: str, consume: Callable[[pa.RecordBatchReader], _T]
) -> Call[_T]:
    """Start sql/postgres/<name>.sql, and let `consume` take its rows in a thread of the connection.

    The statement has no parameters, because the driver would hold all rows in memory for one that
    has.

    Returns:
        The call, whose result is what `consume` returned. Until then the connection is busy.
    """
    sql = queries.load("postgres", name)

    def work(raw: Raw) -> _T:
        session.execute_raw(raw, _NO_WORKERS)
        with raw.cursor() as cursor:
            cursor.adbc_statement.set_options(**_BATCHES)
            cursor.execute(sql)
            return consume(cursor.fetch_record_batch())

    return connection.submit(work)


def execute_alone(connection: Connection, sql: str) -> None:
    """Run one statement that must not be in a transaction, when none is open."""
    connection.call_alone(partial(session.execute_raw, sql=sql))


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Undo no more than the block where a statement in it fails, so that another may follow."""
    execute(connection, "SAVEPOINT before_block")
    try:
        yield
    except SyncError:
        with suppress(SyncError):  # the server is gone, as the first error tells
            execute(connection, "ROLLBACK TO SAVEPOINT before_block")
        raise
