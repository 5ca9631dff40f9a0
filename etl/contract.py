"""A sync's contract applied to the rows as fetched: good rows go on, bad ones are set aside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dataframely as dy
import orjson
import polars as pl

from etl.warehouse import MISFIT

if TYPE_CHECKING:
    import pyarrow as pa

# dataframely's names for broken rules -> the reasons operators read.
_REASONS = {
    "nullability": "null",
    "min_length": "empty",
    "max_length": "too_long",
    "min": "too_small",
    "max": "too_large",
    "inf": "not_finite",
    "nan": "not_finite",
    "primary_key": "duplicate",
}


def no_nul(text: pl.Expr) -> pl.Expr:
    """A rule for text columns: Postgres cannot hold a NUL byte."""
    return ~text.str.contains("\0", literal=True)


@dataclass(frozen=True)
class Rejects:
    """The rows that broke the contract.

    `rows` has key (the user id), reasons (`segment:null`, `duplicate`, ...) and row (JSON) of
    the first `limit`; `total` counts all of them, `keys` holds the user id of each.
    """

    total: int
    reasons: dict[str, int]
    keys: pl.Series
    rows: pl.DataFrame


def accept(contract: type[dy.Schema], mart: pa.Table, limit: int) -> tuple[pl.DataFrame, Rejects]:
    """Split a mart into the rows that keep the contract and those that break it.

    A duplicated key rejects every row that bears it: which of them is right, nobody knows.

    Args:
        contract: columns, dtypes and rules; it has a `user_id` and a primary key.
        mart: the table of `warehouse.read`.
        limit: how many rejected rows to describe one by one.
    """
    numbered: Any = type("Numbered", (contract,), {"row": dy.UInt32()})
    columns = contract.column_names()
    frame = pl.DataFrame(pl.from_arrow(mart.select(columns)))
    good, failure = numbered.filter(frame.with_row_index("row"))
    return good.drop("row"), _rejects(failure, contract, mart, limit)


def _rejects(
    failure: dy.FailureInfo, contract: type[dy.Schema], mart: pa.Table, limit: int
) -> Rejects:
    rules = list(failure.counts())
    broken = failure.details().sort("row")
    misfits = {
        column: mart[MISFIT.format(column)].take(broken["row"].to_arrow())
        for column in contract.column_names()
        if MISFIT.format(column) in mart.column_names
    }
    broken = broken.with_columns(
        pl.Series(MISFIT.format(column), values) for column, values in misfits.items()
    ).with_columns(reasons=_reasons(rules, set(misfits)))
    kept = broken.head(limit)
    original = mart.take(kept["row"].to_arrow()).to_pylist()
    return Rejects(
        total=len(broken),
        reasons=_counted(broken["reasons"]),
        keys=broken["user_id"],
        rows=pl.DataFrame(
            {
                "key": [_storable(row["user_id"]) for row in original],
                "reasons": kept["reasons"],
                "row": [_as_json(row) for row in original],
            },
            schema={"key": pl.String, "reasons": pl.List(pl.String), "row": pl.String},
        ),
    )


def _reasons(rules: list[str], misfits: set[str]) -> pl.Expr:
    """The list of a row's reasons; a misfit stands in for the null it left behind."""
    reasons = []
    for rule in rules:
        column, _, kind = rule.rpartition("|")
        broken = pl.col(rule) == "invalid"
        if rule == "primary_key":
            broken &= pl.col("user_id").is_not_null()
        if kind == "nullability" and column in misfits:
            broken &= pl.col(MISFIT.format(column)).is_null()
        name = ":".join(filter(None, [column, _REASONS.get(kind, kind.removeprefix("check__"))]))
        reasons.append(pl.when(broken).then(pl.lit(name)))
    for column in sorted(misfits):
        unfit = pl.col(MISFIT.format(column)).is_not_null()
        reasons.append(pl.when(unfit).then(pl.lit(f"{column}:unfit")))
    return pl.concat_list(reasons or [pl.lit(None, pl.String)]).list.drop_nulls()


def _counted(reasons: pl.Series) -> dict[str, int]:
    counts = reasons.explode().drop_nulls().value_counts(sort=True)
    return dict(counts.iter_rows())


def _as_json(row: dict[str, Any]) -> str:
    values = {name: value for name, value in row.items() if not name.startswith("misfit ")}
    for name in values:
        if (misfit := row.get(MISFIT.format(name))) is not None:
            values[name] = misfit
    storable = {name: _storable(value) for name, value in values.items()}
    return orjson.dumps(storable, default=str).decode()


def _storable(value: Any) -> Any:
    """What Postgres and JSON cannot hold, escaped: NUL in text, NaN and infinity as words."""
    if isinstance(value, str):
        return value.replace("\0", "\\u0000")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
