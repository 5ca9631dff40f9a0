"""A mart as a stream, key by key, in batches that fit into memory."""

from __future__ import annotations

import datetime as dt
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import polars as pl
import pyarrow as pa
from duckdb import CaseExpression, ColumnExpression, ConstantExpression, FunctionExpression

from etl.plumbing import folder
from etl.warehouse import errors, file, keys, marts, order, types
from etl.warehouse.spool import BATCH_ROWS, batch_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import dataframely as dy

    from etl.settings import Settings

# A mart's clock may be so much ahead of ours. A row that was built later than that is wrong, and
# must not make all others look old.
SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Stats:
    """What the guards ask about a mart as a whole."""

    rows: int
    built_at: dt.datetime | None  # the newest of its rows, less those that cannot be right


@dataclass(frozen=True)
class Mart:
    """A mart whose file is open.

    A value that does not fit the contract's type is null and stands as text in the column
    `uncastable <name>`, which is there only when it has something to say.
    """

    relation: duckdb.DuckDBPyRelation  # the rows of the part at hand, by the contract's types
    source: marts.Source
    key: Sequence[str]
    unique: bool  # no two rows have the same key; False also where that is not known
    runs: int | None  # how many keys there are, each to come as one run; None: not verified
    stats: Stats | None  # of the whole mart, where only a part is read
    explaining: Callable[[], AbstractContextManager[None]]  # what goes wrong while it is read

    def frames(self) -> Generator[pl.DataFrame, None, None]:
        """Stream the rows; all rows of a key come in one frame, unless nobody looked for such.

        Close it before the block of `open_mart` ends, because that closes what it reads.

        Raises:
            SyncError: the rows came in another order than when they were looked through.
        """
        with self.explaining():
            rows = batch_rows(len({*self.relation.columns} - {order.HASH}), BATCH_ROWS)
            reader = self.relation.to_arrow_reader(rows)
        with reader:
            frames: Iterable[pl.DataFrame] = map(_frame, self._batches(reader))
            empty, key = _frame(reader.schema.empty_table()), self.key
            if self.runs is not None:
                frames = order.require_runs(frames, self.runs, self.source.query)
                key = [order.HASH]
            for frame in order.cut_between_keys(frames, key, empty):
                yield frame.drop(order.HASH, strict=False)

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
    ordered: bool | None = True,
) -> Iterator[Mart]:
    """Open the warehouse for the length of a block and run sql/warehouse/<name>.sql.

    While the block lasts, dbt in another process cannot write to the file.

    Args:
        name: the sync, hence the query; a file of that name in ETL_SQL_DIR comes first.
        contract: the columns to return; its dtypes choose the casts.
        settings: the warehouse file, MART_SCHEMA and ETL_SQL_DIR.
        part: (i, n) reads the keys whose hash modulo n is i; a text, the rows of this key alone.
        spill: a folder for what does not fit into memory.
        now: the run's clock.
        key: columns of the contract's primary key that order and shards go by; all by default.
        ordered: by the key. False: all rows of a key in one frame, and sorted only where those of
            too many keys are apart in a table. None: as they stand in a table.

    Raises:
        SyncError: the file cannot be opened, the mart is not found, or columns are missing
            or of a type that cannot serve; every offender is named.
    """
    path, key = Path(settings.duckdb_path), key or contract.primary_key()
    query = marts.load_query(name, settings)
    explaining = partial(_explaining, path, f"correct {query.source} or the mart")
    with file.open_warehouse(path, spill, settings.warehouse_wait) as connection:
        with explaining():
            source = marts.find(connection, query, settings.mart_schema, path.absolute().parent)
            types.check_columns(source.rows, contract, query.source)
            rows, stats = _part(source.rows, contract, key, part, now)
            if source.stored is None or part != (0, 1):
                ordered = True  # to look would be to compute a view, or a hash of each key, twice
            seen = _see_keys(rows, contract, key, ordered)
            if seen.apart != []:
                file.give_room(connection, _weight(source, seen))
            typed = order.put_together(rows, contract, key, seen)
        yield Mart(typed, source, key, seen.unique, seen.runs, stats, explaining)


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
    key: Sequence[str],
    part: tuple[int, int] | str,
    now: dt.datetime,
) -> tuple[duckdb.DuckDBPyRelation, Stats | None]:
    """Return the rows of one shard or of one key, and what to know of all of them."""
    if part == (0, 1):
        return rows, None
    text = keys.expression(types.key_of(rows, contract, key))
    if isinstance(part, str):
        mine = rows.filter(text == ConstantExpression(part))
    else:
        index, of = part
        hashed = FunctionExpression("shard_of", text, ConstantExpression(of))
        mine = rows.filter(hashed == ConstantExpression(index))
    return mine, _stats(types.cast_to_contract(rows, contract), contract, now)


def _see_keys(
    rows: duckdb.DuckDBPyRelation,
    contract: type[dy.Schema],
    key: Sequence[str],
    ordered: bool | None,
) -> order.Keys:
    """See how keys stand, where that decides what to sort: see `ordered` of `open_mart`."""
    if ordered is None:
        return order.Keys(apart=[])
    return order.Keys() if ordered else order.look_through(rows, contract, key)


def _weight(source: marts.Source, seen: order.Keys) -> file.Weight | None:
    """What is to be sorted of a mart weighs, by its first rows; None of a view."""
    if source.stored is None:
        return None
    rows = source.stored if seen.apart is None else seen.rows_apart
    return file.weigh(source.rows.limit(2_048).to_arrow_table(), rows)


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
