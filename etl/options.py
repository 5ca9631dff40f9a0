"""What a sync is asked (Options) and what it answers (SyncResult)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from etl.errors import UsageError

# What a result counts: every sync, and some syncs beside.
COMMON = ("extracted", "rejected", "inserted", "updated", "unchanged", "deleted")
EXTRA = {
    "email_triggers": ("cancelled", "suppressed", "held_back", "unmapped"),
    "recommendations": ("written", "below_threshold"),
}


def counted(sync: str) -> tuple[str, ...]:
    """The names of what a sync counts, in the order of telling."""
    return (*COMMON, *EXTRA.get(sync, ()))


class Outcome(TypedDict):
    """What a dry run says would become of some mails."""

    template: str
    outcome: str
    mails: int
    users: NotRequired[list[str]]  # five of them, with `name_users`


class SyncResult(TypedDict):
    """What a run did; plain values, so that a scheduler can store it. None: not known."""

    sync: str
    run_id: str
    status: str  # ok; beside a SyncError: failed, refused, cancelled
    dry_run: bool
    extracted: int | None
    rejected: int | None
    inserted: int | None
    updated: int | None
    unchanged: int | None
    deleted: int | None
    written: NotRequired[int | None]  # recommendations
    below_threshold: NotRequired[int | None]  # recommendations: rows that score too low
    cancelled: NotRequired[int | None]  # email_triggers
    suppressed: NotRequired[int | None]  # email_triggers
    held_back: NotRequired[int | None]  # email_triggers
    unmapped: NotRequired[int | None]  # email_triggers: users of segments without a template
    seconds: float
    unmapped_segments: NotRequired[dict[str, int]]  # of them the 20 largest
    warnings: NotRequired[list[str]]
    outcomes: NotRequired[list[Outcome]]  # a dry run of email_triggers
    error: NotRequired[str]  # when not ok


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
