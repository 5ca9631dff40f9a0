"""Merge staged rows into a table, and count what Postgres answers that it did."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from etl.errors import SyncError
from etl.plumbing import log, queries
from etl.plumbing.counted import counted
from etl.postgres import session
from etl.postgres.query import query, select

if TYPE_CHECKING:
    from etl.postgres.session import Connection

UNIQUE_VIOLATION = "23505"
_NOT_SUPPORTED = "0A000"  # such as a rule on a table that a WITH query writes


@dataclass(frozen=True)
class Merge:
    """A statement that writes staged rows to a table and returns one row of counts.

    Attributes:
        name: of the file in sql/postgres.
        table: its target.
        counts: all that it returns, beside `unwritten`: how many staged rows no RETURNING answered.
        recount: the statement which tells how many of these nobody else is the reason for; none
            where another session cannot be one.
        altered: the statement which counts the staged rows that the table holds otherwise.
    """

    name: str
    table: str
    counts: frozenset[str]
    recount: str | None = None
    altered: str | None = None


def merge(connection: Connection, what: Merge, *parameters: Any) -> dict[str, int]:
    """Run a merge over the staged tables; return its counts.

    Raises:
        SyncError: it failed, or left out staged rows, or does not return the counts it is to.
    """
    log.event("merge.started", logging.DEBUG, merge=what.name)
    begun = time.perf_counter()
    (counts,) = write(connection, what.table, what.name, *parameters)
    _check_names(what, counts)
    if (unwritten := counts.pop("unwritten")) and what.recount:
        unwritten = query(connection, what.recount)[0]["rows"]
    refuse_unwritten(connection, what.table, unwritten)
    refuse_altered(connection, what)
    log.event("merge.done", merge=what.name, seconds=round(time.perf_counter() - begun, 3))
    return counts


def insert(connection: Connection, what: Merge, name: str, rows: int) -> int:
    """Run sql/postgres/<name>.sql, a plain INSERT of all that is staged for a merge.

    The merge is planned before, because a table without its key would take the rows as well, and so
    would one without a column that only the merge maintains.

    Returns:
        How many rows Postgres says it wrote.

    Raises:
        SyncError: it failed, or left out some of the `rows`, or a trigger altered some.
    """
    begun = time.perf_counter()
    with _naming_rules(connection, what.table):
        select(connection, f"EXPLAIN {queries.load('postgres', what.name)}", False)
    written = connection.call(partial(session.write_raw, sql=queries.load("postgres", name)))
    refuse_unwritten(connection, what.table, rows - written)
    refuse_altered(connection, what)
    log.event("merge.done", merge=name, seconds=round(time.perf_counter() - begun, 3))
    return written


def write(connection: Connection, table: str, name: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run sql/postgres/<name>.sql, which writes to a table; return the rows it answers.

    Raises:
        SyncError: it failed; where a rule on the table is the reason, that is named.
    """
    with _naming_rules(connection, table):
        return query(connection, name, *parameters)


@contextmanager
def _naming_rules(connection: Connection, table: str) -> Iterator[None]:
    try:
        yield
    except SyncError as error:
        if error.sqlstate == _NOT_SUPPORTED:
            connection.rollback()
            error.args = (f"{error}; {_suspects(connection, table)}",)
        raise


def refuse_unwritten(connection: Connection, table: str, rows: int) -> None:
    """End a run whose target dropped rows in silence.

    Raises:
        SyncError: `rows` is not 0; it names the triggers and rules that may be the reason.
    """
    if rows:
        raise SyncError(
            f"{table}: {counted(rows, 'row')} to be written or deleted stayed as before, so all was"
            f" rolled back; {_suspects(connection, table)}"
        )


def refuse_altered(connection: Connection, what: Merge) -> None:
    """End a run whose staged rows are not what the target made of them.

    Raises:
        SyncError: it says how many, and names the triggers and rules that may be the reason.
    """
    if what.altered and (rows := query(connection, what.altered)[0]["rows"]):
        triggers = _triggers_and_rules(connection, what.table) or "none"
        raise SyncError(
            f"{what.table}: {counted(rows, 'row is', 'rows are')} not there as written, so all was"
            " rolled back; compare its columns with sql/postgres/schema.sql, and see what its"
            f" triggers and rules do: {triggers}"
        )


def _suspects(connection: Connection, table: str) -> str:
    if found := _triggers_and_rules(connection, table):
        return f"the likely cause is on the table: {found}; mend it or disable it"
    return "the table has no trigger or rule that drops rows; run again"


def _triggers_and_rules(connection: Connection, table: str) -> str:
    return ", ".join(row["name"] for row in query(connection, "droppers", table))


def _check_names(what: Merge, counts: dict[str, Any]) -> None:
    """A count by another name would be lost, and with it a guard or a figure of the result."""
    expected = what.counts | {"unwritten"}
    wrong = [f"{name} is missing" for name in sorted(expected - counts.keys())]
    wrong += [f"{name} is not known" for name in sorted(counts.keys() - expected)]
    wrong += [f"{name} is null" for name in sorted(counts) if counts[name] is None]
    if wrong:
        raise SyncError(f"sql/postgres/{what.name}.sql: wrong counts: {', '.join(wrong)}")
