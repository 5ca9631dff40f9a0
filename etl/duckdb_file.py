"""The warehouse file: open it read-only, and say in a line what is wrong with it."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb

from etl import retry
from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# DuckDB does little more here than scan one table; what is left is for Arrow and Polars.
_MEMORY = "512MB"

# A view could ask for one, which DuckDB would fetch from the network.
_NO_EXTENSIONS = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}

# Two threads cannot have the file open with spill folders of their own: they take turns.
_TURN = threading.Lock()

_MAGIC = b"DUCK"  # after an eight-byte checksum

_FOREIGN = "not a DuckDB file; set DUCKDB_PATH to the file dbt writes"

# What DuckDB says, and what that means to whoever runs the sync.
_PROBLEMS = (
    (
        r"Conflicting lock is held in (.*?)\.? See also",
        "locked by a writer, {}; run again when dbt is done",
    ),
    (r"Could not set lock", "locked by a writer; run again when dbt is done"),
    (
        r"different configuration than existing connections",
        "is open in this very process; close that connection first",
    ),
    (
        r"created with a newer version",
        "written by a newer DuckDB; upgrade the duckdb package of this service",
    ),
    (
        r"created with (DuckDB version .*?)\.?$",
        "written by {}, which is too old; let dbt build it anew",
    ),
    (r"not a valid DuckDB database file", _FOREIGN),
    (r"Corrupt|Could not read enough bytes", "damaged; restore it or let dbt build it anew"),
    (
        r'with name "([^".]+)\.[^".]+\.[^"]+" does not exist',
        "a view reads from a database called {0}; if that is this file, name it {0}.duckdb"
        " as dbt knows it, else make the mart a table",
    ),
    (r"Out of Memory", "needs more memory than there is; read it in parts (--shards)"),
)


class Locked(SyncError):  # noqa: N818  (it will be free again)
    """Somebody writes to the file."""


@contextmanager
def opened(path: Path, spill: str, wait: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Have the file open for reading; what does not fit into memory goes to the folder `spill`.

    Args:
        path: the warehouse.
        spill: a folder that is there.
        wait: for how many seconds to try again while somebody writes to the file.

    Raises:
        SyncError: it is not there, not ours to read, not DuckDB's, damaged, too new or locked.
    """
    connection = retry.persist(
        partial(_open, path, spill),
        wait,
        lambda error: isinstance(error, Locked),
        "warehouse.locked",
    )
    try:
        yield connection
    finally:
        connection.close()
        _TURN.release()


def _open(path: Path, spill: str) -> duckdb.DuckDBPyConnection:
    _check(path)
    _TURN.acquire()
    try:
        return _connect(path, spill)
    except BaseException:
        _TURN.release()
        raise


def _connect(path: Path, spill: str) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {"temp_directory": spill, "memory_limit": _MEMORY, **_NO_EXTENSIONS}
    try:
        # Absolute: DuckDB takes a name like `md:x` for a service, and wants an extension for it.
        return duckdb.connect(path.absolute(), read_only=True, config=config)
    except duckdb.Error as error:
        raise explained(error, path, "restore it or let dbt build it anew") from error


def scratch(spill: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory, for rows whose order does not matter."""
    config: dict[str, Any] = {"temp_directory": str(spill), "memory_limit": _MEMORY}
    config |= {"preserve_insertion_order": False, **_NO_EXTENSIONS}
    connection = duckdb.connect(config=config)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def explained(error: duckdb.Error, path: Path, otherwise: str) -> SyncError:
    """Turn an error of DuckDB's into one line; `otherwise` is the advice for one not known."""
    message = str(error).strip()
    for pattern, meaning in _PROBLEMS:
        if found := re.search(pattern, message, re.DOTALL | re.MULTILINE):
            words = (" ".join(group.split()) for group in found.groups())
            kind = Locked if meaning.startswith("locked") else SyncError
            return kind(f"warehouse {path}: {meaning.format(*words)}")
    return SyncError(f"warehouse {path}: {message.partition(chr(10))[0]}; {otherwise}")


def _check(path: Path) -> None:
    try:
        if "\\" in str(path):
            raise SyncError(f"warehouse {path}: has a backslash, which DuckDB takes for a slash")
        if not path.exists():
            raise SyncError(f"warehouse {path}: no such file; run dbt, or set DUCKDB_PATH")
        if path.is_dir():
            raise SyncError(f"warehouse {path}: is a folder; set DUCKDB_PATH to the file in it")
        # Looked at here: DuckDB would fetch an extension from the network for a SQLite file.
        if not path.is_file() or _head(path)[8:] != _MAGIC:
            raise SyncError(f"warehouse {path}: {_FOREIGN}")
    except OSError as error:
        reason = f"{error.strerror}; let the user that runs the sync read it"
        raise SyncError(f"warehouse {path}: {reason}") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8 + len(_MAGIC))
