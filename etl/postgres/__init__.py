"""Postgres over ADBC: connect, select, stage a frame by COPY, merge it.

Nothing here commits on its own except `connect`; a run commits once, at its end.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from etl.errors import SyncError
from etl.plumbing import log, queries
from etl.postgres.connection import Connection, connect, rows, session
from etl.warehouse import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.warehouse.parts import Parts

__all__ = [
    "Connection",
    "Merge",
    "ask",
    "connect",
    "execute",
    "merge",
    "refuse_unwritten",
    "select",
    "session",
    "slices",
    "stage",
    "stage_parts",
    "write",
]

# Rows of one COPY message: each is buffered whole by the driver, and 65,536 rows of a few
# columns are some 5 MB.
COPY_ROWS = 65_536

UNIQUE_VIOLATION = "23505"
_NOT_SUPPORTED = "0A000"  # such as a rule on a table that a WITH query writes


@dataclass(frozen=True)
class Merge:
    """A statement that writes staged rows to a table and returns one row of counts.

    Attributes:
        name: of the file in sql/postgres.
        table: its target.
        counts: all that it returns, beside `unwritten`: how many staged rows no RETURNING answered.
        recount: the statement which tells how many of these nobody else is the reason for; none
            where another session cannot be one.
    """

    name: str
    table: str
    counts: frozenset[str]
    recount: str | None = None


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
    sent = 0

    def taken() -> Iterator[pl.DataFrame]:
        while (part := made.get()) is not None:
            yield part

    def work(raw: Raw) -> int:
        with raw.cursor() as cursor:
            return cursor.adbc_ingest(table, _batches(taken(), rows), mode="create", temporary=True)

    try:
        copied = connection.begin(work)
        for part in parts:
            made.put(part)
            sent += len(part)
    except BaseException:
        with suppress(Empty):  # what was not sent need not be
            while True:
                made.get_nowait()
        raise
    finally:
        made.put(None)
    if (staged := copied()) != sent:
        raise SyncError(f"pg_temp.{table}: {sent:,} rows were sent and {staged:,} taken; run again")
    # Without statistics the planner takes a million staged rows for a thousand. It need not know
    # much more than how many they are.
    execute(connection, "SET LOCAL default_statistics_target = 10")
    execute(connection, f'ANALYZE pg_temp."{table}"')


def slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut a frame into parts of the size of a COPY message; one at least."""
    for start in range(0, max(len(frame), 1), COPY_ROWS):
        yield frame.slice(start, COPY_ROWS)


def merge(connection: Connection, what: Merge, *parameters: Any) -> dict[str, int]:
    """Run a merge over the staged tables; return its counts.

    Raises:
        SyncError: it failed, or left out staged rows, or does not return the counts it is to.
    """
    log.event("merge.started", logging.DEBUG, merge=what.name)
    begun = time.perf_counter()
    (counts,) = write(connection, what.table, what.name, *parameters)
    _check_names(what, counts)
    if (unwritten := counts.pop("unwritten")) and what.recount:
        unwritten = ask(connection, what.recount)[0]["rows"]
    refuse_unwritten(connection, what.table, unwritten)
    log.event("merge.done", merge=what.name, seconds=round(time.perf_counter() - begun, 3))
    return counts


def write(connection: Connection, table: str, name: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run sql/postgres/<name>.sql, which writes to a table; return the rows it answers.

    Raises:
        SyncError: it failed; where a rule on the table is the reason, that is named.
    """
    try:
        return ask(connection, name, *parameters)
    except SyncError as error:
        if error.sqlstate == _NOT_SUPPORTED:
            connection.rollback()
            error.args = (f"{error}; {_suspects(connection, table)}",)
        raise


def refuse_unwritten(connection: Connection, table: str, rows: int) -> None:
    """End a run whose target dropped rows in silence.

    Raises:
        SyncError: `rows` is not 0; it names the triggers and rules that may be the reason.
    """
    if rows:
        raise SyncError(
            f"{table}: {rows:,} rows were to be written or deleted and were not, so all was rolled"
            f" back; {_suspects(connection, table)}"
        )


def _suspects(connection: Connection, table: str) -> str:
    found = [row["name"] for row in ask(connection, "droppers", table)]
    if not found:
        return "the table has no trigger or rule that drops rows; run again"
    return f"the likely cause is on the table: {', '.join(found)}; mend it or disable it"


def _check_names(what: Merge, counts: dict[str, Any]) -> None:
    """A count by another name would be lost, and with it a guard or a figure of the result."""
    expected = what.counts | {"unwritten"}
    wrong = [f"{name} is missing" for name in sorted(expected - counts.keys())]
    wrong += [f"{name} is not known" for name in sorted(counts.keys() - expected)]
    wrong += [f"{name} is null" for name in sorted(counts) if counts[name] is None]
    if wrong:
        raise SyncError(f"sql/postgres/{what.name}.sql: wrong counts: {', '.join(wrong)}")


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
