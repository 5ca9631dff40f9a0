"""A sync's contract applied to the rows as fetched: good rows go on, bad ones are set aside."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dataframely as dy
import orjson
import polars as pl

from etl.warehouse import SKEW
from etl.warehouse.types import MISFIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

# dataframely's names for broken rules -> the reasons operators read.
_REASONS = {
    "nullability": "null",
    "min_length": "empty",
    "min": "too_small",
    "max": "too_large",
    "inf": "not_finite",
    "nan": "not_finite",
    "primary_key": "duplicate",
}


def no_nul(text: pl.Expr) -> pl.Expr:
    """A rule for text columns: Postgres cannot hold a NUL byte."""
    return ~text.str.contains("\0", literal=True)


def at_most(characters: int) -> Callable[[pl.Expr], pl.Expr]:
    """A rule for text columns in characters; dataframely's own max_length counts bytes."""
    return lambda text: text.str.len_chars() <= characters


# What every user id keeps, beside being there and not empty.
KEY = {"nul": no_nul, "too_long": at_most(255)}


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


def together(parts: Sequence[Rejects]) -> Rejects:
    """The rejects of a mart that was judged in parts, of which there is one at least."""
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.reasons)
    return Rejects(
        total=sum(part.total for part in parts),
        reasons=dict(reasons.most_common()),
        keys=pl.concat([part.keys for part in parts]),
        rows=pl.concat([part.rows for part in parts]),
    )


def accept(
    contract: type[dy.Schema], mart: pa.Table, limit: int, now: dt.datetime | None = None
) -> tuple[pl.DataFrame, Rejects]:
    """Split a mart into the rows that keep the contract and those that break it.

    A duplicated key rejects every row that bears it: which of them is right, nobody knows.

    Args:
        contract: columns, dtypes and rules; it has a `user_id` and a primary key.
        mart: the table of `warehouse.read`.
        limit: how many rejected rows to describe one by one.
        now: the run's clock; `built_at` may not be later by more than an hour.
    """
    now = now or dt.datetime.now(dt.UTC)
    columns = contract.column_names()
    misfits = [name for name in map(MISFIT.format, columns) if name in mart.column_names]
    frame = pl.DataFrame(pl.from_arrow(mart.select([*columns, *misfits]))).with_row_index("row")
    checked = _checked(contract, frame, misfits, now)
    if checked.is_valid(frame):  # as nearly always: to filter would be to copy everything
        return frame.select(columns), _rejects(
            checked.filter(frame.clear())[1], contract, misfits, limit
        )
    good, failure = checked.filter(frame)
    return good.select(columns), _rejects(failure, contract, misfits, limit)


def _checked(
    contract: type[dy.Schema], frame: pl.DataFrame, misfits: list[str], now: dt.datetime
) -> Any:
    """The contract and that nothing is unfit nor of the future, less a key proven unique."""
    fields: dict[str, Any] = {"row": dy.UInt32()}
    fields |= {name: dy.String(nullable=True, check={"unfit": pl.Expr.is_null}) for name in misfits}
    if built_at := contract.columns().get("built_at"):
        known = (pl.col("built_at") <= now + SKEW).fill_null(True)
        name = (built_at.metadata or {}).get("mart", "built_at")
        fields[f"{name}|in_the_future"] = dy.rule()(lambda _: known)
    key = contract.primary_key()
    # Rows of different hashes have different keys. To compare the keys themselves takes five
    # times as long and 800 MB for five million rows; it is left for when two hashes are alike.
    if frame.select(key).hash_rows().n_unique() == len(frame):
        fields |= {name: contract.columns()[name].with_primary_key(False) for name in key}
    return type("Checked", (contract,), fields)


def _rejects(
    failure: dy.FailureInfo, contract: type[dy.Schema], misfits: list[str], limit: int
) -> Rejects:
    reasons = _reasons(list(failure.counts()), contract.primary_key(), misfits)
    broken = failure.details().sort("row").with_columns(reasons=reasons)
    kept = broken.head(limit)
    rows = kept.select([*contract.column_names(), *misfits]).to_dicts()
    return Rejects(
        total=len(broken),
        reasons=_counted(broken["reasons"]),
        keys=broken["user_id"],
        rows=pl.DataFrame(
            {
                "key": [_storable(row["user_id"]) for row in rows],
                "reasons": kept["reasons"],
                "row": [_as_json(row) for row in rows],
            },
            schema={"key": pl.String, "reasons": pl.List(pl.String), "row": pl.String},
        ),
    )


def _reasons(rules: list[str], key: list[str], misfits: list[str]) -> pl.Expr:
    """The list of a row's reasons; each cause is told once."""
    reasons = []
    for rule in rules:
        column, _, kind = rule.rpartition("|")
        broken = pl.col(rule) == "invalid"
        if rule == "primary_key":  # two nulls are not the same user
            broken &= pl.all_horizontal(pl.col(key).is_not_null())
        if kind == "nullability" and MISFIT.format(column) in misfits:
            broken &= pl.col(MISFIT.format(column)).is_null()
        if kind in {"min", "max"}:  # NaN is beyond any number
            infinite = [name for name in (f"{column}|nan", f"{column}|inf") if name in rules]
            broken &= pl.all_horizontal(True, *(pl.col(name) == "valid" for name in infinite))
        reason = _REASONS.get(kind, kind.removeprefix("check__"))
        name = f"{column.removeprefix(MISFIT.format(''))}:{reason}" if column else reason
        reasons.append(pl.when(broken).then(pl.lit(name)))
    return pl.concat_list(reasons or [pl.lit(None, pl.String)]).list.drop_nulls()


def _counted(reasons: pl.Series) -> dict[str, int]:
    counts = reasons.explode().drop_nulls().value_counts(sort=True)
    return dict(counts.iter_rows())


def _as_json(row: dict[str, Any]) -> str:
    """The row as it stood in the mart: a misfit in the place of the null it left behind."""
    mark = MISFIT.format("")
    values = {name: _storable(row[name]) for name in row if not name.startswith(mark)}
    for name in values:
        if (misfit := row.get(MISFIT.format(name))) is not None:
            values[name] = misfit
    return orjson.dumps(values, default=str).decode()


def _storable(value: Any) -> Any:
    """What Postgres and JSON cannot hold, escaped: NUL in text, NaN and infinity as words."""
    if isinstance(value, str):
        return value.replace("\0", "\\u0000")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
