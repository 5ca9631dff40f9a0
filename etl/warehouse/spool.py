"""Rows on disk: Arrow files in a run's temporary folder, compared by DuckDB out of core.

A run needs the rows of its mart more than once (to count, to compare, to load) and closes the
warehouse's file before it writes. On disk they take no memory, however many they are.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, count
from typing import TYPE_CHECKING

import duckdb
import polars as pl
import pyarrow as pa
from duckdb import ColumnExpression, DuckDBPyRelation

from etl.errors import SyncError
from etl.plumbing import queries
from etl.warehouse import errors, file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

# Rows of a batch of up to six columns: 3 MB as Arrow, of which checking and reshaping make several
# times that. Half of it would save 40 MB of memory, and checking would take a third longer.
BATCH_ROWS = 65_536

_OF_DISKS = {errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}

# A hash join of ten million rows with ten million works in this; each further one takes more.
_JOIN_BYTES, _BYTES_PER_ROW, _ROWS_IN_IT = 200_000_000, 10, 20_000_000

# What a query of several joins may take. Ten million users with five million mails are decided in
# this; more of it would only make the process larger.
_QUERY_BYTES = 125_000_000


@dataclass(frozen=True)
class Spool:
    """Rows in a file, readable any number of times."""

    path: Path
    schema: pa.Schema
    key: list[str]
    rows: int

    def batches(self) -> Batches:
        """Stream the rows as Arrow batches, in the order in which they were written."""
        return Batches(self.schema, self._batches())

    def frames(self) -> Iterator[pl.DataFrame]:
        """Stream the rows as Polars frames, one a batch; one frame at least."""
        if not self.rows:
            yield pl.DataFrame(pl.from_arrow(self.schema.empty_table()))
        for batch in self._batches():
            yield pl.DataFrame(pl.from_arrow(batch))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        # Not memory-mapped: mapped pages count as memory of the process.
        with pa.OSFile(str(self.path)) as source, pa.ipc.open_stream(source) as batches:
            yield from batches


@dataclass(frozen=True)
class Batches:
    """A stream of Arrow batches of one schema, to be read once."""

    schema: pa.Schema
    stream: Iterator[pa.RecordBatch]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.stream


def to_batches(frames: Iterable[pl.DataFrame]) -> Batches:
    """Stream frames of the same columns, one at least, as Arrow batches."""
    tables = (frame.to_arrow() for frame in frames)
    first = next(tables)
    return Batches(
        first.schema, (batch for table in chain([first], tables) for batch in table.to_batches())
    )


class Writer:
    """Writes a spool batch by batch, in the block of a `with`.

    Raises:
        SyncError: the disk is full, or does not let us write.
    """

    def __init__(self, path: Path, schema: pa.Schema, key: Sequence[str]) -> None:
        """Make the file `path`."""
        self._spool = Spool(path, schema, list(key), 0)
        self._progress, self._batches = threading.Condition(), 0
        self._over = self._failed = False
        with _explaining(path):
            self._sink = pa.OSFile(str(path), "wb")
            self._stream = pa.ipc.new_stream(self._sink, schema)

    def add(self, batch: pa.RecordBatch) -> None:
        """Write one more batch."""
        with _explaining(self._spool.path):
            self._stream.write_batch(batch)
        self._spool = replace(self._spool, rows=self._spool.rows + batch.num_rows)
        with self._progress:
            self._batches += 1
            self._progress.notify_all()

    def add_rows(self, rows: pl.DataFrame) -> None:
        """Write rows of a frame."""
        for batch in rows.to_arrow().to_batches():
            self.add(batch)

    @property
    def spool(self) -> Spool:
        """What was written; complete after the block."""
        return self._spool

    def follow(self) -> Batches:
        """Stream the batches to another thread as they are written.

        The stream waits for more until the block has ended, and fails where that failed.
        """
        return Batches(self._spool.schema, self._follow())

    def _follow(self) -> Iterator[pa.RecordBatch]:
        if not self._has_more(0):
            return
        with pa.OSFile(str(self._spool.path)) as source, pa.ipc.open_stream(source) as batches:
            for batch, read in zip(batches, count(1), strict=False):
                yield batch
                if not self._has_more(read):
                    return

    def _has_more(self, read: int) -> bool:
        """Wait until there are more batches than those that were read, or no more come."""
        with self._progress:
            self._progress.wait_for(lambda: self._batches > read or self._over)
            if self._failed:
                raise SyncError("what was to be read could not be")
            return self._batches > read

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            with _explaining(self._spool.path), self._sink:
                self._stream.close()
        except BaseException:
            self._failed = True
            raise
        finally:
            with self._progress:
                self._over, self._failed = True, self._failed or error is not None
                self._progress.notify_all()


def write(
    batches: Batches | pa.RecordBatchReader,
    path: Path,
    key: Sequence[str],
    follower: Callable[[Batches], object] | None = None,
) -> Spool:
    """Write batches to a new file.

    Args:
        batches: of one schema.
        path: the file.
        key: the columns that tell rows apart.
        follower: is handed a stream of what is written, to be read in another thread.

    Raises:
        SyncError: the disk is full, or does not let us write.
    """
    with Writer(path, batches.schema, key) as writer:
        if follower:
            follower(writer.follow())
        for batch in batches:
            writer.add(batch)
    return writer.spool


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        reason = f"{os.strerror(error.errno)}; make room there, or let TMPDIR be another folder"
        raise SyncError(f"temporary folder {path.parent.parent}: {reason}") from error


def differing(rows: Spool, target: Spool) -> AbstractContextManager[pa.RecordBatchReader]:
    """Stream the rows that the target lacks or holds with another value, in the order of the key.

    A value is compared after it was cast to its type in `rows`; nulls equal nulls, and what cannot
    be cast equals nothing. So money of up to 15 digits may come as a float, which keeps it exactly;
    of more digits Postgres hands it over as text (see sql/postgres/<sync>_current.sql).
    """
    return _anti_join(rows, [target], rows.schema, rows.schema.names)


def missing(target: Spool, others: Sequence[Spool]) -> AbstractContextManager[pa.RecordBatchReader]:
    """Stream the keys of the target that none of the others holds, in their order.

    Keys are compared, and come, in the types of the first of the others.

    Raises:
        SyncError: the others' keys have not the same types.
    """
    for name in others[0].key:
        types = [
            str(dict(zip(o.schema.names, o.schema.types, strict=True)).get(name)) for o in others
        ]
        if len(set(types)) > 1:
            raise SyncError(
                f"the key's column {name} is {' here and '.join(types)} there; let transform leave"
                " the key as the contract has it"
            )
    return _anti_join(target, others, others[0].schema, others[0].key)


@contextmanager
def _anti_join(
    rows: Spool, others: Sequence[Spool], schema: pa.Schema, columns: Sequence[str]
) -> Iterator[pa.RecordBatchReader]:
    total = rows.rows + sum(other.rows for other in others)
    memory = _JOIN_BYTES + _BYTES_PER_ROW * max(total - _ROWS_IN_IT, 0)
    with _reading(rows.path.parent), file.in_memory(rows.path.parent, memory) as connection:
        like = connection.from_arrow(schema.empty_table())
        types = dict(zip(like.columns, like.types, strict=True))
        casts = [ColumnExpression(name).try_cast(types[name]).alias(name) for name in columns]
        mine, *theirs = (
            connection.from_arrow(_reader(spool)).select(*casts) for spool in (rows, *others)
        )
        mine.create_view("mine")
        reduce(DuckDBPyRelation.union, theirs).create_view("theirs")
        found = connection.sql(queries.load("warehouse", "anti_join"))
        with found.sort(*map(ColumnExpression, rows.key)).to_arrow_reader(BATCH_ROWS) as reader:
            yield reader


@contextmanager
def joined(
    query: str, spill: Path, streams: Mapping[str, Batches], variables: Mapping[str, object]
) -> Iterator[pa.RecordBatchReader]:
    """Stream what sql/warehouse/<query>.sql makes of streams of rows.

    Joins are made as the query has them: its first table streams by and keeps its order, the
    others are held in memory or, where they are large, on disk.

    Args:
        query: the name of the file.
        spill: a folder for what does not fit into memory.
        streams: by the names that the query has for them; each can be read once.
        variables: what getvariable() answers.
    """
    with _reading(spill), file.in_memory(spill, _QUERY_BYTES) as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        for name, value in variables.items():
            connection.execute(f"SET VARIABLE {name} = $1", [value])
        for name, rows in streams.items():
            connection.from_arrow(_reader(rows)).create_view(name)
        found = connection.sql(queries.load("warehouse", query))
        with found.to_arrow_reader(batch_rows(len(found.columns))) as reader:
            yield reader


def batch_rows(columns: int, rows: int = BATCH_ROWS) -> int:
    """Return how many rows of so many columns make a batch: the wider, the fewer."""
    return rows * 6 // max(6, columns)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        advice = "see who changes what is in it, and run again"
        raise errors.to_sync_error(error, folder.parent, advice, "temporary folder") from None


def _reader(rows: Spool | Batches) -> pa.RecordBatchReader:
    stream = rows.batches() if isinstance(rows, Spool) else rows
    return pa.RecordBatchReader.from_batches(rows.schema, stream)
