"""How the keys of rows stand, and what brings all rows of a key together."""

from __future__ import annotations

from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
from duckdb import ConstantExpression, FunctionExpression

from etl.errors import SyncError
from etl.warehouse import types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import dataframely as dy
    from duckdb import DuckDBPyRelation

# So many hashes of keys are held at once, and as many again where they are sorted: 48 MB. They come
# in batches of 2 MB.
_MANY_KEYS, _HASHES = 3_000_000, 250_000

# So many keys whose rows do not stand together are sorted apart from the others; that there are
# more is mostly seen among the first.
_FEW_KEYS, _SAMPLE = 1_000, 100_000


class Keys(NamedTuple):
    """How the keys of rows stand."""

    apart: list[int] | None = None  # hashes of those whose rows are not together; None: too many
    unique: bool = False  # each has one row
    runs: int | None = (
        None  # of rows that bear the same key, when all are together; None: no matter
    )


def look_through(rows: DuckDBPyRelation, contract: type[dy.Schema], key: Sequence[str]) -> Keys:
    """See how keys stand, by a hash of each: in parts, where there are more than can be held."""
    hashed = FunctionExpression("hash", *(value for value, _ in types.key_of(rows, contract, key)))
    hashes, parts, part, keys = rows.select(hashed.alias("hash")), 1, 0, 0
    apart: list[int] = []
    while part < parts:
        held, seen = pl.Series([], dtype=pl.UInt64), 0
        for firsts, batch_rows in _firsts_of_runs(hashes):
            some = firsts.head(0 if seen else _SAMPLE)
            if some.n_unique() + _FEW_KEYS < len(some):
                return Keys()
            seen += batch_rows
            held.append(firsts.filter(firsts % parts == part))
            while not part and len(held) > _MANY_KEYS:
                parts *= 2
                held = held.filter(held % parts == part)
        held = held.sort()
        again = held[1:].filter(held[1:] == held[:-1])
        apart += again.unique().to_list()
        if len(apart) > _FEW_KEYS:
            return Keys()
        part, keys = part + 1, keys + len(held) - len(again)
    return Keys(apart, unique=keys == seen, runs=None if keys == seen else keys)


def _firsts_of_runs(hashes: DuckDBPyRelation) -> Iterator[tuple[pl.Series, int]]:
    """Yield the hash of each run of rows that have the same, and in how many rows they were."""
    last = None
    with hashes.to_arrow_reader(_HASHES) as reader:
        for batch in reader:
            if batch.num_rows:
                read = pl.Series(batch["hash"])
                yield read.filter(read.ne_missing(read.shift(fill_value=last))), len(read)
                last = read[-1]


def put_together(
    rows: DuckDBPyRelation,
    contract: type[dy.Schema],
    key: Sequence[str],
    apart: Sequence[int] | None,
) -> DuckDBPyRelation:
    """Sort rows, those whose keys are apart last, and cast them to the contract's types.

    In this turn, because most casts add a column. Where a large mart was written by several threads
    the rows of some keys stand in two places.

    Args:
        rows: as they stand.
        contract: their columns.
        key: columns by which rows belong together.
        apart: hashes of keys, as `look_through` tells them; None: of all.
    """
    values = [value for value, _ in types.key_of(rows, contract, key)]
    if apart is None:
        rows = rows.sort(*values)
    elif apart:
        hashed, these = FunctionExpression("hash", *values), map(ConstantExpression, apart)
        ours = [each.cast("UBIGINT") for each in these]
        others = rows.filter(hashed.isnotin(*ours))
        rows = others.union(rows.filter(hashed.isin(*ours)).sort(*values))
    return types.cast_to_contract(rows, contract)


def require_runs(
    frames: Iterable[pl.DataFrame], key: Sequence[str], runs: int, query: str
) -> Iterator[pl.DataFrame]:
    """Hand frames on, and see that a key's rows come together, as when they were looked through.

    Raises:
        SyncError: they do not.
    """
    found, last = 0, None
    for frame in frames:
        keys = frame.select(key)
        found += last is None
        before = pl.concat([keys.head(1) if last is None else last, keys[:-1]])
        found += int(reduce(or_, (keys[name].ne_missing(before[name]) for name in key)).sum())
        last = keys.tail(1)
        yield frame
    if found != runs:
        raise SyncError(
            f"{query}: its rows came in another order when they were read again; move it to"
            " ETL_SQL_DIR, where rows are sorted"
        )


def cut_between_keys(
    frames: Iterable[pl.DataFrame], key: Sequence[str], held: pl.DataFrame
) -> Iterator[pl.DataFrame]:
    """Move rows that bear the last key of a frame from the next frame to it.

    One frame at least comes out: `held`, which is empty, where none goes in.
    """
    for frame in frames:
        rest, last = frame, held.tail(1)
        if len(last) and _is_same(last, frame.head(1), key).all():
            more = int(_is_same(last, frame, key).sum())
            held, rest = pl.concat([held, frame.head(more)], how="diagonal"), frame[more:]
        if len(rest):
            if len(held):
                yield held
            held = rest
    yield held


def _is_same(one: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    """Which rows bear the key of the one; none where it has nulls, which are nobody's key."""
    same = [(rows[name] == one[name]).fill_null(False) for name in key]
    return reduce(and_, same)
