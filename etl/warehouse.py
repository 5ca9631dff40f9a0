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
from duckdb import ColumnExpression, ConstantExpression, FunctionExpression

from etl import casts, duckdb_file, queries
from etl.errors import SyncError, UsageError

if TYPE_CHECKING:
    import dataframely as dy
    import pyarrow as pa

    from etl.settings import Settings


@dataclass(frozen=True)
class Mart:
    """What was read: the rows (of one shard), and three facts about the whole mart."""

    table: pa.Table
    columns: frozenset[str]  # the mart's own; empty when the query reads several tables
    rows: int
    built_at: dt.datetime | None


@dataclass(frozen=True)
class _Query:
    sql: str
    origin: str  # the name under which errors speak of it


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
    query = _query(name, settings)
    with tempfile.TemporaryDirectory(prefix="etl-duckdb-") as spill:
        connection = duckdb_file.connect(path, spill, settings.warehouse_wait)
        try:
            return _read(connection, query, contract, settings.mart_schema, shard)
        except duckdb.Error as error:
            raise duckdb_file.explained(
                error, path, f"correct {query.origin} or the mart"
            ) from error
        finally:
            connection.close()


def _query(name: str, settings: Settings) -> _Query:
    if settings.etl_sql_dir:
        folder = Path(settings.etl_sql_dir)
        if not folder.is_dir():
            raise UsageError(f"settings: ETL_SQL_DIR: {folder} is not a folder")
        own = folder / f"{name}.sql"
        if own.is_file():
            return _Query(_text(own), str(own))
    return _Query(queries.load("warehouse", name), f"sql/warehouse/{name}.sql")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SyncError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from error


def _read(
    connection: duckdb.DuckDBPyConnection,
    query: _Query,
    contract: type[dy.Schema],
    mart_schema: str | None,
    shard: tuple[int, int],
) -> Mart:
    connection.execute(queries.load("warehouse", "session"))
    columns = _find_marts(connection, query, mart_schema)
    if columns:
        _check_names(columns, query)
    rows = connection.sql(query.sql)
    if rows is None:
        raise SyncError(
            f"{query.origin}: does not end in a SELECT; write one that returns the rows"
        )
    casts.check(rows, contract, query.origin)

    typed = casts.typed(rows, contract)
    index, of = shard
    if of == 1:
        table = typed.to_arrow_table()
        whole = (table.num_rows, _latest(table))
    else:
        whole = _whole(typed)
        key = [ColumnExpression("user_id"), ConstantExpression(index), ConstantExpression(of)]
        table = typed.filter(FunctionExpression("in_shard", *key)).to_arrow_table()
    return Mart(casts.without_empty_misfits(table), frozenset(columns), *whole)


def _find_marts(
    connection: duckdb.DuckDBPyConnection, query: _Query, mart_schema: str | None
) -> list[str]:
    """Point bare table names at the schemas that hold them.

    Returns the columns of the mart; none where the query reads several tables.
    """
    marts = connection.execute(queries.load("warehouse", "marts"), [query.sql]).fetchall()
    names, search = [], []
    for catalog, schema, mart, schemas in marts:
        found = schema or _choose(mart, schemas, query.origin, mart_schema)
        names.append(".".join(_quoted(part) for part in (catalog, found, mart) if part))
        if not schema:
            search.append(_quoted(found))
    if search:
        connection.execute("SET search_path = $1", [",".join(dict.fromkeys(search))])
    return connection.table(names[0]).columns if len(names) == 1 else []


def _choose(mart: str, schemas: list[str], origin: str, wanted: str | None) -> str:
    """The one schema that holds the mart, or the wanted one."""
    found = [schema for schema in schemas if not wanted or schema.lower() == wanted.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"is in several schemas: {', '.join(found)}; set MART_SCHEMA to the right one"
    elif schemas:
        problem = f"is not in schema {wanted} but in {', '.join(schemas)}; correct MART_SCHEMA"
    else:
        problem = "is in no schema of the warehouse; run dbt, or correct DUCKDB_PATH"
    raise SyncError(f"{mart} ({origin}) {problem}")


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _check_names(columns: list[str], query: _Query) -> None:
    """Each COLUMNS('^(a|b)$') of the query must match exactly one column of the mart."""
    missing, doubled = [], []
    code = re.sub(r"--.*", "", query.sql)
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
            f" map the names in {query.origin}"
        )


def _whole(typed: duckdb.DuckDBPyRelation) -> tuple[int, dt.datetime | None]:
    """What `Mart` says of all shards together."""
    figures = typed.aggregate("count(*) AS rows, max(built_at) AS built_at").to_arrow_table()
    (whole,) = figures.to_pylist()
    return whole["rows"], whole["built_at"]


def _latest(table: pa.Table) -> dt.datetime | None:
    import pyarrow.compute as pc

    latest: dt.datetime | None = pc.max(table["built_at"]).as_py()
    return latest
