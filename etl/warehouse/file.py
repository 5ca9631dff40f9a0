"""The warehouse file: open it read-only, and say in a line what is wrong with it."""

from __future__ import annotations

import math
import re
import threading
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from etl.errors import SyncError
from etl.plumbing import cancellation, log, queries
from etl.plumbing.retry import retry
from etl.warehouse.errors import NOT_DUCKDB, WarehouseLocked, to_sync_error

if TYPE_CHECKING:
    from collections.abc import Iterator

# DuckDB does little more here than sort one table, and what it cannot keep goes to disk. What a
# sort needs all the same grows with its threads, with texts too long to stand in their row, and
# with the root of its bytes, because it merges runs as large as its memory is.
_MEMORY, _THREADS = 95_000_000, 2

# What two threads sort in it: five million short recommendations; 70 MB of long texts, and not 81.
_BYTES_OF_TWO_THREADS, _TEXTS_OF_TWO_THREADS, _LONG_TEXT = 300_000_000, 60_000_000, 12

# What one thread needs of more. Measured: 60 million bytes and the root are enough for 10 million
# rows of 117 bytes (102 MB would just do) and for 50 million of 51 (120 MB would not).
_LEAST, _BYTES_PER_ROOT = 60_000_000, 1_600

# A view could ask for one, which DuckDB would fetch from the network.
_NO_EXTENSIONS = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}

# Two threads cannot have the file open with spill folders of their own: they take turns.
_OPEN_LOCK = threading.Lock()

_MAGIC = b"DUCK"  # after an eight-byte checksum

# What a writer that was killed leaves beside the file; DuckDB reads it as part of the file.
_LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")
LOG_MEANS = "read as part of the warehouse, also where it belongs to another copy"


@contextmanager
def open_warehouse(path: Path, spill: Path, wait: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Have the file open for reading; what does not fit into memory goes to the folder `spill`.

    Args:
        path: the warehouse.
        spill: a folder that is there.
        wait: for how many seconds to try again while somebody writes to the file.

    Raises:
        SyncError: it is not there, not ours to read, not DuckDB's, damaged, too new or locked.
    """
    connection = retry(
        partial(_open, path, spill),
        wait,
        lambda error: isinstance(error, WarehouseLocked),
        "warehouse.locked",
    )
    try:
        _tell_of_logs(path)
        with cancellation.interrupting(connection.interrupt):
            yield connection
    finally:
        connection.close()
        _OPEN_LOCK.release()


class Weight(NamedTuple):
    """About how many bytes rows have as Arrow, and how many of these are long texts."""

    size: float
    texts: float


_UNKNOWN = Weight(2_500_000_000, 0)


def weigh(sample: pa.Table | pa.RecordBatch, rows: int) -> Weight:
    """Tell the weight of so many rows by the first of them."""
    sample = sample.slice(0, 2_048)
    lengths = chain.from_iterable(
        pc.binary_length(column).to_pylist()
        for column in sample.columns
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    )
    texts = sum(length for length in lengths if length and length > _LONG_TEXT)
    share = rows / max(sample.num_rows, 1)
    return Weight(share * sample.nbytes, share * texts)


def give_room(connection: duckdb.DuckDBPyConnection, rows: Weight | None) -> None:
    """Let rows be sorted, however many they are; a connection has the memory for this alone.

    Args:
        connection: the one that sorts.
        rows: their weight; None where nobody knows, as of a view.
    """
    size, texts = rows or _UNKNOWN
    threads, memory = _THREADS, _MEMORY
    if size > _BYTES_OF_TWO_THREADS or texts > _TEXTS_OF_TWO_THREADS:
        threads, memory = 1, max(memory, _LEAST + _BYTES_PER_ROOT * math.isqrt(int(size)))
    connection.execute(f"SET threads = {threads}; SET memory_limit = '{memory}B'")


def _open(path: Path, spill: Path) -> duckdb.DuckDBPyConnection:
    _check(path)
    _OPEN_LOCK.acquire()
    try:
        return _connect(path, spill)
    except BaseException:
        _OPEN_LOCK.release()
        raise


def _connect(path: Path, spill: Path) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "temp_directory": str(spill),
        "memory_limit": f"{_MEMORY}B",
        "threads": _THREADS,
        **_NO_EXTENSIONS,
    }
    config["file_search_path"] = _search_path(path, spill)
    try:
        # Absolute: DuckDB takes a name like `md:x` for a service, and wants an extension for it.
        connection = duckdb.connect(path.absolute(), read_only=True, config=config)
    except duckdb.Error as error:
        raise to_sync_error(error, path, "restore it or let dbt build it anew") from None
    connection.execute(queries.load("warehouse", "session"))
    return connection


def _search_path(path: Path, spill: Path) -> str:
    """The warehouse's folder, and the real one behind a link: what views' relative paths mean."""
    folders = dict.fromkeys((path.absolute().parent, path.resolve().parent))
    return ",".join(_without_comma(folder, spill) for folder in folders)


def _without_comma(folder: Path, spill: Path) -> str:
    """Return the folder, or a link to it where its name has a comma, which DuckDB takes for two."""
    if "," not in str(folder):
        return str(folder)
    link = spill / f"folder{len(list(spill.iterdir()))}"
    link.symlink_to(folder)
    return str(link)


def _tell_of_logs(path: Path) -> None:
    for file in logs_beside(path):
        log.warning("warehouse.wal", file=str(file), meaning=LOG_MEANS)


def logs_beside(path: Path) -> list[Path]:
    """Return the files beside the warehouse that DuckDB reads as part of it."""
    logs = (path.with_name(path.name + end) for end in _LOGS)
    return [file for file in logs if file.is_file() and file.stat().st_size]


@contextmanager
def in_memory(spill: Path, memory: int = _MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """Have a database in memory, for rows whose order does not matter.

    Args:
        spill: a folder for what does not fit into memory.
        memory: how many bytes do.
    """
    config: dict[str, Any] = {"temp_directory": str(spill), "memory_limit": f"{memory}B"}
    config |= {"preserve_insertion_order": False, "threads": _THREADS, **_NO_EXTENSIONS}
    with (
        duckdb.connect(config=config) as connection,
        cancellation.interrupting(connection.interrupt),
    ):
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _check(path: Path) -> None:
    try:
        problem = _problem(path)
    except OSError as error:
        problem = f"{error.strerror}; let the user that runs the sync read it"
    if problem:
        raise SyncError(f"warehouse {path}: {problem}")


def _problem(path: Path) -> str | None:
    if "\\" in str(path):
        return "has a backslash, which DuckDB takes for a slash"
    if not path.exists():
        if str(path).startswith("~"):
            return "~ is not expanded; write the whole path"
        if scheme := re.match(r"[A-Za-z][\w+.-]*:", str(path)):
            # No more than that: there may be a token in the rest.
            raise SyncError(
                f"warehouse: DUCKDB_PATH begins with {scheme.group()}, which is not supported;"
                " give the plain path of a DuckDB file on this machine"
            )
        return "no such file; run dbt, or set DUCKDB_PATH"
    if path.is_dir():
        return "is a folder; set DUCKDB_PATH to the file in it"
    # Looked at here: DuckDB would fetch an extension from the network for a SQLite file.
    return NOT_DUCKDB if not path.is_file() or _head(path)[8:] != _MAGIC else None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8 + len(_MAGIC))
