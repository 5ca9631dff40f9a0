"""What a run of email_triggers says of its mart beside the counts.

Nothing here stops a run: a first run, a new segment or a mart without visits may be right. A walk
over shards is looked at as a whole, because a shard alone may have no user of a segment.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from etl import postgres
from etl.plumbing.redact import one_word
from etl.run import guards

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import polars as pl

    from etl.run import Run

# Segments without a template that a result names; a mart whose segments are all different has
# millions. A warning names fewer, each cut to so many characters.
_NAMED, _NAMED_IN_WARNING, _CHARACTERS = 20, 5, 40


def look(
    run: Run, segments: pl.Series, templates: Mapping[str, str], lasting: Collection[str]
) -> None:
    """Count the users without a template, and warn of what a sound mart rarely does.

    Args:
        run: merged, but not committed.
        segments: of the accepted rows of the shard at hand.
        templates: of each segment that has one.
        lasting: the segments whose users have one occasion for ever.
    """
    users: dict[str, int] = dict(segments.value_counts(sort=True).iter_rows())
    run.segments[run.shard] = users
    run.counts["unmapped"] = sum(users.values()) - sum(users.get(name, 0) for name in templates)
    if not templates.keys() <= users.keys():
        cancels = postgres.query(run.postgres, "email_cancels")
        run.cancels[run.shard] = {row["template"]: row["mails"] for row in cancels}
    users_so_far = _added(run.segments)
    unmapped = [(name, n) for name, n in users_so_far.most_common() if name not in templates]
    run.unmapped = dict(unmapped[:_NAMED])
    # Anew after each shard, whose first ones may look odd alone.
    found = {
        "mails.first": _first_mails(run),
        "episodes.lasting": _lasting(run, sum(users_so_far[name] for name in lasting)),
        "segments.lost": _lost(run, users_so_far, templates),
    }
    run.warnings = {event: text for event, text in found.items() if text}


def _first_mails(run: Run) -> str | None:
    # Counted only where mails are queued; a shard has about as many as the next.
    run.queue_rows = max(run.queue_rows, run.figures.queue_rows * run.figures.shards)
    counts = run.so_far()
    queued, users = counts["inserted"], counts["extracted"]
    return guards.first_mails(queued, users, run.queue_rows, run.settings)


def _lasting(run: Run, users: int) -> str | None:
    if not run.figures.no_visits:
        return None
    return (
        f"the mart has no {' and no '.join(run.figures.no_visits)}: {users:,} users have one"
        " occasion for ever, however long ago they were seen;"
        f" {run.so_far()['inserted']:,} mails are to be queued"
    )


def _lost(run: Run, users: Counter[str], templates: Mapping[str, str]) -> str | None:
    """Name the segments that have no user, though mails of their templates wait."""
    mails = _added(run.cancels)
    where = f"shard {run.shard} of the mart" if run.options.part else "the mart"
    lost = [
        f"segment {segment} has no user in {where}, and the {mails[template]:,} waiting mails of"
        f" its template {template} are to be cancelled"
        for segment, template in templates.items()
        if not users[segment] and mails[template]
    ]
    if not lost or run.shard != run.options.walk[-1]:
        return None
    names = [
        f"{one_word(name[:_CHARACTERS])} {n:,}"
        for name, n in users.most_common()
        if name not in templates
    ]
    return (
        f"{'; '.join(lost)}; was it renamed? Correct RULES in etl/email_triggers.py or the mart;"
        f" users of segments without a template: {', '.join(names[:_NAMED_IN_WARNING]) or 'none'}"
    )


def _added(shards: Mapping[tuple[int, int], Mapping[str, int]]) -> Counter[str]:
    return sum(map(Counter, shards.values()), Counter())
