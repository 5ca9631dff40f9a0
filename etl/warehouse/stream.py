"""A mart as a stream in the order of its key, in batches that fit into memory."""

from __future__ import annotations

import datetime as dt
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import polars as pl
import pyarrow as pa
from duckdb import CaseExpression, ColumnExpression, ConstantExpression, FunctionExpression

from etl.plumbing import folder
from etl.warehouse import errors, file, keys, marts, types
from etl.warehouse.spool import BATCH_ROWS, batch_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import dataframely as dy

    from etl.settings import Settings

# A mart's clock may be so much ahead of ours. A row that was built later than that is wrong, and
# must not make all others look old.
SKEW = dt.timedelta(hours=1)


# More are sorted by one thread, because two would need more memory (see file.py).
_MANY_ROWS = 5_000_000


@dataclass(frozen=True)
class Stats:
    """What the guards ask about a mart as a whole."""

    rows: int
    built_at: dt.datetime | None  # the newest of its rows, less those that cannot be right


@dataclass(frozen=True)
class Mart:
    """A mart whose file is open."""

    relation: duckdb.DuckDBPyRelation  # the rows of the part at hand, typed, in the key's order
    key: Sequence[str]
    columns: frozenset[str]  # of the query, less those that are NULL by its text
    stats: Stats | None  # of the whole mart, where only a part is read
    tables: list[str]  # that the query reads, quoted
    mapped: dict[str, str]  # columns of the mart by names of the contract, where a name may vary
    ordered: bool  # by the key; else no two rows have the same key
    explaining: Callable[[], AbstractContextManager[None]]  # what goes wrong while it is read

    def frames(self) -> Generator[pl.DataFrame, None, None]:
        """Stream the rows in the order of the key; all rows of a key come in one frame.

        Close it before the block of `open_mart` ends, because that closes what it reads.
        """
        with self.explaining():
            rows = batch_rows(len(self.relation.columns), BATCH_ROWS)
            reader = self.relation.to_arrow_reader(rows)
        with reader:
            frames = map(_frame, self._batches(reader))
            empty = _frame(reader.schema.empty_table())
            if self.ordered:
                yield from _cut_between_keys(frames, self.key, empty)
            else:
                yield next(frames, empty)
                yield from frames

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """Hand on what DuckDB makes; what a caller does with it goes wrong in its own name."""
        while True:
            with self.explaining():
                batch = next(reader, None)
            if batch is None:
                return
            if batch.num_rows:
                yield batch


@contextmanager
def open_mart(
    name: str,
    contract: type[dy.Schema],
    settings: Settings,
    part: tuple[int, int] | str,
    *,
    spill: Path,
    now: dt.datetime,
    key: Sequence[str] | None = None,
    ordered: bool = True,
) -> Iterator[Mart]:
    """Open the warehouse for the length of a block and run sql/warehouse/<name>.sql.

    The rows have the contract's names and types. A value that does not fit its type is null and
    stands as text in the column `uncastable <name>`, which is there only when it has something to
    say. While the block lasts, dbt in another process cannot write to the file.

    Args:
        name: the sync, hence the query; a file of that name in ETL_SQL_DIR comes first.
        contract: the columns to return; its dtypes choose the casts.
        settings: the warehouse file, MART_SCHEMA and ETL_SQL_DIR.
        part: (i, n) reads the keys whose hash modulo n is i; (0, 1) reads all; a text reads the
            rows of this key alone.
        spill: a folder for what does not fit into memory.
        now: the run's clock.
        key: columns of the contract's primary key, which order and shards go by; all of them
            unless given.
        ordered: False leaves the rows of a table as they come, which takes a third of the time,
            unless two may have the same key; for who needs no order.

    Raises:
        SyncError: the file cannot be opened, the mart is not found, or columns are missing
            or of a type that cannot serve; every offender is named.
    """
    path, key = Path(settings.duckdb_path), key or contract.primary_key()
    query = marts.load_query(name, settings)
    explaining = partial(_explaining, path, f"correct {query.source} or the mart")
    with file.open_warehouse(path, spill, settings.warehouse_wait) as connection:
        with explaining():
            query = marts.statement(connection, query)
            marts.check_files(connection, query, path.absolute().parent)
            tables, mapped = marts.resolve_tables(connection, query, settings.mart_schema), {}
            stored = None  # rows of a table; a view or an own query is not to be computed twice
            if len(tables) == 1:
                mart = connection.table(tables[0])
                mapped = marts.map_names(mart.columns, query)
                if mart.type == "TABLE_RELATION" and not query.is_override:
                    stored = len(mart)
            if stored is None or stored > _MANY_ROWS:
                connection.execute("SET threads = 1")
            rows = connection.sql(query.sql)
            types.check_columns(rows, contract, query.source)
            values = types.key_of(rows, contract, key)
            mine, stats = _part(rows, contract, keys.expression(values), part, now)
            ordered = ordered or stored is None or _has_twins(mine, contract)
            if ordered:  # before the casts, which add a column to most
                mine = mine.sort(*(value for value, _ in values))
            relation = types.cast_to_contract(mine, contract)
        columns = types.not_null(rows)
        yield Mart(relation, key, columns, stats, tables, mapped, ordered, explaining)


