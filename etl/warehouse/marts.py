"""Which tables a query of the warehouse means, and whether they have the columns it asks for."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from etl.errors import SyncError, UsageError
from etl.plumbing import queries
from etl.warehouse import types
from etl.warehouse.errors import NotFoundError

if TYPE_CHECKING:
    from etl.settings import Settings


# Many times what any query needs.
_MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class Query:
    """What a sync reads, in DuckDB's SQL."""

    sql: str
    source: str  # the name under which errors speak of it
    is_override: bool = False  # of ETL_SQL_DIR


@dataclass(frozen=True)
class Source:
    """What a query reads."""

    query: str  # the name under which errors speak of it
    rows: duckdb.DuckDBPyRelation  # that it returns
    columns: frozenset[str]  # of them, less those that are NULL by the query's text
    tables: list[str]  # quoted
    mapped: dict[str, str]  # columns of the mart by names of the contract, where a name may vary
    stored: int | None  # rows of the one table it reads; None: computed, and not to be twice


def load_query(name: str, settings: Settings) -> Query:
    """The query of a sync: one of that name in ETL_SQL_DIR comes first.

    Raises:
        UsageError: ETL_SQL_DIR is not a folder.
        SyncError: the query cannot be read.
    """
    if settings.etl_sql_dir:
        own = _folder(settings.etl_sql_dir) / f"{name}.sql"
        if (sql := _text(own)) is not None:
            return Query(sql, str(own), is_override=True)
    return Query(queries.load("warehouse", name), f"sql/warehouse/{name}.sql")


def _folder(name: str) -> Path:
    with suppress(OSError):
        if Path(name).is_dir():
            return Path(name)
    raise UsageError(f"settings: ETL_SQL_DIR: {name} is not a folder")


def _text(path: Path) -> str | None:
    """What is in a file; None where nothing has that name, not even a link to nowhere."""
    try:
        path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        # A pipe or a device would be read for ever.
        if not path.is_file():
            raise SyncError(f"{path}: is not a file, nor a link to one; put the query there")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > _MOST_BYTES:
        raise SyncError(f"{path}: is larger than {_MOST_BYTES:,} bytes; put the query there")
    try:
        return content.decode("utf-8-sig")
    except UnicodeError as error:
        raise SyncError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from None


def _unreadable(path: Path, error: OSError) -> SyncError:
    return SyncError(f"{path}: {error.strerror}; let the user that runs the sync read it")


def find(
    connection: duckdb.DuckDBPyConnection, query: Query, mart_schema: str | None, folder: Path
) -> Source:
    """Find the tables and columns that a query means.

    Args:
        connection: to the warehouse.
        query: one SELECT.
        mart_schema: the schema to look in; None: the only one that has the mart.
        folder: of the warehouse's file, which relative paths of views start from.

    Raises:
        SyncError: the query, its tables or its columns are not what they should be.
    """
    query = _one_select(connection, query)
    _check_files(connection, query, folder)
    tables, mapped, stored = _resolve_tables(connection, query, mart_schema), {}, None
    if len(tables) == 1:
        mart = connection.table(tables[0])
        mapped = _map_names(mart.columns, query)
        if mart.type == "TABLE_RELATION" and not query.is_override:
            stored = len(mart)
    rows = connection.sql(query.sql)
    return Source(query.source, rows, types.not_null(rows), tables, mapped, stored)


def _resolve_tables(
    connection: duckdb.DuckDBPyConnection, query: Query, mart_schema: str | None
) -> list[str]:
    """Point bare table names at the schemas that hold them; return the quoted names in full.

    Raises:
        SyncError: a mart is in no schema, in the wrong one or in several.
    """
    marts = connection.execute(queries.load("warehouse", "marts"), [query.sql]).fetchall()
    schemas = connection.execute(queries.load("warehouse", "schemas")).fetchall()
    names, search = [], []
    for catalog, schema, mart, holders in marts:
        if "." in mart and not schema and not holders:
            continue  # a file
        found = schema or _choose(mart, holders, query.source, mart_schema)
        whole = (catalog, schema, mart) if schema else (schemas[0][0], found, mart)
        names.append(_quoted(*filter(None, whole)))
        if not schema:
            search.append(_quoted(*whole[:2]))
    # The others as well: by `schema.table` DuckDB finds only what is in the path.
    path = ["system.main", *search, *(_quoted(*schema) for schema in schemas)]
    connection.execute("SET search_path = $1", [",".join(dict.fromkeys(path))])
    return names


