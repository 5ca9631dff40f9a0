"""What a run answers (SyncResult): plain values, so that a scheduler can store them."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from etl.syncs import BY_NAME

# What the result of every sync counts; see `etl.syncs` for what some count beside.
COMMON_COUNTS = ("extracted", "rejected", "inserted", "updated", "unchanged", "deleted")


def count_names(sync: str) -> tuple[str, ...]:
    """The names of what a sync counts, in the order of telling."""
    return (*COMMON_COUNTS, *(BY_NAME[sync].counts if sync in BY_NAME else ()))


class Outcome(TypedDict):
    """What a dry run says would become of some mails."""

    template: str
    outcome: str
    mails: int
    users: NotRequired[list[str]]  # five of them, with `name_users`


class Change(TypedDict):
    """What a dry run says would become of one row of its target."""

    user_id: str
    change: str  # insert, update, delete
    columns: dict[str, dict[str, Any]]  # of those that change: `old` and `new`


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
    changes: NotRequired[list[Change]]  # a dry run of user_segments with `show`
    error: NotRequired[str]  # when not ok
