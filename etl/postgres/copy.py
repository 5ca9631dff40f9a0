"""COPY rows to a temporary table."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from etl.errors import SyncError
from etl.plumbing import cancellation, log
from etl.plumbing.counted import counted
from etl.postgres.query import execute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.postgres.call import Call
    from etl.postgres.session import Connection


class BatchStream(Protocol):
    """A stream of Arrow batches of one schema."""

    @property
    def schema(self) -> pa.Schema:
        """The names and types of the columns."""

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True)
class _Queued:
    """What is put into a queue, until None is."""

    schema: pa.Schema
    queue: Queue[pa.RecordBatch | None]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self.queue.get, None)


# Batches that wait for the driver, which buffers the COPY message of each as a whole.
_BATCHES_AHEAD = 2


def copy_to_temp(connection: Connection, table: str, batches: BatchStream, rows: int = 0) -> None:
    """COPY Arrow batches to a temporary table of this transaction.

    While the driver sends one batch, the next is made. The caller drops the table before it
    commits.

    Args:
        connection: the session.
        table: a name; a table that bears it already makes way.
        batches: of some 65,536 rows each, and their `schema`.
        rows: how many there are in all, for who watches the log; 0: not known.

    Raises:
        SyncError: Postgres did not take them all.
    """
    queue: Queue[pa.RecordBatch | None] = Queue(_BATCHES_AHEAD)
    copy = start_copy(connection, table, _Queued(batches.schema, queue))
    sent = 0
    try:
        for batch in batches:
            if not _put(queue, batch, copy):
                break  # it has failed or is stuck, as its result tells
            sent += batch.num_rows
            log.event("rows.copied", logging.DEBUG, rows=sent, of=rows)
    except BaseException:
        with suppress(Empty):  # what was not sent need not be
            while True:
                queue.get_nowait()
        raise
    finally:
        _put(queue, None, copy)
    finish_copy(connection, table, copy, sent)


def start_copy(connection: Connection, table: str, batches: BatchStream) -> Call[int]:
    """Start to COPY batches to a temporary table, in a thread of the connection as they come.

    Args:
        connection: the session, busy until `finish_copy` returns.
        table: a name; a table that bears it already makes way.
        batches: they must end, or raise, also when nobody wants them any more.

    Returns:
        The call; its result is how many rows Postgres took.
    """
    execute(connection, f'DROP TABLE IF EXISTS pg_temp."{table}"')
    return connection.submit(partial(_ingest, table=table, batches=batches))


def finish_copy(connection: Connection, table: str, copy: Call[int], sent: int) -> None:
    """Wait for a COPY, and tell the planner what came of it.

    Raises:
        SyncError: Postgres did not take as many rows as were sent.
    """
    if (taken := copy.result()) != sent:
        raise SyncError(
            f"pg_temp.{table}: {counted(sent, 'row was', 'rows were')} sent and {taken:,} taken;"
            " run again"
        )
    # Without statistics the planner takes a million staged rows for a thousand. It need not know
    # much more than how many they are.
    execute(connection, "SET LOCAL default_statistics_target = 10")
    execute(connection, f'ANALYZE pg_temp."{table}"')


def _storable(schema: pa.Schema) -> pa.Schema:
    """Integers up to 2 ** 64 as decimals: the driver would make negative bigints of the largest."""
    for index, field in enumerate(schema):
        if field.type == "uint64":
            schema = schema.set(index, field.with_type(pa.decimal128(20)))
    return schema


def _put(
    queue: Queue[pa.RecordBatch | None], batch: pa.RecordBatch | None, copy: Call[int]
) -> bool:
    """Wait until the driver has room for a batch; False: it takes no more."""
    deadline = time.monotonic() + copy.seconds
    while not copy.is_over() and time.monotonic() < deadline:
        if batch is not None:  # the end has to reach the driver, also of what is cancelled
            cancellation.check()
        with suppress(Full):
            queue.put(batch, timeout=0.1)
            return True
    return False


def _ingest(raw: Raw, table: str, batches: BatchStream) -> int:
    schema = _storable(batches.schema)
    storable = (b if schema is batches.schema else b.cast(schema) for b in batches)
    reader = pa.RecordBatchReader.from_batches(schema, storable)
    with raw.cursor() as cursor:
        rows: int = cursor.adbc_ingest(table, reader, mode="create", temporary=True)
        return rows
