r"""The text of a key: what shards hash, rejects show and keys of Redis are made of.

A key of one text column is that text. Of any other key each column is written without regard to
any setting, `\` and `|` in texts are escaped, and `|` joins the columns: `Miami|2026-05-01`.
DuckDB writes it by the macros of sql/warehouse/session.sql, Postgres by etl.key_text of
sql/postgres/schema.sql.
"""

from __future__ import annotations

import datetime as dt
import math
import struct
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any

import polars as pl
from duckdb import FunctionExpression

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import duckdb

# The macros of session.sql; integers and booleans take the first.
_MACROS: dict[type[pl.DataType], str] = {
    pl.String: "key_of_text",
    pl.Decimal: "key_of_decimal",
    pl.Float32: "key_of_float",
    pl.Float64: "key_of_float",
    pl.Date: "key_of_date",
    pl.Datetime: "key_of_naive_moment",
}


def expression(columns: Sequence[tuple[duckdb.Expression, pl.DataType]]) -> duckdb.Expression:
    """Return DuckDB's expression for the text of a key; NULL where a column is."""
    if [dtype for _, dtype in columns] == [pl.String()]:
        return columns[0][0]
    texts = [FunctionExpression(_macro(dtype), value) for value, dtype in columns]
    return reduce(lambda left, right: FunctionExpression("key_of_two", left, right), texts)


def text(values: Sequence[object]) -> str | None:
    """Return the text of a key; None where a column is null."""
    if any(value is None for value in values):
        return None
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return "|".join(map(_text, values))


def _macro(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return "key_of_moment"
    return _MACROS.get(dtype.base_type(), "key_of_any")


def _text(value: object) -> str:
    return _TEXTS.get(type(value), str)(value)


def _float(value: float) -> str:
    """By its bits, because no two systems write a float alike; -0 is 0."""
    return "NaN" if math.isnan(value) else struct.pack(">d", value + 0.0).hex()


def _decimal(value: Decimal) -> str:
    """Without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _moment(value: dt.datetime) -> str:
    text = value.replace(tzinfo=None).isoformat(timespec="microseconds")
    return f"{text}Z" if value.tzinfo else text


_TEXTS: dict[type, Callable[[Any], str]] = {
    str: lambda text: text.replace("\\", "\\\\").replace("|", "\\|"),
    bool: lambda truth: str(truth).lower(),
    float: _float,
    Decimal: _decimal,
    dt.date: dt.date.isoformat,
    dt.datetime: _moment,
}
