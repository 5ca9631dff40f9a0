"""The syncs there are: flags, results, status, checks and the DAG go by this list.

Imports nothing of ours, because a scheduler reads it again and again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sync:
    """A module etl/<name>.py with its `sync()`.

    Attributes:
        name: also of its query and of its merge; the lock and the ledger go by it.
        flags: what its `sync()` takes beside what every sync takes.
        counts: what it counts beside `etl.result.COMMON_COUNTS`; each has a column in the ledger.
        after: a sync that must have gone through before.
    """

    name: str
    flags: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    after: str | None = None


# In the order in which `python -m etl` runs them.
_SYNCS = (
    Sync("user_segments", flags=("delete_missing", "show")),
    Sync(
        "email_triggers",
        flags=("name_users", "decisions"),
        counts=("cancelled", "suppressed", "held_back", "unmapped"),
        after="user_segments",
    ),
    Sync("recommendations", counts=("written", "below_threshold")),
)

BY_NAME = {sync.name: sync for sync in _SYNCS}
SYNCS = tuple(BY_NAME)


def that_take(flag: str) -> tuple[str, ...]:
    """The names of the syncs whose `sync()` takes a flag."""
    return tuple(name for name, sync in BY_NAME.items() if flag in sync.flags)
