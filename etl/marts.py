"""Which tables a query of the warehouse means, and whether they have the columns it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etl import queries
from etl.errors import SyncError, UsageError

if TYPE_CHECKING:
    import duckdb

    from etl.settings import Settings


@dataclass(frozen=True)
class Query:
    """What a sync reads, in DuckDB's SQL."""

    sql: str
    origin: str  # the name under which errors speak of it
    is_own: bool = False  # of ETL_SQL_DIR


def query_of(name: str, settings: Settings) -> Query:
    """The query of a sync: one of that name in ETL_SQL_DIR comes first.

    Raises:
        UsageError: ETL_SQL_DIR is not a folder.
        SyncError: the query cannot be read.
    """
    if settings.etl_sql_dir:
        folder = Path(settings.etl_sql_dir)
        if not folder.is_dir():
            raise UsageError(f"settings: ETL_SQL_DIR: {folder} is not a folder")
        own = folder / f"{name}.sql"
        if own.is_file():
            return Query(_text(own), str(own), is_own=True)
    return Query(queries.load("warehouse", name), f"sql/warehouse/{name}.sql")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SyncError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from error


def find(
    connection: duckdb.DuckDBPyConnection, query: Query, mart_schema: str | None
) -> tuple[list[str], int]:
    """Point bare table names at the schemas that hold them.

    Returns the columns of the mart and about how many rows it has; none and 0 where the query
    reads several tables, 0 for a view.

    Raises:
        SyncError: a mart is in no schema, in the wrong one or in several.
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
    if len(names) != 1:
        return [], 0
    (size,) = connection.execute(queries.load("warehouse", "size"), [found, mart]).fetchall()[0]
    return connection.table(names[0]).columns, size


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


def check_names(columns: list[str], query: Query) -> None:
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
