"""How the keys of rows stand, and what brings all rows of a key together."""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
from duckdb import CaseExpression, ConstantExpression, FunctionExpression

from etl.errors import SyncError
from etl.warehouse import types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import dataframely as dy
    from duckdb import DuckDBPyRelation, Expression

# The column by which rows belong together; null where a key has a null, which is nobody's key.
HASH = "hash of the key"

# So many hashes of keys are held at once, and as many again where they are sorted: 48 MB. They come
# in batches of 2 MB.
_MANY_KEYS, _HASHES = 3_000_000, 250_000

# With so many runs of rows more than keys, the rows of those keys are sorted apart from the others.
# That there are more is mostly seen among the first runs.
_FEW_RUNS, _SAMPLE = 1_000, 100_000


class Keys(NamedTuple):
    """How the keys of rows stand; if nothing else is known, all rows are to be sorted."""

    apart: list[int] | None = None  # hashes of those whose rows are not together; None: too many
    rows_apart: int = 0  # that bear these
    unique: bool = False  # each is known to have one row
    runs: int | None = None  # keys, each one run of rows when put together; None: not verified


def look_through(rows: DuckDBPyRelation, contract: type[dy.Schema], key: Sequence[str]) -> Keys:
    """See how keys stand, by a hash of each: in parts, where there are more than can be held."""
    values = [value for value, _ in types.key_of(rows, contract, key)]
    hashes, parts, part, keys = rows.select(_hash_of_key(values)), 1, 0, 0
    twice = pl.Series([], dtype=pl.UInt64)
    while part < parts:
        held, seen = pl.Series([], dtype=pl.UInt64), 0
        for firsts, batch_rows in _firsts_of_runs(hashes):
            if not seen and _are_many_twice(firsts.head(_SAMPLE)):
                return Keys()
            seen += batch_rows
            held.append(firsts.filter(firsts % parts == part))
            while len(held) > _MANY_KEYS:
                if _are_many_twice(held):
                    return Keys()
                if part:
                    break
                parts *= 2
                held = held.filter(held % parts == part)
        held = held.sort()
        again = held[1:].filter(held[1:] == held[:-1])
        if len(twice.append(again)) > _FEW_RUNS:
            return Keys()
        part, keys = part + 1, keys + len(held) - len(again)
    apart = twice.unique().to_list()
    rows_apart = len(rows.filter(_hash(values).isin(*_constants(apart)))) if apart else 0
    return Keys(apart, rows_apart, unique=keys == seen, runs=None if keys == seen else keys)


def put_together(
    rows: DuckDBPyRelation, contract: type[dy.Schema], key: Sequence[str], seen: Keys
) -> DuckDBPyRelation:
    """Sort rows, those whose keys are apart last, and cast them to the contract's types.

    In this turn, because most casts add a column. Where a large mart was written by several threads
    the rows of some keys stand in two places.

    Args:
        rows: as they stand.
        contract: their columns.
        key: columns by which rows belong together.
        seen: how they stand. With `runs` there is the column `HASH` beside those of the contract.
    """
    values = [value for value, _ in types.key_of(rows, contract, key)]
    if seen.apart is None:
        rows = rows.sort(*values)
    elif seen.apart:
        apart = _constants(seen.apart)
        others = rows.filter(_hash(values).isnotin(*apart))
        rows = others.union(rows.filter(_hash(values).isin(*apart)).sort(*values))
    more = [] if seen.runs is None else [_hash_of_key(values)]
    return types.cast_to_contract(rows, contract, *more)


def require_runs(frames: Iterable[pl.DataFrame], runs: int, query: str) -> Iterator[pl.DataFrame]:
    """Hand frames on, and see that a key's rows come together, as when they were looked through.

    Two keys of one hash count as one, because anybody can choose such keys.

    Raises:
        SyncError: they do not.
    """
    found, last = 0, None
    for frame in frames:
        found, last = found + int(_begins(frame[HASH], last).sum()), frame[HASH][-1]
        yield frame
    if found != runs:
        raise SyncError(
            f"{query}: returned other rows, or another order, when it was run again; copy it to"
            " ETL_SQL_DIR, where rows are sorted"
        )


def _firsts_of_runs(hashes: DuckDBPyRelation) -> Iterator[tuple[pl.Series, int]]:
    """Yield the hash of each run of rows that have the same, and how many rows have one."""
    last = None
    with hashes.to_arrow_reader(_HASHES) as reader:
        for batch in reader:
            if batch.num_rows:
                read = pl.Series(batch[HASH])
                yield read.filter(_begins(read, last)), len(read) - read.null_count()
                last = read[-1]


def _begins(hashes: pl.Series, last: int | None) -> pl.Series:
    """Which rows begin a run of the same hash, after one with the hash `last`."""
    return hashes.is_not_null() & hashes.ne_missing(hashes.shift(fill_value=last))


def _are_many_twice(firsts: pl.Series) -> bool:
    return firsts.n_unique() + _FEW_RUNS < len(firsts)


def _hash(values: Sequence[Expression]) -> Expression:
    return FunctionExpression("hash", *values)


def _hash_of_key(values: Sequence[Expression]) -> Expression:
    whole = reduce(and_, (value.isnotnull() for value in values))
    return CaseExpression(whole, _hash(values)).alias(HASH)


def _constants(hashes: Sequence[int]) -> list[Expression]:
    return [ConstantExpression(one).cast("UBIGINT") for one in hashes]


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
