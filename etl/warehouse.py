"""The DuckDB warehouse: one mart -> one Arrow table, typed as the sync's contract asks.

The handle is read-only and held for the length of the read alone: while it is open, dbt in
another process cannot write.
"""

from __future__ import annotations

import datetime as dt
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import polars as pl
from duckdb import ColumnExpression, ConstantExpression, FunctionExpression

from etl import queries
from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dataframely as dy
    import pyarrow as pa

    from etl.settings import Settings

# The column beside each number or moment that holds, as text, what did not fit its type.
MISFIT = "misfit {}"

# DuckDB does little more here than scan one table; what is left is for Arrow and Polars.
_MEMORY = "512MB"

_INTEGERS = {"tinyint", "smallint", "integer", "bigint"}
_NUMBERS = _INTEGERS | {
    *("utinyint", "usmallint", "uinteger", "ubigint", "hugeint", "uhugeint"),
    *("float", "double", "decimal"),
}
_TEXTS = {"varchar", "enum", "uuid"}
_MOMENTS = {
    *("date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"),
    "timestamp with time zone",
}


@dataclass(frozen=True)
class _Cast:
    """How a contract's dtype is made: the macro in session.sql and what it takes."""

    macro: str
    takes: set[str]
    what: str
    exact: set[str]  # types of which every value fits


_CASTS: dict[type[pl.DataType], _Cast] = {
    pl.String: _Cast("as_text", _TEXTS, "text", _TEXTS),
    pl.Int64: _Cast("as_count", _NUMBERS, "a number", _INTEGERS),
    pl.Decimal: _Cast("as_money", _NUMBERS, "a number", set()),
    pl.Float64: _Cast("as_number", _NUMBERS, "a number", _NUMBERS),
    pl.Datetime: _Cast("as_moment", _MOMENTS, "a timestamp", set()),
}


@dataclass(frozen=True)
class Mart:
    """What was read: the rows (of one shard), and three facts about the whole mart."""

    table: pa.Table
    columns: frozenset[str]  # the mart's own; empty when the query reads several tables
    rows: int
    built_at: dt.datetime | None


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
    path = Path(settings.duckdb_path)
    with tempfile.TemporaryDirectory(prefix="etl-duckdb-") as spill:
        connection = _open(path, spill)
        try:
            return _read(connection, name, contract, settings, shard)
        except duckdb.Error as error:
            raise SyncError(f"warehouse {path}: reading {name}: {_first_line(error)}") from error
        finally:
            connection.close()


def _read(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    contract: type[dy.Schema],
    settings: Settings,
    shard: tuple[int, int],
) -> Mart:
    sql, origin = _query(name, settings)
    connection.execute(queries.load("warehouse", "session"))
    mart = _choose_schema(connection, sql, origin, settings)
    columns = connection.table(mart).columns if mart else []
    if columns:
        _check_names(columns, sql, origin)
    rows = connection.sql(sql)
    _check_types(rows, contract, origin)

    index, of = shard
    whole = None
    if of > 1:
        figures = rows.aggregate("count(*) AS rows, max(built_at) AS built_at").to_arrow_table()
        whole = tuple(figures.to_pylist()[0].values())
        key = [ColumnExpression("user_id"), ConstantExpression(index), ConstantExpression(of)]
        rows = rows.filter(FunctionExpression("in_shard", *key))
    table = _without_empty_misfits(rows.select(*_casts(rows, contract)).to_arrow_table())
    return Mart(table, frozenset(columns), *(whole or (table.num_rows, _latest(table))))


def _open(path: Path, spill: str) -> duckdb.DuckDBPyConnection:
    if not path.exists():
        raise SyncError(f"warehouse {path}: no such file; run dbt, or set DUCKDB_PATH")
    if path.is_dir():
        raise SyncError(f"warehouse {path}: is a folder; set DUCKDB_PATH to the DuckDB file in it")
    try:
        return duckdb.connect(
            path,
            read_only=True,
            config={"temp_directory": spill, "memory_limit": _MEMORY},
        )
    except duckdb.Error as error:
        raise SyncError(f"warehouse {path}: {_open_problem(str(error))}") from error


def _open_problem(message: str) -> str:
    if holder := re.search(r"Conflicting lock is held in (.*?)\.? See also", message, re.DOTALL):
        return f"locked by a writer ({' '.join(holder[1].split())}); run again when dbt is done"
    if "not a valid DuckDB database file" in message or "sqlite" in message.lower():
        return "not a DuckDB file; set DUCKDB_PATH to the file dbt writes"
    if "version number" in message:
        return "written by a newer DuckDB; upgrade the duckdb package of this service"
    if "Permission denied" in message:
        return "permission denied; let the user that runs the sync read it"
    return f"damaged or unreadable ({message.splitlines()[0]}); restore it or run dbt again"


