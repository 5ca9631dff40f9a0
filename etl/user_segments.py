"""User segments: mart_user_segments -> crm.user_segments.

Sales and support see each user's segment there. One transaction; safe to run twice.
"""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

import dataframely as dy
import polars as pl

from etl import postgres
from etl.errors import SyncError
from etl.options import Options
from etl.result import SyncResult
from etl.run import Run, execute
from etl.run.contract import KEY, no_nul
from etl.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable


_MERGE = postgres.Merge(
    "user_segments",
    "crm.user_segments",
    frozenset({"inserted", "updated", "moved", "target_rows"}),
)
_MIRROR = postgres.Merge(
    "user_segments_mirror", "crm.user_segments", frozenset({"deleted", "target_rows"})
)


class UserSegment(dy.Schema):
    """One row of the mart, as sql/warehouse/user_segments.sql hands it over."""

    user_id = dy.String(primary_key=True, min_length=1, check=KEY)
    segment = dy.String(nullable=False, min_length=1, check={"nul": no_nul})
    total_searches = dy.Int64(nullable=False, min=0)
    total_conversions = dy.Int64(nullable=False, min=0)
    lifetime_value = dy.Decimal(precision=14, scale=2, nullable=False, min=0)
    built_at = dy.Datetime(
        time_unit="us", time_zone="UTC", nullable=True, metadata={"mart": "segmented_at"}
    )


def sync(
    *,
    dry_run: bool = False,
    force: bool = False,
    delete_missing: bool = False,
    wait: float = 0,
    shards: int = 1,
    shard: tuple[int, int] | None = None,
    settings: Settings | None = None,
) -> SyncResult:
    """Bring crm.user_segments up to the mart.

    Args:
        dry_run: do all of it, then roll back; the counts are those of the real run.
        force: go past the guards.
        delete_missing: also delete the users who left the mart.
        wait: seconds to wait for another run of this sync before giving up.
        shards: walk the mart in this many hash shards, one after the other, to bound memory.
        shard: (i, n) loads shard i of n alone, for schedulers that spread a sync.
        settings: in place of those of the environment.

    Returns:
        Counts of users: extracted = rejected + inserted + updated + unchanged.

    Raises:
        SyncError: nothing was changed, or with `shards` only the first so many of them, as the
            message says; `.result` has what was known.
    """
    options = Options(dry_run, force, delete_missing, wait, shards, shard)
    return execute("user_segments", load, options, settings=settings)


def load(run: Run) -> None:
    """Fetch, check, reshape, stage and merge; `execute` judges and commits."""
    # The mirror wants to see everybody who is in the mart.
    known = None if run.options.delete_missing else run.known("crm.user_segments")
    # In the order of the key, in which its index is quickest to fill.
    segments = run.read(UserSegment, lambda mart: transform(mart).sort("user_id"))
    changes: Iterable[pl.DataFrame]
    if known:
        read, target = list(segments), known()
        changes = (different(pl.DataFrame(part), target) for part in read)
    else:
        changes = map(pl.DataFrame, segments)
    postgres.stage_parts(run.postgres, "staging", changes)
    merged = _merge(run)
    accepted = run.counts["extracted"] - run.counts["rejected"]
    run.count({**merged, "unchanged": accepted - merged["inserted"] - merged["updated"]})
    if run.options.delete_missing:
        postgres.stage(run.postgres, "rejected", run.rejected_users())
        run.count(postgres.merge(run.postgres, _MIRROR, *run.shard, merged["inserted"]))


def transform(mart: pl.DataFrame) -> pl.DataFrame:
    """Reshape rows of the mart into rows of crm.user_segments. Pure.

    Args:
        mart: columns of `UserSegment`, one row a user.

    Returns:
        user_id str, segment str, total_searches i64, total_conversions i64, lifetime_value
        decimal(14,2) in the currency of the mart; in the order of the mart.
    """
    return mart.select(
        "user_id",
        "segment",
        pl.col("total_searches").cast(pl.Int64),
        pl.col("total_conversions").cast(pl.Int64),
        pl.col("lifetime_value").cast(pl.Decimal(14, 2)),
    )


def different(segments: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The segments that are not known just so: most days few, and only they need be staged.

    Args:
        segments: what `transform` returns.
        known: the same columns of the target, money as f64.

    Returns:
        Rows of `segments`, in their order.
    """
    # A join by hashes, then a look at the rows themselves, takes a third of the memory of a join.
    key = pl.col("user_id").hash().alias("key")
    twins = (
        known.select(key)
        .with_row_index("known")
        .join(segments.select(key).with_row_index("row"), on="key")
    )
    same = (
        segments[name]
        .gather(twins["row"])
        .cast(known[name].dtype)
        .eq_missing(known[name].gather(twins["known"]))
        for name in segments.columns
    )
    unchanged = twins["row"].filter(reduce(and_, same))
    return segments.filter(~pl.int_range(pl.len(), dtype=pl.UInt32).is_in(unchanged.implode()))


def _merge(run: Run) -> dict[str, int]:
    """Merge what is staged: new users by a plain INSERT, if that goes through."""
    run.postgres.commit()  # only what is staged: it is to outlive a merge that fails
    try:
        return postgres.merge(run.postgres, _MERGE, *run.shard, True)
    except SyncError as error:
        if error.sqlstate != postgres.UNIQUE_VIOLATION:
            raise
    # Another session has just added a user who was new to us: now every row goes by ON CONFLICT.
    run.postgres.rollback()
    return postgres.merge(run.postgres, _MERGE, *run.shard, False)


if __name__ == "__main__":
    from etl import cli

    cli.main("user_segments")
