"""What a mail says: the columns of the mart that its rule names, as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import dataframely as dy
import polars as pl

from etl.mail import rules
from etl.mail.rules import NO_EPISODE_DATE, PAYLOAD_VERSION
from etl.run.contract import without_nul

if TYPE_CHECKING:
    from etl.mail.rules import Rule

# What stands for it in a JSON string, as Postgres writes it.
_ESCAPES = (
    ['"', "\\", *map(chr, range(32))],
    ['\\"', "\\\\", *(json.dumps(chr(code))[1:-1] for code in range(32))],
)

_DTYPES: dict[str, dy.Column] = {
    "text": dy.String(nullable=True, check={"nul": without_nul}),
    "integer": dy.Int64(nullable=True),
    "decimal": dy.Decimal(precision=18, scale=4, nullable=True),
    "boolean": dy.Bool(nullable=True),
    "date": dy.Date(nullable=True),
    "moment": dy.Datetime(time_unit="us", time_zone="UTC", nullable=True),
}


def more_columns() -> dict[str, dy.Column]:
    """Return what `rules.MORE_COLUMNS` adds to the contract; `rules.check` tells of unfit types."""
    named = rules.MORE_COLUMNS.items()
    return {name: _DTYPES[type_] for name, type_ in named if type_ in _DTYPES}


def to_json(rule: Rule, contract: type[dy.Schema]) -> pl.Expr:
    """Return the mail's own data as JSON: no more of a person than the template needs.

    Written as Postgres writes a jsonb, so that equal payloads are equal texts.
    """
    values = {name: _json(name, contract.columns()[name].dtype) for name in rule.payload}
    values["version"] = pl.lit(str(PAYLOAD_VERSION))
    parts: list[pl.Expr] = []
    for name in sorted(values, key=lambda name: (len(name.encode()), name)):
        parts += [pl.lit(f', "{name}": ' if parts else f'{{"{name}": '), values[name]]
    return pl.concat_str(*parts, pl.lit("}"))


def _json(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column's values as JSON."""
    column = pl.col(name)
    if dtype == pl.String:
        text = pl.format('"{}"', column.str.replace_many(*_ESCAPES))
    elif isinstance(dtype, pl.Date):
        text = pl.format('"{}"', column.cast(pl.String))
    elif isinstance(dtype, pl.Datetime):
        moment = column.replace(NO_EPISODE_DATE, None).dt.to_string("iso:strict")
        text = pl.format('"{}"', moment)
    elif isinstance(dtype, pl.Decimal):  # cents stay exact as text; as a float they would not
        text = pl.format('"{}"', column.cast(pl.String))
    else:
        text = column.cast(pl.String)
    return text.fill_null("null")
