"""Recommendations: mart_recommendations -> Redis `reco:<user_id>`, for a day.

The search page personalises with one O(1) read. Keys are overwritten; safe to run twice. A
user with nothing worth recommending gets no key, and the key of one who left expires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dataframely as dy
import orjson
import polars as pl

from etl import cache
from etl.options import Options
from etl.result import SyncResult
from etl.run import Run, execute
from etl.run.contract import USER_ID_RULES
from etl.run.keys import write_keys
from etl.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etl.cache import Batch

TTL_SECONDS = 24 * 60 * 60  # renewed at every run, also where the value stays the same
MIN_SCORE = Settings.reco_min_score  # a destination must score above this (RECO_MIN_SCORE)
MAX_DESTINATIONS = 10  # destinations of one user


class Recommendation(dy.Schema):
    """One row of the mart, as sql/warehouse/recommendations.sql hands it over."""

    user_id = dy.String(primary_key=True, min_length=1, check=USER_ID_RULES)
    destination = dy.String(primary_key=True, min_length=1)
    score = dy.Float64(nullable=False, min=0, max=1)
    rank = dy.Int64(nullable=True, min=1)
    built_at = dy.Datetime(
        time_unit="us", time_zone="UTC", nullable=True, metadata={"mart": "generated_at"}
    )


def sync(
    *,
    dry_run: bool = False,
    force: bool = False,
    wait: float = 0,
    shard: tuple[int, int] | None = None,
    settings: Settings | None = None,
) -> SyncResult:
    """Bring the keys reco:* up to the mart.

    Args:
        dry_run: only read, and count the keys that would be new, changed or the same.
        force: go past the guards.
        wait: seconds to wait for another run of this sync before giving up.
        shard: (i, n) loads shard i of n alone, for schedulers that spread a sync.
        settings: in place of those of the environment.

    Returns:
        extracted, rejected and below_threshold (a score of RECO_MIN_SCORE or less) count rows
        of the mart (one per user and destination), the others keys.

    Raises:
        SyncError: not every key was written; the message says why, `.result` what was known.
    """
    options = Options(dry_run, force, wait=wait, shard=shard)
    return execute("recommendations", load, options, needs_postgres=False, settings=settings)


def load(run: Run) -> None:
    """Read, check and reshape; let the guards look before the first key is sent."""
    min_score, below = run.settings.reco_min_score, 0

    def reshape(mart: pl.DataFrame) -> pl.DataFrame:
        nonlocal below
        below += int((mart["score"] <= min_score).sum())
        return transform(mart, min_score=min_score)

    recommendations = run.read(Recommendation, reshape, key=["user_id"], ordered=False)
    run.count({"below_threshold": below})
    batches = (batch for rows in recommendations.frames() for batch in to_key_values(rows))
    write_keys(run, batches, recommendations.rows, TTL_SECONDS)


def transform(mart: pl.DataFrame, *, min_score: float = MIN_SCORE) -> pl.DataFrame:
    """Reshape rows of the mart into one row a user. Pure.

    Args:
        mart: columns of `Recommendation`, one row a user and destination. Without ranks the
            order is score, then destination.
        min_score: only destinations with a higher score are recommended (RECO_MIN_SCORE).

    Returns:
        user_id str, destinations list[str] (best first, at most 10), score f64 (their mean,
        rounded to 4 places); in the order of the key.
    """
    order = ["user_id", "rank", "score", "destination"]
    best_first = (
        mart.filter(pl.col("score") > min_score)
        .select(order)
        .sort(order, descending=[False, False, True, False], nulls_last=True)
    )
    return best_first.group_by("user_id", maintain_order=True).agg(
        destinations=pl.col("destination").head(MAX_DESTINATIONS),
        score=pl.col("score").head(MAX_DESTINATIONS).mean().round(4),
    )


def to_key_values(recommendations: pl.DataFrame) -> Iterator[Batch]:
    """Build the keys and their JSON values, a batch at a time, from what `transform` returns."""
    for part in recommendations.iter_slices(cache.BATCH_KEYS):
        columns = (part[name].to_list() for name in ("user_id", "destinations", "score"))
        yield [
            (f"reco:{user_id}", orjson.dumps({"destinations": destinations, "score": score}))
            for user_id, destinations, score in zip(*columns, strict=True)
        ]


if __name__ == "__main__":
    from etl import cli

    cli.main("recommendations")