def _check_files(connection: duckdb.DuckDBPyConnection, query: Query, folder: Path) -> None:
    """A view's relative file must not be in the working folder too: DuckDB looks there first.

    Raises:
        SyncError: naming the file and both folders.
    """
    quoted = connection.execute(queries.load("warehouse", "literals"), [query.sql]).fetchall()
    for name in (text[1:-1] for (text,) in quoted):
        with suppress(OSError, ValueError):  # most are no names of files
            if Path(name).is_file() and not Path(name).samefile(folder / name):
                raise SyncError(
                    f"{name!r}, which a view or {query.source} reads, is in the warehouse's folder"
                    f" and, another file, in {Path.cwd()}; run from another folder"
                )


def _choose(mart: str, schemas: list[str], source: str, wanted: str | None) -> str:
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
        raise NotFoundError(f"{mart} ({source}) {problem}", tables=[mart])
    raise SyncError(f"{mart} ({source}) {problem}")


def _quoted(*names: str) -> str:
    return ".".join('"{}"'.format(name.replace('"', '""')) for name in names)


def _one_select(connection: duckdb.DuckDBPyConnection, query: Query) -> Query:
    """The query without what may follow its one statement: semicolons and comments.

    Raises:
        SyncError: there is none, there are several, or it returns no rows.
    """
    kinds = [each.type.name for each in connection.extract_statements(query.sql)]
    if len(kinds) > 1:
        raise SyncError(f"{query.source}: has {len(kinds)} statements; write one SELECT")
    if kinds == ["MULTI"]:  # DuckDB does not tell which tables it reads
        raise SyncError(
            f"{query.source}: has a PIVOT without its values; write them: ON <column> IN (...)"
        )
    if kinds != ["SELECT"]:
        raise SyncError(
            f"{query.source}: does not end in a SELECT; write one that returns the rows"
        )
    code = query.sql.encode()
    for offset, kind in reversed(duckdb.tokenize(query.sql)):
        if kind.name != "comment" and code[offset:].strip() != b";":
            break
        code = code[:offset]
    return replace(query, sql=code.decode())


def _map_names(columns: list[str], query: Query) -> dict[str, str]:
    """Match each COLUMNS('(?i)^(a|b)$') AS name of the query with one column of the mart.

    Returns:
        The column of the mart by the name that the query gives it.

    Raises:
        SyncError: naming every call that no column matches, or several do.
    """
    missing, doubled, mapped = [], [], {}
    code = re.sub(r"--.*", "", query.sql)
    calls = re.findall(
        r"COLUMNS\('(\(\?i\))?(\^\((.+?)\)\$)'\)(?:\s+AS\s+(\w+))?", code, re.IGNORECASE
    )
    for flag, pattern, names, alias in calls:
        present = [column for column in columns if re.search(flag + pattern, column)]
        if not present:
            missing.append(names)
        elif len(present) > 1:
            doubled.append(" and ".join(present))
        else:
            mapped[alias or present[0]] = present[0]
    problems = [f"has no column {names.replace('|', ' or ')}" for names in missing]
    problems += [f"has both {names}, of which one must go" for names in doubled]
    if problems:
        wanted = [name for names in missing for name in names.split("|")]
        raise NotFoundError(
            f"the mart {'; it '.join(problems)}; it has {', '.join(columns)};"
            f" map the names in {query.source}",
            columns=wanted,
        )
    return mapped
