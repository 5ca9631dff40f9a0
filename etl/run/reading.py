"""Read a mart through: rows that keep the contract go on, the others are set aside."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dataframely as dy
import polars as pl

from etl import warehouse
from etl.plumbing import cancellation, log
from etl.run.contract import Rejects, Validator
from etl.run.job import Job
from etl.warehouse import Spool


@dataclass(frozen=True)
class MartReading:
    """A mart that was read through."""

    accepted: Spool  # the rows that keep the contract, reshaped
    rejected: Spool  # the keys of the others: these have not left the mart
    rejects: Rejects
    source: warehouse.Source  # the query's tables and columns
    rows: int  # that were read
    whole: warehouse.Stats  # of the mart with all its shards
    as_of: dt.datetime | None  # when it was built, alike in a whole run and in shards

    @classmethod
    def of(
        cls, mart: warehouse.Mart, check: Validator, accepted: Spool, rejected: Spool
    ) -> MartReading:
        """Return what is known after the last frame."""
        # Of the other shards nobody knows which rows will be accepted.
        whole = mart.stats or warehouse.Stats(check.rows, check.built_at)
        as_of = mart.stats.built_at if mart.stats else check.as_of
        return cls(accepted, rejected, check.rejects(), mart.source, check.rows, whole, as_of)


def read_mart(
    job: Job,
    folder: Path,
    contract: type[dy.Schema],
    key: Sequence[str],
    keep: Callable[[Iterator[pl.DataFrame]], Spool],
    *,
    ordered: bool,
) -> MartReading:
    """Read the mart of a sync; its file is closed when this returns.

    Args:
        job: the sync, its settings and its shard.
        folder: for what is spooled.
        contract: what a row has to keep.
        key: columns of the primary key by which rows belong together.
        keep: makes a spool of the frames of accepted rows.
        ordered: see `warehouse.open_mart`.
    """
    begun = time.perf_counter()
    keys = contract.create_empty().select(key).to_arrow().schema
    part = job.options.only_user or job.shard
    begin = partial(warehouse.open_mart, job.sync, contract, job.settings, part, now=job.started_at)
    with (
        warehouse.Writer(folder / "rejected", keys, key) as rejected,
        begin(spill=folder, key=key, ordered=ordered) as mart,
        contextlib.closing(mart.frames()) as frames,
    ):
        limit, unique = job.settings.reject_limit, mart.unique
        check = Validator(contract, limit, job.started_at, key, rejected.add_rows, unique=unique)
        accepted = keep(check.valid_rows(frame) for frame in _cancellable(frames))
    log.event("mart.read", rows=check.rows, seconds=round(time.perf_counter() - begun, 3))
    reading = MartReading.of(mart, check, accepted, rejected.spool)
    if reading.rejects.total:
        log.warning("rows.rejected", rows=reading.rejects.total, **reading.rejects.reasons)
    return reading


def _cancellable(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    for frame in frames:
        cancellation.check()
        yield frame
