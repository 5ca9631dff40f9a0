"""Postgres over ADBC: connect, select, stage a frame by COPY, merge it.

Nothing here commits on its own except `connect`; a run commits once, at its end.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from etl import log, parts, queries
from etl.connection import Connection, connect, rows, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
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
    "slices",
    "stage",
    "stage_parts",
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
    stage_parts(connection, table, slices(frame), len(frame))


def stage_parts(
    connection: Connection, table: str, parts: Iterable[pl.DataFrame], rows: int = 0
) -> None:
    """The same for a frame that comes in parts: while one is sent, the next is made.

    They are made as fast as can be, for the warehouse's file may be open meanwhile; what the
    server has not taken yet waits in memory.

    Args:
        connection: the session.
        table: a name; a table that bears it already makes way.
        parts: frames of the same columns, one at least.
        rows: how many there are in all, where that is known.
    """
    execute(connection, f'DROP TABLE IF EXISTS pg_temp."{table}"')
    made: SimpleQueue[pl.DataFrame | None] = SimpleQueue()

    def taken() -> Iterator[pl.DataFrame]:
        while (part := made.get()) is not None:
            yield part

    def work(raw: Raw) -> None:
        with raw.cursor() as cursor:
            cursor.adbc_ingest(table, _batches(taken(), rows), mode="create", temporary=True)

    try:
        copied = connection.begin(work)
        for part in parts:
            made.put(part)
    except BaseException:
        with suppress(Empty):  # what was not sent need not be
            while True:
                made.get_nowait()
        raise
    finally:
        made.put(None)
    copied()
    # Without statistics the planner takes a million staged rows for a thousand. It need not know
    # much more than how many they are.
    execute(connection, "SET LOCAL default_statistics_target = 10")
    execute(connection, f'ANALYZE pg_temp."{table}"')


def slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut a frame into parts of the size of a COPY message; one at least."""
    for start in range(0, max(len(frame), 1), COPY_ROWS):
        yield frame.slice(start, COPY_ROWS)


def merge(connection: Connection, name: str, *parameters: Any) -> dict[str, int]:
    """Run sql/postgres/<name>.sql over the staged tables; return its one row of counts."""
    log.event("merge.started", logging.DEBUG, merge=name)
    begun = time.perf_counter()
    (counts,) = ask(connection, name, *parameters)
    log.event("merge.done", merge=name, seconds=round(time.perf_counter() - begun, 3))
    return counts


def _batches(frames: Iterator[pl.DataFrame], rows: int) -> pa.RecordBatchReader:
    """Cut frames into COPY messages, and tell of each."""
    first = next(frames)

    def told() -> Iterator[pa.RecordBatch]:
        sent = 0
        for frame in chain([first], frames):
            for part in slices(frame):  # or Arrow would hold a copy of all of it
                yield from part.to_arrow().to_batches()
                sent += len(part)
                log.event("rows.copied", logging.DEBUG, rows=sent, of=rows)

    return pa.RecordBatchReader.from_batches(first.clear().to_arrow().schema, told())
