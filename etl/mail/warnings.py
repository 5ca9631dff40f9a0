"""What a run of email_triggers says of its mart beside the counts.

Nothing here stops a run: a first run, a new segment or a mart without visits may be right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.mail import rules
from etl.plumbing.counted import counted
from etl.plumbing.redact import quote_value
from etl.run import guards

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection, Mapping, Sequence

    from etl.run import Run

# Segments without a template that a result names; a mart whose segments are all different has
# millions. A warning names fewer, each cut to so many characters.
_NAMED, _NAMED_IN_WARNING, _CHARACTERS = 20, 5, 40


def look(
    run: Run, users: Counter[str], no_visits: Collection[str], cancelled: Mapping[str, int]
) -> None:
    """Count the users without a template, and warn of what a sound mart rarely does.

    Args:
        run: merged, but not committed.
        users: of the accepted rows, by segment.
        no_visits: the visit columns that the mart does not have.
        cancelled: waiting mails of each template that are to be cancelled.
    """
    unmapped = [(name, n) for name, n in users.most_common() if name not in rules.templates()]
    run.count({"unmapped": sum(n for _, n in unmapped)})
    found = {
        "mails.first": _first_mails(run),
        "episode.defaulted": _no_visits(run, users, no_visits),
        "segments.lost": _lost(run, users, unmapped, cancelled),
    }
    said = {event: text for event, text in found.items() if text}
    run.tally.warn(said, dict(unmapped[:_NAMED]))


def _first_mails(run: Run) -> str | None:
    # Counted only where mails are queued; a shard has about as many as the next.
    counts, metrics = run.tally.counts, run.tally.metrics
    queue_rows = metrics.queue_rows * metrics.shards
    return guards.first_mails(counts["inserted"], counts["extracted"], queue_rows, run.settings)


def _no_visits(run: Run, users: Counter[str], no_visits: Collection[str]) -> str | None:
    if not no_visits:
        return None
    concerned = sum(users[rule.segment] for rule in rules.RULES if rule.episode in no_visits)
    return (
        f"the mart has no {' and no '.join(no_visits)}:"
        f" {counted(concerned, 'user has', 'users have')} one occasion for ever,"
        " however long ago they were seen;"
        f" {counted(run.tally.counts['inserted'], 'mail is', 'mails are')} to be queued"
    )


def _lost(
    run: Run,
    users: Counter[str],
    unmapped: Sequence[tuple[str, int]],
    mails: Mapping[str, int],
) -> str | None:
    """Name the segments that have no user, though mails of their templates wait."""
    if rules.templates().keys() <= users.keys():
        return None
    where = f"shard {run.job.shard} of the mart" if run.options.shard else "the mart"
    lost = [
        f"segment {segment} has no user in {where}, and of its template"
        f" {template} {counted(mails[template], 'waiting mail is', 'waiting mails are')} to be"
        " cancelled"
        for segment, template in rules.templates().items()
        if not users[segment] and template in mails
    ]
    if not lost:
        return None
    names = [f"{quote_value(name[:_CHARACTERS])} {n:,}" for name, n in unmapped]
    return (
        f"{'; '.join(lost)}; was it renamed? Correct RULES in etl/mail/rules.py or the mart;"
        f" users of segments without a template: {', '.join(names[:_NAMED_IN_WARNING]) or 'none'}"
    )
