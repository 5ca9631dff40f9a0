"""The DuckDB warehouse: one mart -> one Arrow table, typed as the sync's contract asks.

The handle is read-only and held for the length of the read alone (of a mart that is read in
parts, while they are checked and reshaped as well): while it is open, dbt in another process
cannot write.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
from duckdb import CaseExpression, ColumnExpression, ConstantExpression, FunctionExpression

from etl.plumbing import queries
from etl.warehouse import errors as duckdb_errors
from etl.warehouse import file as duckdb_file
from etl.warehouse import marts, parts
from etl.warehouse import types as casts

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import dataframely as dy

    from etl.settings import Settings

# Rows of a part: 15 MB as Arrow, of which checking and reshaping make several times that. To
# halve it saves 50 MB of 450, and takes half a second longer for five million rows.
_PART_ROWS = 300_000

# A mart's clock may be so much ahead of ours. A row that was built later than that is wrong, and
# must not make all others look old.
SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Mart:
    """What was read: the rows (of one shard), and facts about the whole mart."""

    table: pa.Table
    columns: frozenset[str]  # of the query, less those that are NULL by its text
    rows: int
    built_at: dt.datetime | None  # the newest of its rows, less those that cannot be right
    read_at: dt.datetime  # the run's clock, the same for all parts


def read(
    name: str, contract: type[dy.Schema], settings: Settings, shard: tuple[int, int] = (0, 1)
) -> Mart:
    """Run sql/warehouse/<name>.sql and return its rows under the contract's names and types.

    A value that does not fit its type is null there and stands as text in the column
    `misfit <name>`, which is there only when it has something to say.

    Args:
        name: the sync, hence the query; a file of that name in ETL_SQL_DIR comes first.
        contract: the columns to return; its dtypes choose the casts of session.sql.
        settings: the warehouse file, MART_SCHEMA and ETL_SQL_DIR.
        shard: (i, n) reads the users whose hash modulo n is i.

    Raises:
        SyncError: the file cannot be opened, the mart is not found, or columns are missing
            or of a type that cannot serve; every offender is named.
    """
    with _opened(name, contract, settings) as rows:
        return _mart(rows.shard(*shard))


def read_parts(
    name: str, contract: type[dy.Schema], settings: Settings, shard: tuple[int, int] = (0, 1)
) -> Generator[Mart, None, None]:
    """Read the same in parts, one at a time, in the order of the user ids (as bytes).

    So that a reader need not hold all rows of a large mart. All rows of a user are in one part,
    where they have no order. A view and a query of ETL_SQL_DIR come whole: to ask them for each
    part would be to compute them as often, and they might answer differently.
    """
    with _opened(name, contract, settings) as rows:
        yield from _parts(rows.shard(*shard))


def cut(
    name: str, contract: type[dy.Schema], settings: Settings, shards: int, folder: Path
) -> CutMart:
    """Read a mart once for a walk over its shards, into a folder that is not there yet.

    Raises:
        SyncError: as `read`.
    """
    with _opened(name, contract, settings) as rows:
        parts.prepare(rows.connection)
        parts.cut(rows.relation, shards, folder)
        schema = rows.relation.limit(0).to_arrow_table().schema
        shards_read = parts.Parts(folder, schema)
        return CutMart(shards_read, rows.columns, rows.read_at, _whole(rows))


@dataclass(frozen=True)
class CutMart:
    """A mart cut into shards; each reads as `read_parts` would give it."""

    shards: parts.Parts
    columns: frozenset[str]
    read_at: dt.datetime
    whole: tuple[int, dt.datetime | None]

    def read_parts(self, index: int) -> Generator[Mart, None, None]:
        """One shard in parts."""
        with self.shards.opened(index) as (connection, relation):
            size = relation.count("*").fetchall()[0][0]
            rows = _Rows(connection, relation, self.columns, size, self.read_at, whole=self.whole)
            yield from _parts(rows)


@dataclass(frozen=True)
class _Rows:
    """A mart's rows, typed but not read yet."""

    connection: duckdb.DuckDBPyConnection
    relation: duckdb.DuckDBPyRelation
    columns: frozenset[str]
    size: int  # about how many there are; 0: to be read whole
    read_at: dt.datetime
    required: tuple[str, ...] = ()  # columns that no good row has null
    whole: tuple[int, dt.datetime | None] | None = None  # where these are a part of the mart

    def shard(self, index: int, of: int) -> _Rows:
        if of == 1:
            return self
        mine = self.relation.filter(parts.shard_of(of) == ConstantExpression(index))
        return replace(self, relation=mine, size=self.size // of, whole=_whole(self))


@contextmanager
def _opened(name: str, contract: type[dy.Schema], settings: Settings) -> Iterator[_Rows]:
    path = Path(settings.duckdb_path)
    query = marts.query_of(name, settings)
    with (
        tempfile.TemporaryDirectory(prefix="etl-duckdb-") as spill,
        duckdb_file.opened(path, spill, settings.warehouse_wait) as connection,
    ):
        try:
            query = marts.statement(connection, query)
            marts.check_files(connection, query, path.absolute().parent)
            yield _typed(connection, query, contract, settings.mart_schema)
        # The two others come of Arrow, when it is handed the rows.
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            advice = f"correct {query.origin} or the mart"
            raise duckdb_errors.explained(error, path, advice) from None


def _typed(
    connection: duckdb.DuckDBPyConnection,
    query: marts.Query,
    contract: type[dy.Schema],
    mart_schema: str | None,
) -> _Rows:
    columns, size = marts.find(connection, query, mart_schema)
    if columns:
        marts.check_names(columns, query)
    rows = connection.sql(query.sql)
    casts.check(rows, contract, query.origin)
    return _Rows(
        connection,
        casts.typed(rows, contract),
        casts.not_null(rows),
        0 if query.is_own else size,
        dt.datetime.now(dt.UTC),
        tuple(name for name, column in contract.columns().items() if not column.nullable),
    )


def _parts(rows: _Rows) -> Iterator[Mart]:
    bounds = _bounds(rows)
    if not bounds:
        yield _mart(rows)
        return
    # Whoever reads all parts knows which rows were accepted: to look for nulls here is to no end.
    whole = rows.whole or _whole(replace(rows, required=()))
    for part in _ranges(bounds):
        # Not held here while the next one is read.
        yield _mart(replace(rows, relation=rows.relation.filter(part), whole=whole))


def _bounds(rows: _Rows) -> list[str]:
    """User ids that part the rows about evenly; none where there are few."""
    of = -(-rows.size // _PART_ROWS)
    if of < 2:
        return []
    key = ColumnExpression("user_id")
    users = rows.relation.filter(key.isnotnull()).select(key)
    sample = users.query("users", queries.load("warehouse", "sample"))
    keys = sorted(user_id for (user_id,) in sample.fetchall()) if sample else []
    return [keys[len(keys) * part // of] for part in range(1, of)] if keys else []


def _ranges(bounds: list[str]) -> Iterator[duckdb.Expression]:
    key, values = ColumnExpression("user_id"), list(map(ConstantExpression, bounds))
    yield key.isnull() | (key < values[0])
    for low, high in pairwise(values):
        yield (key >= low) & (key < high)
    yield key >= values[-1]


def _mart(rows: _Rows) -> Mart:
    table = rows.relation.to_arrow_table()
    size, built_at = rows.whole or (table.num_rows, _latest(table, rows.read_at + SKEW))
    return Mart(casts.without_empty_misfits(table), rows.columns, size, built_at, rows.read_at)


def _whole(rows: _Rows) -> tuple[int, dt.datetime | None]:
    """What `Mart` says of all shards together."""
    built_at = ColumnExpression("built_at")
    possible = built_at <= ConstantExpression(rows.read_at + SKEW)
    for name in rows.required:
        possible &= ColumnExpression(name).isnotnull()
    newest = FunctionExpression("max", CaseExpression(possible, built_at)).alias("built_at")
    figures = rows.relation.aggregate([FunctionExpression("count").alias("rows"), newest])
    (whole,) = figures.to_arrow_table().to_pylist()
    return whole["rows"], whole["built_at"]


def _latest(table: pa.Table, limit: dt.datetime) -> dt.datetime | None:
    import pyarrow.compute as pc

    moments = table["built_at"]
    latest: dt.datetime | None = pc.max(
        moments.filter(pc.less_equal(moments, pa.scalar(limit, moments.type)))
    ).as_py()
    return latest
