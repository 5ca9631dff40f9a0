"""A mart's types made into a contract's, and nothing lost without a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl
from duckdb import ColumnExpression, FunctionExpression

from etl.errors import SyncError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dataframely as dy
    import duckdb
    import pyarrow as pa

# The column beside each number or moment that holds, as text, what did not fit its type.
MISFIT = "misfit {}"

# DuckDB's types, by what is done with them; "null" is a column that holds nothing else.
_TEXTS = {"varchar", "enum", "uuid", "null"}
_SMALL_INTEGERS = {"tinyint", "smallint", "integer", "utinyint", "usmallint", "uinteger"}
_INTEGERS = _SMALL_INTEGERS | {"bigint", "ubigint", "hugeint", "uhugeint", "null"}
_FRACTIONS = {"float", "double", "decimal"}
_NUMBERS = _INTEGERS | _FRACTIONS
_ZONED = {"timestamp with time zone", "timestamptz_ns"}
_NAIVE = {"date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "null"}


@dataclass(frozen=True)
class _Cast:
    """How a contract's dtype is made of the mart's types, each by a macro of session.sql."""

    what: str
    macros: dict[str, set[str]]
    exact: set[str] = field(default_factory=set)  # types of which every value fits

    def macro(self, type_id: str) -> str | None:
        return next((macro for macro, takes in self.macros.items() if type_id in takes), None)


_CASTS: dict[type[pl.DataType], _Cast] = {
    pl.String: _Cast("text", {"as_text": _TEXTS}, exact=_TEXTS),
    pl.Int64: _Cast(
        "a number",
        {"as_count": _INTEGERS, "as_whole_count": _FRACTIONS},
        exact={*_SMALL_INTEGERS, "bigint"},
    ),
    pl.Decimal: _Cast("a number", {"as_money": _NUMBERS}, exact=_SMALL_INTEGERS),
    pl.Float64: _Cast("a number", {"as_number": _NUMBERS}, exact=_NUMBERS),
    pl.Datetime: _Cast("a timestamp", {"as_utc_moment": _NAIVE, "as_moment": _ZONED}),
}


def check(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema], origin: str) -> None:
    """See that a query returns each column of the contract once, in a type that can serve.

    Raises:
        SyncError: naming the query (`origin`) and every column that is wrong.
    """
    types = dict(zip(rows.columns, rows.types, strict=True))
    problems = []
    for column, cast in _contract_casts(contract):
        if column not in types:
            problems.append(f"{column} is missing")
        elif rows.columns.count(column) > 1:
            problems.append(f"{column} comes more than once")
        elif cast.macro(types[column].id) is None:
            problems.append(f"{column} is {types[column]}, which is not {cast.what}")
    if problems:
        raise SyncError(f"{origin}: {'; '.join(problems)}; correct the mart or cast in that file")


def typed(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema]) -> duckdb.DuckDBPyRelation:
    """The rows under the contract's names and types, the misfits beside them."""
    return rows.select(*_casts(rows, contract))


def not_null(rows: duckdb.DuckDBPyRelation) -> frozenset[str]:
    """The columns that may hold something: not those which are NULL, whatever the rows.

    An optional column that the mart does not have is such a NULL: it has no type of its own.
    """
    types = zip(rows.columns, rows.types, strict=True)
    return frozenset(name.lower() for name, type_ in types if type_.id != "null")


def without_empty_misfits(table: pa.Table) -> pa.Table:
    """Drop the columns that hold no misfit, which is nearly always all of them."""
    mark = MISFIT.format("")
    empty = [
        name
        for name in table.column_names
        if name.startswith(mark) and table[name].null_count == table.num_rows
    ]
    return table.drop_columns(empty)


def _casts(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema]) -> Iterator[duckdb.Expression]:
    types = {name: type_.id for name, type_ in zip(rows.columns, rows.types, strict=True)}
    for column, cast in _contract_casts(contract):
        raw = ColumnExpression(column)
        cast_column = FunctionExpression(str(cast.macro(types[column])), raw)
        yield cast_column.alias(column)
        if types[column] not in cast.exact:
            yield FunctionExpression("misfit", raw, cast_column).alias(MISFIT.format(column))


def _contract_casts(contract: type[dy.Schema]) -> list[tuple[str, _Cast]]:
    schema = {name: column.dtype for name, column in contract.columns().items()}
    return [(column, _CASTS[dtype.base_type()]) for column, dtype in schema.items()]
