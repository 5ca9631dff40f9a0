"""Rows on disk compared and joined by DuckDB, out of core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from pathlib import Path

import duckdb
import pyarrow as pa
from duckdb import ColumnExpression, DuckDBPyRelation

from etl.errors import SyncError
from etl.plumbing import queries
from etl.warehouse import errors, file
from etl.warehouse.spool import BATCH_ROWS, Batches, Spool, batch_rows, write

# A hash join of ten million rows with ten million works in this; each further one takes more.
_JOIN_BYTES, _BYTES_PER_ROW, _ROWS_IN_IT = 140_000_000, 10, 20_000_000

# What a query of several joins may take. Unlike a single join, which works on disk, several keep a
# page for each part of each of them in memory: who asks sees to it that all of them fit.
_QUERY_BYTES = 112_000_000


def differing(rows: Spool, target: Spool) -> AbstractContextManager[pa.RecordBatchReader]:
    """Stream the rows that the target lacks or holds with another value, in the order of the key.

    Whether a row has changed is asked twice. Here, so that only rows which may have changed are
    sent to Postgres. And in the merge (sql/postgres/user_segments_update.sql, user_segments.sql),
    which alone decides, because others may write to the target after it was read, and because a
    run of one shard, or into a table much larger than the mart, stages all rows unread.

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
    """Join, and then sort what was found, because both at once count on the same memory."""
    folder, query = rows.path.parent, "anti_join"
    total = rows.rows + sum(other.rows for other in others)
    memory = _JOIN_BYTES + _BYTES_PER_ROW * max(total - _ROWS_IN_IT, 0)
    with _reading(folder, query):
        with file.in_memory(folder, memory) as connection:
            like = connection.from_arrow(schema.empty_table())
            types = dict(zip(like.columns, like.types, strict=True))
            casts = [ColumnExpression(name).try_cast(types[name]).alias(name) for name in columns]
            mine, *theirs = (
                connection.from_arrow(_reader(spool)).select(*casts) for spool in (rows, *others)
            )
            mine.create_view("mine")
            reduce(DuckDBPyRelation.union, theirs).create_view("theirs")
            joined_rows = connection.sql(queries.load("warehouse", query))
            with joined_rows.to_arrow_reader(BATCH_ROWS) as reader:
                found = write(reader, folder / query, rows.key)
        with _in_order(found) as reader:
            yield reader


@contextmanager
def _in_order(rows: Spool) -> Iterator[pa.RecordBatchReader]:
    first = next(iter(rows.batches()), None)
    if first is None:
        yield _reader(rows)
        return
    with file.in_memory(rows.path.parent) as connection:
        file.give_room(connection, file.weigh(first, rows.rows))
        ordered = connection.from_arrow(_reader(rows)).sort(*map(ColumnExpression, rows.key))
        with ordered.to_arrow_reader(BATCH_ROWS) as reader:
            yield reader


@contextmanager
def joined(
    query: str, spill: Path, streams: Mapping[str, Batches], variables: Mapping[str, object]
) -> Iterator[pa.RecordBatchReader]:
    """Stream what sql/warehouse/<query>.sql makes of streams of rows.

    Joins are made as the query has them: its first table streams by and keeps its order, the
    others are held in memory.

    Args:
        query: the name of the file.
        spill: a folder for what does not fit into memory.
        streams: by the names that the query has for them; each can be read once.
        variables: what getvariable() answers.
    """
    with _reading(spill, query), file.in_memory(spill, _QUERY_BYTES) as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        for name, value in variables.items():
            connection.execute(f"SET VARIABLE {name} = $1", [value])
        for name, rows in streams.items():
            connection.from_arrow(_reader(rows)).create_view(name)
        found = connection.sql(queries.load("warehouse", query))
        with found.to_arrow_reader(batch_rows(len(found.columns))) as reader:
            yield reader


@contextmanager
def _reading(folder: Path, query: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException) as error:
        reason = str(error).partition("\n")[0]  # names alone
        raise SyncError(
            f"sql/warehouse/{query}.sql: {reason}; the rows that it is handed have other columns:"
            " compare what transform returns with the statements of sql/postgres that read the"
            " target"
        ) from None
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        advice = "see who changes what is in it, and run again"
        raise errors.to_sync_error(error, folder.parent, advice, "temporary folder") from None


def _reader(rows: Spool | Batches) -> pa.RecordBatchReader:
    stream = rows.batches() if isinstance(rows, Spool) else rows
    return pa.RecordBatchReader.from_batches(rows.schema, stream)
