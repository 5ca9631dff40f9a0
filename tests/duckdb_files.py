"""DuckDB files written by one DuckDB of this process, because to start one costs as much as a sync.

So `duckdb.connect(path)` is for tests that are about the connection.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import duckdb

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def written(path: Path | str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a file for writing, as `duckdb.connect(path)` does; times are in UTC."""
    with _ONE_AT_A_TIME:
        name, quoted = Path(path).stem, str(path).replace("'", "''")
        _duckdb().execute(f"ATTACH '{quoted}' AS \"{name}\"")
        try:
            with _duckdb().cursor() as connection:
                connection.execute(f"USE \"{name}\"; SET TimeZone = 'UTC'")
                yield connection
        finally:
            _duckdb().execute(f'DETACH "{name}"')


@cache
def _duckdb() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()
