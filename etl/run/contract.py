"""A sync's contract applied to the rows as fetched: good rows go on, bad ones are set aside."""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dataframely as dy
import orjson
import polars as pl

from etl.warehouse import keys
from etl.warehouse.stream import SKEW
from etl.warehouse.types import UNCASTABLE

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


def without_nul(text: pl.Expr) -> pl.Expr:
    """A rule for text columns: Postgres cannot hold a NUL byte."""
    return ~text.str.contains("\0", literal=True)


def max_chars(characters: int) -> Callable[[pl.Expr], pl.Expr]:
    """A rule for text columns in characters; dataframely's own max_length counts bytes."""
    return lambda text: text.str.len_chars() <= characters


# What every user id keeps, beside being there and not empty.
USER_ID_RULES = {"nul": without_nul, "too_long": max_chars(255)}


_ROW: dict[str, Any] = {"key": pl.String, "reasons": pl.List(pl.String), "row": pl.String}


@dataclass(frozen=True)
class Rejects:
    """The rows that broke the contract.

    `rows` has key (its text, see `warehouse.keys`), reasons (`segment:null`, `duplicate`, ...)
    and row (JSON) of the first `limit`; `total` counts all of them.
    """

    total: int
    reasons: dict[str, int]
    rows: pl.DataFrame


