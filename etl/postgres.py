"""Postgres over ADBC: connect, select, stage a frame by COPY, merge it.

Nothing here commits on its own except `connect`; a run commits once, at its end.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from etl import log, parts, queries
from etl.connection import Connection, connect, rows, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.parts import Parts

__all__ = [
    "Connection",
    "ask",
    "connect",
    "execute",
    "merge",
    "select",
    "session",
    "stage",
]

# Rows of one COPY message: each is buffered whole by the driver, and 65,536 rows of a few
# columns are some 5 MB.
COPY_ROWS = 65_536

UNIQUE_VIOLATION = "23505"


def ask(connection: Connection, name: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run sql/postgres/<name>.sql and return its rows."""
    return select(connection, queries.load("postgres", name), *parameters)


def select(connection: Connection, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run one statement and return its rows; `$1` is the first parameter."""
    return connection.call(partial(rows, sql=sql, parameters=parameters))


def execute(connection: Connection, sql: str, *parameters: Any) -> None:
    """Run one statement that returns no rows."""

    def work(raw: Raw) -> None:
        with raw.cursor() as cursor:
            cursor.execute(sql, parameters or None)

    connection.call(work)


def fetch(connection: Connection, name: str, *parameters: Any) -> Callable[[], pl.DataFrame]:
    """Start reading what sql/postgres/<name>.sql returns, and return what waits for it."""
    sql = queries.load("postgres", name)

    def work(raw: Raw) -> pl.DataFrame:
        with raw.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return pl.DataFrame(pl.from_arrow(cursor.fetch_arrow_table()))

    return connection.begin(work)


def fetch_parts(
    connection: Connection, name: str, shards: int, folder: Path
) -> Callable[[], Parts]:
    """The same, cut into shards in a folder that is not there yet."""
    sql = queries.load("postgres", name)

    def work(raw: Raw) -> Parts:
        with raw.cursor() as cursor:
            cursor.execute(sql)
            return parts.cut_stream(cursor.fetch_record_batch(), shards, folder)

    return connection.begin(work)


def stage(connection: Connection, table: str, frame: pl.DataFrame) -> None:
    """COPY a frame into a temporary table of this session, its columns typed as in the frame."""
    execute(connection, f'DROP TABLE IF EXISTS pg_temp."{table}"')

    def work(raw: Raw) -> None:
        with raw.cursor() as cursor:
            cursor.adbc_ingest(table, _batches(frame), mode="create", temporary=True)

    connection.call(work)
    # Without statistics the planner takes a million staged rows for a thousand.
    execute(connection, f'ANALYZE pg_temp."{table}"')


def merge(connection: Connection, name: str, *parameters: Any) -> dict[str, int]:
    """Run sql/postgres/<name>.sql over the staged tables; return its one row of counts."""
    log.event("merge.started", logging.DEBUG, merge=name)
    begun = time.perf_counter()
    (counts,) = ask(connection, name, *parameters)
    log.event("merge.done", merge=name, seconds=round(time.perf_counter() - begun, 3))
    return counts


def _batches(frame: pl.DataFrame) -> pa.RecordBatchReader:
    """Cut a frame into COPY messages, and tell of each."""

    def told() -> Iterator[pa.RecordBatch]:
        rows = 0
        for part in frame.iter_slices(COPY_ROWS):  # or Arrow would hold a copy of all of it
            yield from part.to_arrow().to_batches()
            rows += len(part)
            log.event("rows.copied", logging.DEBUG, rows=rows, of=len(frame))

    return pa.RecordBatchReader.from_batches(frame.clear().to_arrow().schema, told())