def read(
    name: str, contract: type[dy.Schema], settings: Settings, shard: tuple[int, int] = (0, 1)
) -> pl.DataFrame:
    """Read a mart as a whole, for a notebook; see `open_mart`.

    Returns:
        The columns of the contract, in the order of the key; rows that break the contract are
        among them.
    """
    now = dt.datetime.now(dt.UTC)
    with (
        folder.temporary() as spill,
        open_mart(name, contract, settings, shard, spill=spill, now=now) as mart,
        closing(mart.frames()) as frames,
    ):
        return pl.concat(frames, how="diagonal")


@contextmanager
def _explaining(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    # The two others come of Arrow, when it is handed the rows.
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise errors.to_sync_error(error, path, advice) from None


def _part(
    rows: duckdb.DuckDBPyRelation,
    contract: type[dy.Schema],
    key: duckdb.Expression,
    part: tuple[int, int] | str,
    now: dt.datetime,
) -> tuple[duckdb.DuckDBPyRelation, Stats | None]:
    """Return the rows of one shard or of one key, and what to know of all of them."""
    if part == (0, 1):
        return rows, None
    if isinstance(part, str):
        mine = rows.filter(key == ConstantExpression(part))
    else:
        index, of = part
        hashed = FunctionExpression("shard_of", key, ConstantExpression(of))
        mine = rows.filter(hashed == ConstantExpression(index))
    return mine, _stats(types.cast_to_contract(rows, contract), contract, now)


def _has_twins(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema]) -> bool:
    """Return whether two rows may have the same key, by a hash of it."""
    key = [value for value, _ in types.key_of(rows, contract, contract.primary_key())]
    hashes = rows.select(FunctionExpression("hash", *key).alias("hash"))
    counted = hashes.aggregate([FunctionExpression("count").alias("n")], "hash")
    return bool(counted.filter(ColumnExpression("n") > ConstantExpression(1)).limit(1).fetchall())


def _stats(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema], now: dt.datetime) -> Stats:
    built_at = ColumnExpression("built_at")
    possible = built_at <= ConstantExpression(now + SKEW)
    for name, column in contract.columns().items():
        if not column.nullable:
            possible &= ColumnExpression(name).isnotnull()
    newest = FunctionExpression("max", CaseExpression(possible, built_at)).alias("built_at")
    figures = rows.aggregate([FunctionExpression("count").alias("rows"), newest])
    return Stats(**figures.to_arrow_table().to_pylist()[0])


def _frame(rows: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    return types.drop_empty_cast_errors(pl.DataFrame(pl.from_arrow(rows)))


def _cut_between_keys(
    frames: Iterable[pl.DataFrame], key: Sequence[str], held: pl.DataFrame
) -> Iterator[pl.DataFrame]:
    """Move rows that bear the last key of a frame from the next frame to it.

    One frame at least comes out: `held`, which is empty, where none goes in.
    """
    for frame in frames:
        rest, last = frame, held.tail(1)
        if len(last) and _is_same(last, frame.head(1), key).all():
            more = int(_is_same(last, frame, key).sum())
            held, rest = pl.concat([held, frame.head(more)], how="diagonal"), frame[more:]
        if len(rest):
            if len(held):
                yield held
            held = rest
    yield held


def _is_same(one: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    """Which rows bear the key of the one; none where it has nulls, which are nobody's key."""
    same = [(rows[name] == one[name]).fill_null(False) for name in key]
    return reduce(and_, same)