def _query(name: str, settings: Settings) -> tuple[str, str]:
    """The SQL and the name under which errors speak of it."""
    if settings.etl_sql_dir:
        own = Path(settings.etl_sql_dir) / f"{name}.sql"
        if own.is_file():
            return own.read_text(encoding="utf-8"), str(own)
    return queries.load("warehouse", name), f"sql/warehouse/{name}.sql"


def _choose_schema(
    connection: duckdb.DuckDBPyConnection, sql: str, origin: str, settings: Settings
) -> str | None:
    """Point bare table names at the one schema that holds the mart; return the mart's name."""
    marts = connection.execute(queries.load("warehouse", "marts"), [sql]).fetchall()
    for mart, schemas in marts:
        wanted = settings.mart_schema
        if wanted and wanted not in schemas:
            raise SyncError(_not_found(mart, f"schema {wanted} (MART_SCHEMA)", schemas))
        if not schemas:
            raise SyncError(_not_found(mart, "the warehouse", schemas))
        if not wanted and len(schemas) > 1:
            raise SyncError(
                f"{mart} ({origin}) is in several schemas: {', '.join(schemas)};"
                " set MART_SCHEMA to the right one"
            )
        schema = (wanted or schemas[0]).replace('"', '""')
        connection.execute("SET search_path = $1", [f'"{schema}"'])
    return marts[0][0] if len(marts) == 1 else None


def _not_found(mart: str, where: str, schemas: list[str]) -> str:
    if schemas:
        return f"{mart} is not in {where} but in {', '.join(schemas)}; correct MART_SCHEMA"
    return f"{mart} is not in {where}; run dbt, or check DUCKDB_PATH"


def _check_names(columns: list[str], sql: str, origin: str) -> None:
    """Each COLUMNS('^(a|b)$') of the query must match exactly one column of the mart."""
    missing, doubled = [], []
    code = re.sub(r"--.*", "", sql)
    for pattern in re.findall(r"COLUMNS\('\^\((.+?)\)\$'\)", code, re.IGNORECASE):
        names = pattern.split("|")
        present = [column for column in columns if column in names]
        if not present:
            missing.append(" or ".join(names))
        elif len(present) > 1:
            doubled.append(" and ".join(present))
    problems = [f"has no column {name}" for name in missing]
    problems += [f"has both {names}, of which one must go" for names in doubled]
    if problems:
        raise SyncError(
            f"the mart {'; it '.join(problems)}; it has {', '.join(columns)};"
            f" map the names in {origin}"
        )


def _check_types(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema], origin: str) -> None:
    types = dict(zip(rows.columns, rows.types, strict=True))
    problems = []
    for column, cast in _contract_casts(contract):
        if column not in types:
            problems.append(f"{column} is missing")
        elif types[column].id not in cast.takes:
            problems.append(f"{column} is {types[column]}, which is not {cast.what}")
    if problems:
        raise SyncError(f"{origin}: {'; '.join(problems)}; correct the mart or cast in that file")


def _casts(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema]) -> Iterator[duckdb.Expression]:
    types = dict(zip(rows.columns, rows.types, strict=True))
    for column, cast in _contract_casts(contract):
        raw = ColumnExpression(column)
        typed = FunctionExpression(cast.macro, raw)
        yield typed.alias(column)
        if types[column].id not in cast.exact:
            yield FunctionExpression("misfit", raw, typed).alias(MISFIT.format(column))


def _contract_casts(contract: type[dy.Schema]) -> list[tuple[str, _Cast]]:
    schema = {name: column.dtype for name, column in contract.columns().items()}
    return [(column, _CASTS[dtype.base_type()]) for column, dtype in schema.items()]


def _without_empty_misfits(table: pa.Table) -> pa.Table:
    """Drop the columns that hold no misfit, which is nearly always all of them."""
    mark = MISFIT.format("")
    empty = [
        name
        for name in table.column_names
        if name.startswith(mark) and table[name].null_count == table.num_rows
    ]
    return table.drop_columns(empty)


def _latest(table: pa.Table) -> dt.datetime | None:
    import pyarrow.compute as pc

    latest: dt.datetime | None = pc.max(table["built_at"]).as_py()
    return latest


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
