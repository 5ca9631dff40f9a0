"""Rows on disk: Arrow files in a run's temporary folder.

A run needs the rows of its mart more than once (to count, to compare, to load) and closes the
warehouse's file before it writes. On disk they take no memory, however many they are.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

# Rows of a batch of up to six columns: 3 MB as Arrow, of which checking and reshaping make several
# times that. Half of it would save 40 MB of memory, and checking would take a third longer.
BATCH_ROWS = 65_536

# Frames that are in memory while a spool is split: 20 MB of rows with short keys.
_MOST_FRAMES = 8

_OF_DISKS = {errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class Spool:
    """Rows in a file, readable any number of times."""

    path: Path
    schema: pa.Schema
    key: list[str]
    rows: int

    @property
    def bytes(self) -> int:
        """How large the file is."""
        return self.path.stat().st_size

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


def split(rows: Spool, column: str, parts: int) -> list[Spool]:
    """Write rows to as many files by the hash of a column: those of one value stand in one file.

    Spools that are split by columns of one type have equal values in files of one number.
    """
    if parts == 1:
        return [rows]
    frames = rows.frames()
    first = next(frames)
    schema, frames = first.to_arrow().schema, chain([first], frames)
    with ExitStack() as stack:
        names = (rows.path.with_name(f"{rows.path.name}-{number}") for number in range(parts))
        writers = [stack.enter_context(Writer(name, schema, rows.key)) for name in names]
        # As many frames at once as there are parts, because small batches take longer to read.
        while some := list(islice(frames, min(parts, _MOST_FRAMES))):
            frame = pl.concat(some, rechunk=True)
            of = frame[column].hash() % parts
            for number, writer in enumerate(writers):
                writer.add_rows(frame.filter(of == number))
    return [writer.spool for writer in writers]


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        reason = f"{os.strerror(error.errno)}; make room there, or let TMPDIR be another folder"
        raise SyncError(f"temporary folder {path.parent.parent}: {reason}") from error


def batch_rows(columns: int, rows: int = BATCH_ROWS) -> int:
    """Return how many rows of so many columns make a batch: the wider, the fewer."""
    return rows * 6 // max(6, columns)
