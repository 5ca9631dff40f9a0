"""A mart's types made into a contract's, and nothing lost without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import polars as pl
from duckdb import ColumnExpression, FunctionExpression

from etl.errors import SyncError
from etl.warehouse.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import dataframely as dy
    import duckdb

# The column beside each number or moment that holds, as text, what did not fit its type.
UNCASTABLE = "uncastable {}"

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
    """How a contract's dtype is made of the mart's types; NULL is what does not fit."""

    expected: str
    ways: tuple[tuple[set[str], Callable[[duckdb.Expression], duckdb.Expression]], ...]
    exact: set[str]  # types of which every value fits

    def way(self, type_id: str) -> Callable[[duckdb.Expression], duckdb.Expression] | None:
        return next((way for types, way in self.ways if type_id in types), None)


def check_columns(rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema], origin: str) -> None:
    """See that a query returns each column of the contract once, in a type that can serve.

    Raises:
        SyncError: naming the query (`origin`) and every column that is wrong.
    """
    names = [name.lower() for name in rows.columns]
    types = dict(zip(names, rows.types, strict=True))
    problems, absent = [], []
    for column, cast in _contract_casts(contract):
        if column not in types:
            optional = contract.columns()[column].nullable
            way_out = f" (NULL AS {column} where the mart has none)" if optional else ""
            problems.append(f"{column} is missing{way_out}")
            absent.append(column)
        elif names.count(column) > 1:
            problems.append(f"{column} comes more than once")
        elif cast.way(types[column].id) is None:
            problems.append(f"{column} is {types[column]}, which is not {cast.expected}")
    if problems:
        raise NotFoundError(
            f"{origin}: {'; '.join(problems)}; correct the mart or cast in that file",
            columns=absent,
            names=[name for name in names if absent and name not in contract.columns()],
        )


def cast_to_contract(
    rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema], *more: duckdb.Expression
) -> duckdb.DuckDBPyRelation:
    """Return rows under the contract's names and types; beside, what cannot be cast, and `more`."""
    columns = list(more)
    for name, value, fits in _casts(rows, contract):
        columns.append(value.alias(name))
        if not fits:
            failed = FunctionExpression("uncastable", ColumnExpression(name), value)
            columns.append(failed.alias(UNCASTABLE.format(name)))
    return rows.select(*columns)


def not_null(rows: duckdb.DuckDBPyRelation) -> frozenset[str]:
    """The columns that may hold something: not those which are NULL, whatever the rows.

    An optional column that the mart does not have is such a NULL: it has no type of its own.
    """
    types = zip(rows.columns, rows.types, strict=True)
    return frozenset(name.lower() for name, type_ in types if type_.id != "null")


def drop_empty_cast_errors(rows: pl.DataFrame) -> pl.DataFrame:
    """Drop the columns that tell of no uncastable value, which is nearly always all of them."""
    mark = UNCASTABLE.format("")
    return rows.drop(
        [
            name
            for name in rows.columns
            if name.startswith(mark) and rows[name].null_count() == len(rows)
        ]
    )


def key_of(
    rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema], columns: Sequence[str]
) -> list[tuple[duckdb.Expression, pl.DataType]]:
    """Return the columns of a key as the contract types them, each with its dtype."""
    ways = {name: way for name, way, _ in _casts(rows, contract)}
    return [(ways[name], contract.columns()[name].dtype) for name in columns]


def _casts(
    rows: duckdb.DuckDBPyRelation, contract: type[dy.Schema]
) -> Iterator[tuple[str, duckdb.Expression, bool]]:
    """Yield each column of the contract, its expression, and whether every value fits."""
    types = {name.lower(): type_.id for name, type_ in zip(rows.columns, rows.types, strict=True)}
    for column, cast in _contract_casts(contract):
        way = cast.way(types[column])
        if way is None:  # `check_columns` has refused it
            raise SyncError(f"{column}: not {cast.expected}")
        yield column, way(ColumnExpression(column)), types[column] in cast.exact


def _contract_casts(contract: type[dy.Schema]) -> list[tuple[str, _Cast]]:
    casts, problems = [], []
    if not contract.primary_key():
        problems.append("no column has primary_key=True")
    if "built_at" not in contract.columns():
        problems.append("built_at is missing")
    for name, column in contract.columns().items():
        if cast := _cast_to(column.dtype):
            casts.append((name, cast))
        else:
            problems.append(f"{name} is {column.dtype!r}, which is not read from a mart")
    if problems:
        raise SyncError(
            f"{contract.__name__}: {'; '.join(problems)}. A contract has a primary key, built_at,"
            " and columns of text, numbers, booleans, dates, or moments in microseconds (UTC or"
            " without a zone)"
        )
    return casts


def _cast_to(dtype: pl.DataType) -> _Cast | None:
    match dtype:
        case pl.Decimal(precision=precision, scale=scale):
            small_fit = _SMALL_INTEGERS if precision - scale >= 10 else set()  # digits of 2 ** 32
            return _number(f"DECIMAL({precision}, {scale})", small_fit)
        case pl.Datetime(time_unit="us", time_zone="UTC"):
            return _UTC_MOMENT
        case pl.Datetime(time_unit="us", time_zone=None):
            return _NAIVE_MOMENT
        case _:
            return _CASTS.get(dtype.base_type())


def _integer(width: str) -> _Cast:
    def whole(raw: duckdb.Expression) -> duckdb.Expression:
        return FunctionExpression("as_whole", raw, raw.try_cast(width))

    exact = {width} | (_SMALL_INTEGERS if width == "bigint" else set())
    return _Cast("a number", ((_INTEGERS, _to(width)), (_FRACTIONS, whole)), exact)


def _number(type_: str, exact: set[str]) -> _Cast:
    return _Cast("a number", ((_NUMBERS, _to(type_)),), exact)


def _macro(name: str) -> Callable[[duckdb.Expression], duckdb.Expression]:
    """One of session.sql."""
    return partial(FunctionExpression, name)


def _to(type_: str) -> Callable[[duckdb.Expression], duckdb.Expression]:
    return lambda raw: raw.try_cast(type_)


_UTC_MOMENT = _Cast(
    "a timestamp", ((_NAIVE, _macro("as_utc_moment")), (_ZONED, _macro("as_moment"))), set()
)
_NAIVE_MOMENT = _Cast("a timestamp", ((_NAIVE | _ZONED, _macro("as_naive_moment")),), set())

_CASTS: dict[type[pl.DataType], _Cast] = {
    pl.String: _Cast("text", ((_TEXTS, _macro("as_text")),), _TEXTS),
    pl.Boolean: _Cast("a boolean", (({"boolean", "null"}, _to("BOOLEAN")),), {"boolean"}),
    pl.Date: _Cast("a date", (({"date"}, _macro("as_day")), ({"null"}, _to("DATE"))), set()),
    pl.Float64: _number("DOUBLE", _NUMBERS),
    pl.Float32: _number("FLOAT", {"float"}),
    pl.Int8: _integer("tinyint"),
    pl.Int16: _integer("smallint"),
    pl.Int32: _integer("integer"),
    pl.Int64: _integer("bigint"),
    pl.UInt8: _integer("utinyint"),
    pl.UInt16: _integer("usmallint"),
    pl.UInt32: _integer("uinteger"),
    pl.UInt64: _integer("ubigint"),
}
