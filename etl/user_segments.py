"""User segments: mart_user_segments -> crm.user_segments.

Sales and support see each user's segment there. One transaction; safe to run twice.
"""

from __future__ import annotations

import dataframely as dy
import polars as pl

from etl import postgres
from etl.options import Options
from etl.result import SyncResult
from etl.run import Run, execute
from etl.run.contract import USER_ID_RULES, without_nul
from etl.settings import Settings

TABLE = "crm.user_segments"

_UPDATE = postgres.Merge(
    "user_segments_update", TABLE, frozenset({"updated", "changed_segment", "remaining"})
)
_MERGE = postgres.Merge(
    "user_segments",
    TABLE,
    frozenset({"inserted", "updated", "changed_segment"}),
    altered="user_segments_altered",
)
_MIRROR = postgres.Merge("user_segments_mirror", TABLE, frozenset({"deleted"}))


class UserSegment(dy.Schema):
    """One row of the mart, as sql/warehouse/user_segments.sql hands it over."""

    user_id = dy.String(primary_key=True, min_length=1, check=USER_ID_RULES)
    segment = dy.String(nullable=False, min_length=1, check={"nul": without_nul})
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
    shard: tuple[int, int] | None = None,
    show: int = 0,
    settings: Settings | None = None,
) -> SyncResult:
    """Bring crm.user_segments up to the mart.

    Args:
        dry_run: do all of it, then roll back; the counts are those of the real run.
        force: go past the guards.
        delete_missing: also delete the users who left the mart.
        wait: seconds to wait for another run of this sync before giving up.
        shard: (i, n) loads shard i of n alone, for schedulers that spread a sync.
        show: let a dry run name so many changed users in `changes`, with the old and new values:
            a fair sample over the kinds of change.
        settings: in place of those of the environment.

    Returns:
        Counts of users: extracted = rejected + inserted + updated + unchanged.

    Raises:
        SyncError: nothing was changed, unless the message says that the commit may have gone
            through; it says why, `.result` what was known.
    """
    options = Options(dry_run, force, delete_missing, wait, shard, show=show)
    return execute("user_segments", load, options, settings=settings)


def load(run: Run) -> None:
    """Read, check, reshape, stage what differs, merge; `execute` checks the guards and commits."""
    segments, target = run.read_and_stage("staging", UserSegment, transform, TABLE)
    if run.options.show:
        run.sample_changes()
    merged = _merge(run)
    run.count({**merged, "unchanged": segments.rows - merged["inserted"] - merged["updated"]})
    if target is None and merged["changed_segment"]:  # for the guard to compare it with
        (after,) = postgres.query(run.session, "user_segments_count", *run.job.shard)
        run.count({"target_rows": after["rows"] - merged["inserted"]})
    if run.options.delete_missing:  # who is gone was staged with the others
        run.count(run.merge(_MIRROR))


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


def _merge(run: Run) -> dict[str, int]:
    """Insert all into an empty table; else update who is there, then insert the others."""
    if (inserted := run.insert_all(_MERGE, "user_segments_insert")) is not None:
        return {"inserted": inserted, "updated": 0, "changed_segment": 0}
    merged = {"inserted": 0, **run.merge(_UPDATE)}
    if merged.pop("remaining"):
        for name, count in run.merge_new(_MERGE).items():
            merged[name] += count
    else:
        postgres.refuse_altered(run.session, _MERGE)
    return merged


if __name__ == "__main__":
    from etl import cli

    cli.main("user_segments")
