"""Decide what becomes of each mail, and merge it into crm.email_queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl import postgres, warehouse
from etl.errors import SyncError
from etl.mail import decisions, lists
from etl.plumbing import queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from etl.mail.decisions import Mails, Totals, Triggers
    from etl.run import Run
    from etl.warehouse import Spool

_RESULT = {"inserted", "updated", "unchanged", "cancelled", "suppressed", "held_back"}
_GUARDED = {"queued", "cancelled_by_mart", "pending", "queue_rows"}
_MERGE = postgres.Merge(
    "email_triggers",
    "crm.email_queue",
    frozenset(_RESULT | _GUARDED),
    recount="email_unwritten",
    altered="email_altered",
)


def merge(run: Run, triggers: Triggers, mart: Spool, mails: Mails) -> Totals:
    """Decide and merge; again where another program has just queued a mail for the same user.

    Args:
        run: it gets the counts.
        triggers: see `decisions.decide`.
        mart: its accepted rows.
        mails: what the queue held while the mart was read.

    Returns:
        What was decided.
    """
    for plain_insert in (True, False):
        totals = _stage(run, triggers, mart, mails)
        try:
            with run.savepoint():
                _write(run, totals, plain_insert=plain_insert)
                return totals
        except SyncError as error:
            if error.sqlstate != postgres.UNIQUE_VIOLATION:
                raise
        mails = run.start_reading(decisions.read_mails, "mails").result()
    # Only a mail that is to be pending again can meet another: those wait for a later run.
    totals = _stage(run, triggers, mart, mails)
    postgres.execute(run.session, queries.load("postgres", "email_without_revivals"))
    _write(run, totals, plain_insert=False)
    return totals


def _stage(run: Run, triggers: Triggers, mart: Spool, mails: Mails) -> Totals:
    """Decide; stage what is to change in the queue as it was read."""
    totals = decisions.Totals()
    unsubscribed = run.start_reading(decisions.read_unsubscribed, "unsubscribed").result()

    def changes(decided: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        with lists.writing(run.options.decisions) as write:
            for rows in decided:
                totals.add(rows)
                write(rows)
                yield decisions.to_stage(rows)

    known = decisions.Known(mart, run.mart.rejected, mails, unsubscribed)
    with decisions.decide(triggers, known, run.as_of, run.settings.email_holdout) as decided:
        run.copy("decisions", warehouse.to_batches(changes(decided)))
    return totals


def _write(run: Run, totals: Totals, *, plain_insert: bool) -> None:
    names = ("due", "is_candidate", "is_suppressed", "is_without_episode")
    sums = (totals.sums[name] for name in names)
    run.count(run.merge(_MERGE, *run.job.shard, *sums, plain_insert))