class Validator:
    """Splits a mart, frame by frame, into the rows that keep a contract and those that break it.

    A duplicated key rejects every row that bears it, because nobody knows which of them is right.
    """

    def __init__(
        self,
        contract: type[dy.Schema],
        limit: int,
        now: dt.datetime,
        key: Sequence[str] | None = None,
        add_rejected: Callable[[pl.DataFrame], None] = lambda _: None,
        *,
        unique: bool = False,
    ) -> None:
        """Begin.

        Args:
            contract: columns, dtypes and rules; it has a primary key.
            limit: how many rejected rows to describe one by one.
            now: the run's clock; `built_at` may not be later by more than an hour.
            key: columns of the primary key that a rejected row is known by; all unless given.
            add_rejected: is given these columns of the rejected rows of a frame: keys that are
                complete and that Postgres could hold, each once.
            unique: whether no two rows are known to have the same key.
        """
        self.rows = 0
        self.built_at: dt.datetime | None = None  # the newest of the accepted rows
        # Also of rejected ones that have all they need: shards cannot tell which rows of the others
        # are accepted, and a whole run must not judge by another time than they do.
        self.as_of: dt.datetime | None = None
        self._dated = [pl.col("built_at") <= now + SKEW]
        self._dated += [
            pl.col(name).is_not_null()
            for name, column in contract.columns().items()
            if not column.nullable
        ]
        self._contract, self._limit, self._unique = contract, limit, unique
        self._schema = functools.cache(functools.partial(_schema_for, contract, now=now))
        self._key = list(key or contract.primary_key())
        self._add_rejected = add_rejected
        self._reasons: Counter[str] = Counter()
        self._total = self._described = 0
        self._described_rows = [pl.DataFrame(schema=_ROW)]

    def valid_rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows that keep the contract, and set the others aside.

        Args:
            frame: the contract's columns and those named `uncastable <column>`; all rows of a key.
        """
        columns = self._contract.column_names()
        self.rows += len(frame)
        uncastable = [name for name in map(UNCASTABLE.format, columns) if name in frame.columns]
        # Rows of different hashes have different keys. To compare the keys themselves takes five
        # times as long; it is left for when two hashes are alike.
        key = self._contract.primary_key()
        unique = self._unique or frame.select(key).hash_rows().n_unique() == len(frame)
        schema = self._schema(tuple(uncastable), unique=unique)
        frame = frame.with_row_index("row")
        if schema.is_valid(frame):  # as nearly always: to filter would be to copy everything
            good = dated = frame.select(columns)
        else:
            dated = frame.filter(self._dated)
            good, failure = schema.filter(frame)
            good = good.select(columns)
            self._set_aside(failure, uncastable)
        self.built_at = _newest(self.built_at, good)
        self.as_of = _newest(self.as_of, dated)
        return good

    def rejects(self) -> Rejects:
        """Return what was set aside."""
        reasons = dict(self._reasons.most_common())
        return Rejects(self._total, reasons, pl.concat(self._described_rows))

    def _set_aside(self, failure: dy.FailureInfo, uncastable: list[str]) -> None:
        reasons = _reasons(list(failure.counts()), self._contract.primary_key(), uncastable)
        broken = failure.details().sort("row").with_columns(reasons=reasons)
        self._total += len(broken)
        self._reasons.update(_counted(broken["reasons"]))
        self._add_rejected(_complete_keys(broken.select(self._key)))
        kept = broken.head(max(self._limit - self._described, 0))
        self._described += len(kept)
        self._described_rows.append(self._describe(kept, uncastable))

    def _describe(self, broken: pl.DataFrame, uncastable: list[str]) -> pl.DataFrame:
        rows = broken.select([*self._contract.column_names(), *uncastable]).to_dicts()
        texts = (keys.text([row[name] for name in self._key]) for row in rows)
        columns = {
            "key": [_escape_for_json(text) for text in texts],
            "reasons": broken["reasons"],
            "row": [_as_json(row) for row in rows],
        }
        return pl.DataFrame(columns, schema=_ROW)


def _newest(before: dt.datetime | None, rows: pl.DataFrame) -> dt.datetime | None:
    newest = cast("dt.datetime | None", rows["built_at"].max())
    return max(filter(None, (before, newest)), default=None)


def _schema_for(
    contract: type[dy.Schema], uncastable: tuple[str, ...], now: dt.datetime, *, unique: bool
) -> Any:
    """The contract, and that no cast failed and no row is of the future.

    Without its key where that is known to be unique.
    """
    fields: dict[str, Any] = {"row": dy.UInt32()}
    fields |= {
        name: dy.String(nullable=True, check={"unfit": pl.Expr.is_null}) for name in uncastable
    }
    if built_at := contract.columns().get("built_at"):
        known = (pl.col("built_at") <= now + SKEW).fill_null(True)
        name = (built_at.metadata or {}).get("mart", "built_at")
        fields[f"{name}|in_the_future"] = dy.rule()(lambda _: known)
    if unique:
        key = contract.primary_key()
        fields |= {name: contract.columns()[name].with_primary_key(False) for name in key}
    return type("Checked", (contract,), fields)


def _complete_keys(rows: pl.DataFrame) -> pl.DataFrame:
    """Each key once, without those that have a null, or a NUL that Postgres cannot hold."""
    texts = [without_nul(pl.col(name)) for name, type_ in rows.schema.items() if type_ == pl.String]
    return rows.drop_nulls().filter(*texts).unique()


def _reasons(rules: list[str], key: list[str], uncastable: list[str]) -> pl.Expr:
    """The list of a row's reasons; each cause is told once."""
    reasons = []
    for rule in rules:
        column, _, kind = rule.rpartition("|")
        broken = pl.col(rule) == "invalid"
        if rule == "primary_key":  # two nulls are not the same user
            broken &= pl.all_horizontal(pl.col(key).is_not_null())
        if kind == "nullability" and UNCASTABLE.format(column) in uncastable:
            broken &= pl.col(UNCASTABLE.format(column)).is_null()
        if kind in {"min", "max"}:  # NaN is beyond any number
            infinite = [name for name in (f"{column}|nan", f"{column}|inf") if name in rules]
            broken &= pl.all_horizontal(True, *(pl.col(name) == "valid" for name in infinite))
        reason = _REASONS.get(kind, kind.removeprefix("check__"))
        name = f"{column.removeprefix(UNCASTABLE.format(''))}:{reason}" if column else reason
        reasons.append(pl.when(broken).then(pl.lit(name)))
    return pl.concat_list(reasons or [pl.lit(None, pl.String)]).list.drop_nulls()


def _counted(reasons: pl.Series) -> dict[str, int]:
    counts = reasons.explode().drop_nulls().value_counts(sort=True)
    return dict(counts.iter_rows())


def _as_json(row: dict[str, Any]) -> str:
    """The row as it stood in the mart: a uncastable in the place of the null it left behind."""
    mark = UNCASTABLE.format("")
    values = {name: _escape_for_json(row[name]) for name in row if not name.startswith(mark)}
    for name in values:
        if (uncastable := row.get(UNCASTABLE.format(name))) is not None:
            values[name] = uncastable
    return orjson.dumps(values, default=str).decode()


def _escape_for_json(value: Any) -> Any:
    """What Postgres and JSON cannot hold, escaped: NUL in text, NaN and infinity as words."""
    if isinstance(value, str):
        return value.replace("\0", "\\u0000")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
