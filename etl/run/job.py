"""What stands before a run begins: what is asked for, and what the last run saw."""

from __future__ import annotations

import datetime as dt
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl.options import Options
from etl.settings import Settings


@dataclass(frozen=True)
class Job:
    """What never changes in a run, however often it is attempted."""

    sync: str
    settings: Settings
    options: Options
    needs_postgres: bool = True
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    begun: float = field(default_factory=time.perf_counter)

    @property
    def shard(self) -> tuple[int, int]:
        """The shard to load; (0, 1) is the whole mart."""
        index, of = self.options.shard or (0, 1)
        return int(index), int(of)


@dataclass(frozen=True)
class PreviousRun:
    """The last ok run of a sync."""

    mart_rows: int
    began_at: dt.datetime
    shards: int = 1
    written: Mapping[int, int] = field(default_factory=dict)  # keys, by shard
    warning: str | None = None  # what it said beside its counts; None: not known

    def keys(self, shard: tuple[int, int]) -> int:
        """About how many keys this shard had; fewer, where that is not known exactly."""
        index, shards = shard
        if shards == self.shards and index in self.written:
            return self.written[index]
        if not self.written:
            return 0
        expected = sum(self.written.values()) * self.shards / len(self.written) / shards
        if shards == 1 and len(self.written) == self.shards:
            return round(expected)
        # A hash does not cut evenly: shards differ by the root of what is in them.
        return max(round(expected - 3 * math.sqrt(expected)), 0)
