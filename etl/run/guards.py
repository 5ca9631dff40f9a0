"""What must hold before a run may commit or send anything.

Most guards compare two metrics (`_empty` and `_visits` look for what is missing). One that fires
says its figures, what was allowed and what to look at. `check` collects every guard that fires;
`--force` skips them all. What looks odd but may well be right is a warning (`first_mails`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from etl.errors import FORCE, Refused
from etl.plumbing.counted import counted
from etl.settings import Settings

# SMALL_TARGET and FEW_CANCELS are of whole tables: a hash spreads users evenly, so that the whole
# is about what a shard has times the number of shards. FEW_KEYS is of a shard.

# Below this many rows a fraction says little: ten users of twenty may well change in a day.
SMALL_TARGET = 1_000

# Cancelling this many pending mails is everyday business, whatever part of them it is.
FEW_CANCELS = 100

# Of so few keys any part may go in a day, though not all.
FEW_KEYS = 3


@dataclass(frozen=True)
class Metrics:
    """What the guards compare; a figure that a sync does not have stays as it is.

    Those of the mart are of the whole of it, the others of this run's shard.
    """

    shards: int = 1  # how many there are
    mart_rows: int | None = None  # rows of the whole mart; None: not read
    previous_mart_rows: int | None = None  # the same at the last ok run
    built_at: dt.datetime | None = None  # when dbt built the mart, UTC
    now: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))  # the run's clock
    extracted: int = 0  # rows read
    rejected: int = 0
    target_rows: int = 0  # rows of the target before the run
    changed_segment: int = 0  # users of the target that change segment
    deleted: int = 0
    queue_rows: int = 0  # rows of the mail queue before the run
    pending: int = 0  # of them waiting to be sent
    queued: int = 0  # mails that the run would add
    cancelled_by_mart: int = 0  # pending mails that the run would cancel for the mart's sake
    no_visits: tuple[str, ...] = ()  # visit columns that the mart does not have
    lost_visits: tuple[str, ...] = ()  # those of them that it had at the last ok run
    keys: int | None = None  # that the shard would write; None: the sync writes none
    previous_keys: int = 0  # about as many at the last ok run
    rows_without_keys: int = 0  # sound rows of the whole run, where no key comes of them
    below_threshold: int = 0  # rows at or below the score threshold
    visits_queued: int = 0  # mails of the queue that one of those missing gave a visit
    expiry_note: str = ""  # what running out of date means to this sync's readers


def check(metrics: Metrics, settings: Settings) -> None:
    """Check every guard.

    Raises:
        Refused: naming all guards that fire, with the metrics compared and what to do.
    """
    if found := fired(metrics, settings):
        steps = " ".join(dict.fromkeys(found.values()))
        raise Refused(f"{'; '.join(found)}. {steps} {FORCE}")


def fired(metrics: Metrics, settings: Settings) -> dict[str, str]:
    """What each guard that fires says, and the next step it advises."""
    return {
        message: step for guard, step in _GUARDS.items() if (message := guard(metrics, settings))
    }


def first_mails(queued: int, users: int, queue_rows: int, settings: Settings) -> str | None:
    """A warning where the flood guard is off, since the queue is too small to compare with."""
    text = "mails for {:,} of {:,} users are to be queued"
    many = _exceeds(text, (queued, users), "guard_max_mails", settings)
    if not many or queue_rows > SMALL_TARGET:
        return None
    return (
        f"{many}, and the queue had {counted(queue_rows, 'row')}: right for a first run; otherwise"
        " see whether this is the right database and who emptied its queue"
    )


def expiry_note(written_at: dt.datetime | None, seconds: int, now: dt.datetime) -> str:
    """When the readers of a destination lose what the last ok run wrote for so many seconds."""
    if written_at is None:
        return f"; its keys expire {counted(seconds / 3600, 'hour')} after they were last written"
    ends = written_at + dt.timedelta(seconds=seconds)
    verb = "expire" if ends > now else "began to expire"
    return f"; the first keys {verb} at {ends:%Y-%m-%d %H:%M} UTC"


def _empty(metrics: Metrics, _: Settings) -> str | None:
    return None if metrics.mart_rows else "empty: the mart has no rows"


def _shrunk(metrics: Metrics, settings: Settings) -> str | None:
    before, now = metrics.previous_mart_rows, metrics.mart_rows
    if not before or not now or _fraction(before - now, before) <= settings.guard_max_shrink:
        return None
    allowed = _allowed("guard_max_shrink", settings)
    return f"shrunk: the mart has {counted(now, 'row')}, {before:,} at the last ok run ({allowed})"


def _rejects(metrics: Metrics, settings: Settings) -> str | None:
    text = "rejects: {:,} of {:,} rows break the contract"
    share = metrics.rejected, metrics.extracted
    return _exceeds(text, share, "guard_max_rejected", settings)


def _deletes(metrics: Metrics, settings: Settings) -> str | None:
    text = "deletes: {:,} of {:,} rows of the target would be deleted"
    share = metrics.deleted, metrics.target_rows
    return _exceeds(text, share, "guard_max_delete", settings)


def _churn(metrics: Metrics, settings: Settings) -> str | None:
    if metrics.target_rows * metrics.shards <= SMALL_TARGET:
        return None
    text = "churn: {:,} of {:,} users of the target would change segment"
    share = metrics.changed_segment, metrics.target_rows
    return _exceeds(text, share, "guard_max_change", settings)


def _stale(metrics: Metrics, settings: Settings) -> str | None:
    if metrics.built_at is None:
        return None
    hours = (metrics.now - metrics.built_at) / dt.timedelta(hours=1)
    if hours <= settings.guard_max_age_hours:
        return None
    allowed = _allowed("guard_max_age_hours", settings)
    built = f"{metrics.built_at:%Y-%m-%d %H:%M} UTC"
    age = f"built {hours:,.0f} hours ago, {built}"
    return f"stale: the mart was {age} ({allowed}){metrics.expiry_note}"


def _mass_queue(metrics: Metrics, settings: Settings) -> str | None:
    if metrics.queue_rows * metrics.shards <= SMALL_TARGET:
        return None
    text = "flood: mails for {:,} of {:,} users would be queued"
    share = metrics.queued, metrics.extracted
    return _exceeds(text, share, "guard_max_mails", settings)


def _mass_cancel(metrics: Metrics, settings: Settings) -> str | None:
    if metrics.cancelled_by_mart * metrics.shards <= FEW_CANCELS:
        return None
    text = "wipe: {:,} of {:,} pending mails would be cancelled"
    share = metrics.cancelled_by_mart, metrics.pending
    return _exceeds(text, share, "guard_max_cancel", settings)


def _visits(metrics: Metrics, _: Settings) -> str | None:
    known = []
    if metrics.lost_visits:
        known.append(f"it had {' and '.join(metrics.lost_visits)} at the last ok run")
    if metrics.visits_queued:
        mails = counted(metrics.visits_queued, "mail of the queue has", "mails of the queue have")
        known.append(f"{mails} a visit")
    if not metrics.no_visits or not known:
        return None
    return (
        f"visits: the mart has no {' and no '.join(metrics.no_visits)}, but {' and '.join(known)}"
    )


def _vanished(metrics: Metrics, settings: Settings) -> str | None:
    before, now = metrics.previous_keys, metrics.keys
    if now is None or not metrics.mart_rows or _shrunk(metrics, settings):
        return None
    if before > FEW_KEYS and _fraction(before - now, before) > settings.guard_max_shrink:
        allowed = _allowed("guard_max_shrink", settings)
        keys = f"{counted(now, 'key')} would be written, {before:,} at the last ok run ({allowed})"
    elif metrics.rows_without_keys:
        keys = f"no key would be written from {counted(metrics.rows_without_keys, 'row')}"
    else:
        return None
    if not metrics.below_threshold:
        return f"vanished: {keys}"
    limit = _allowed("reco_min_score", settings)
    return f"vanished: {keys}; rows that do not score above {limit}: {metrics.below_threshold:,}"


_DBT = "Look at dbt's last run and at what its sources delivered."
_DRY_RUN = (
    "See which mails, by template, with --dry-run, and whether the mart's segments and visits are"
    " right: was one renamed?"
)

# Each guard with the next step it advises.
_GUARDS: dict[Callable[[Metrics, Settings], str | None], str] = {
    _empty: f"{_DBT} If dbt is right, look whether DUCKDB_PATH and MART_SCHEMA are.",
    _shrunk: _DBT,
    _rejects: "See why (python -m etl.status, etl.rejected_rows) and mend the mart's model.",
    _deletes: "See who left the mart and why, or run without --delete-missing.",
    _churn: "See whether dbt's model of the segments was changed, and is right.",
    _stale: "See why dbt did not build it since: its scheduler, its last log.",
    _mass_queue: _DRY_RUN,
    _mass_cancel: _DRY_RUN,
    _vanished: "See whether the model's scores have another scale now, from 0 to 1 is due, and"
    " whether RECO_MIN_SCORE is right; keys that are not written again expire by themselves.",
    _visits: "Was the column renamed? Map it in sql/warehouse/email_triggers.sql; where no visit is"
    " known, write NULL::TIMESTAMP there, and its mails wait.",
}


def _exceeds(text: str, share: tuple[int, int], setting: str, settings: Settings) -> str | None:
    """Say it where the first is a larger part of the second than the setting allows."""
    if _fraction(*share) <= getattr(settings, setting):
        return None
    return f"{text.format(*share)} ({_allowed(setting, settings)})"


def _allowed(setting: str, settings: Settings) -> str:
    return f"{setting.upper()}={getattr(settings, setting):g}"


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
