"""What a sync is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from etl.errors import UsageError

# Users that a dry run shows: all of them are in memory at once, and nobody reads more.
MOST_SHOWN = 10_000


@dataclass(frozen=True)
class Options:
    """How to run; the same words as the flags of the command line."""

    dry_run: bool = False
    force: bool = False
    delete_missing: bool = False
    wait: float = 0
    shard: tuple[int, int] | None = None
    name_users: bool = False
    show: int = 0
    decisions: str | None = None
    only_user: str | None = None  # for etl.explain, which runs no merge

    def __post_init__(self) -> None:
        for name in ("dry_run", "force", "delete_missing", "name_users"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, not {value!r}")
        if not _is_number(self.wait) or self.wait < 0:
            raise UsageError(f"wait must be a number of seconds, not {self.wait!r}")
        if self.shard is not None and not _is_shard(self.shard):
            raise UsageError(f"shard must be (i, n) with 0 <= i < n, not {self.shard!r}")
        if not _is_count(self.show) or not 0 <= self.show <= MOST_SHOWN:
            raise UsageError(
                f"show must be a whole number from 0 to {MOST_SHOWN:,}, not {self.show!r}"
            )
        if self.decisions is not None and not _is_list(self.decisions):
            raise UsageError(
                f"decisions must be the name of a .csv or .parquet file, not {self.decisions!r}"
            )
        for name in ("show", "decisions"):
            if getattr(self, name) and not self.dry_run:
                raise UsageError(f"{name} works with a dry run alone; add --dry-run (dry_run=True)")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, str) and value.lower().endswith((".csv", ".parquet"))


def _is_shard(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    index, of = value
    return _is_count(index) and _is_count(of) and 0 <= index < of
