"""What a walk over shards reads once and cuts into its shards: Parquet, a folder a shard.

To hash ten million keys ten times, each time for a tenth of them, takes longer than all the rest
of the walk.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
from duckdb import ColumnExpression, ConstantExpression, FunctionExpression, StarExpression

from etl.warehouse import file as duckdb_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa


@dataclass(frozen=True)
class Parts:
    """Rows cut into shards."""

    folder: Path
    schema: pa.Schema

    def read(self, index: int) -> pa.Table:
        """The rows of one shard."""
        with self.opened(index) as (_, rows):
            return rows.to_arrow_table()

    @contextmanager
    def opened(
        self, index: int
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, duckdb.DuckDBPyRelation]]:
        """The same, not read yet."""
        files = [str(file) for file in sorted(self.folder.glob(f"shard={index}/*"))]
        with duckdb_file.scratch(self.folder) as connection:
            if files:
                yield connection, connection.read_parquet(files, hive_partitioning=False)
            else:
                yield connection, connection.from_arrow(self.schema.empty_table())


def shard_of(shards: int) -> duckdb.Expression:
    """The shard of a row with a user_id; session.sql has the macro."""
    return FunctionExpression("shard_of", ColumnExpression("user_id"), ConstantExpression(shards))


def cut(rows: duckdb.DuckDBPyRelation, shards: int, folder: Path) -> None:
    """Write rows, which have a user_id, to a folder that is not there yet."""
    told = rows.select(StarExpression(), shard_of(shards).alias("shard"))
    told.write_parquet(str(folder), partition_by=["shard"], compression="lz4")


def cut_stream(reader: pa.RecordBatchReader, shards: int, folder: Path) -> Parts:
    """The same for rows that come from elsewhere."""
    with duckdb_file.scratch(folder.parent) as connection:
        prepare(connection)
        cut(connection.from_arrow(reader), shards, folder)
    return Parts(folder, reader.schema)


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Have a connection write shards in little memory: 280 MB for ten million users."""
    connection.execute("SET memory_limit = '200MB'")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET partitioned_write_flush_threshold = 10000")
