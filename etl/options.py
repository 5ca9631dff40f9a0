"""What a sync is asked (Options)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from etl.errors import UsageError


@dataclass(frozen=True)
class Options:
    """How to run; the same words as the flags of the command line."""

    dry_run: bool = False
    force: bool = False
    delete_missing: bool = False
    wait: float = 0
    shards: int = 1
    shard: tuple[int, int] | None = None
    name_users: bool = False

    def __post_init__(self) -> None:
        for name in ("dry_run", "force", "delete_missing", "name_users"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, not {value!r}")
        if not _is_number(self.wait) or self.wait < 0:
            raise UsageError(f"wait must be a number of seconds, not {self.wait!r}")
        if not _is_count(self.shards) or self.shards < 1:
            raise UsageError(f"shards must be a whole number from 1 on, not {self.shards!r}")
        if self.shard is not None and not _is_shard(self.shard):
            raise UsageError(f"shard must be (i, n) with 0 <= i < n, not {self.shard!r}")
        if self.shard is not None and self.shards > 1:
            raise UsageError("shard loads one shard, shards walks all of them: give one of the two")

    @property
    def walk(self) -> list[tuple[int, int]]:
        """The shards to load, one after the other."""
        if self.shard is not None:
            return [(int(self.shard[0]), int(self.shard[1]))]
        return [(index, self.shards) for index in range(self.shards)]

    @property
    def part(self) -> tuple[int, int] | None:
        """The one shard asked for; None when the run covers the whole mart."""
        return self.walk[0] if self.shard is not None else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_shard(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    index, of = value
    return _is_count(index) and _is_count(of) and 0 <= index < of
