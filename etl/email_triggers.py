"""E-mail triggers: mart_user_segments -> crm.email_queue.

Mail workers send what the segment asks for. The rules of the queue (episodes, cooldowns,
cancelling) are in docs/email-queue.md. What the mart alone tells is in `transform`; what needs
the queue's state is in SQL: sql/warehouse/email_decisions.sql decides and
sql/postgres/email_triggers.sql does it.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from functools import partial
from types import new_class
from typing import TYPE_CHECKING

import dataframely as dy
import orjson
import polars as pl

from etl import postgres, warehouse
from etl.errors import SyncError
from etl.mail import decisions, lists, payloads, rules, templates, warnings
from etl.mail.rules import NO_EPISODE_DATE, Rule
from etl.options import Options
from etl.plumbing import queries
from etl.run import Run, execute
from etl.run.contract import without_nul
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from etl.result import SyncResult
    from etl.warehouse import Spool

# A mart older than that has the queue read again, with what older visits need.
_EXPECTED_AGE = dt.timedelta(days=7)

_RESULT = {"inserted", "updated", "unchanged", "cancelled", "suppressed", "held_back"}
_GUARDED = {"queued", "cancelled_by_mart", "pending", "queue_rows"}
_MERGE = postgres.Merge(
    "email_triggers",
    "crm.email_queue",
    frozenset(_RESULT | _GUARDED),
    recount="email_unwritten",
    altered="email_altered",
)


class _Candidate(UserSegment):
    """What every payload may use."""

    first_seen_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    last_seen_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    platform = dy.String(nullable=True, check={"nul": without_nul})
    country = dy.String(nullable=True, check={"nul": without_nul})


# One row of the mart, as sql/warehouse/email_triggers.sql hands it over.
EmailCandidate: type[dy.Schema] = new_class(
    "EmailCandidate", (_Candidate,), exec_body=lambda fields: fields.update(payloads.more_columns())
)


def sync(
    *,
    dry_run: bool = False,
    force: bool = False,
    wait: float = 0,
    shard: tuple[int, int] | None = None,
    name_users: bool = False,
    decisions: str | None = None,
    settings: Settings | None = None,
) -> SyncResult:
    """Bring crm.email_queue up to the mart.

    Args:
        dry_run: do all of it, then roll back; the counts are those of the real run.
        force: go past the guards.
        wait: seconds to wait for another run of this sync before giving up.
        shard: (i, n) loads shard i of n alone, for schedulers that spread a sync.
        name_users: let `outcomes` of a dry run name five users each; without it they only
            count, because a scheduler keeps what a task returns.
        decisions: a .csv or .parquet file in which a dry run says what would become of each mail.
        settings: in place of those of the environment.

    Returns:
        extracted and rejected count rows of the mart, the others mails: inserted (queued),
        updated (refreshed, or pending again), unchanged, cancelled, suppressed, held_back;
        `unmapped` counts users of segments without a template, `unmapped_segments` names these.

    Raises:
        SyncError: nothing was changed; the message says why, `.result` what was known.
    """
    options = Options(
        dry_run, force, wait=wait, shard=shard, name_users=name_users, decisions=decisions
    )
    return execute("email_triggers", load, options, settings=settings)


def load(run: Run) -> None:
    """Read, check, decide, stage what changes, merge; `execute` commits."""
    rules.check(EmailCandidate.columns().keys() - {"user_id", "built_at"})
    oldest = run.job.started_at - _EXPECTED_AGE
    decisions.prepare(run.postgres, run.settings, oldest, shard=run.job.shard)
    templates.keep_history(run)
    mails = run.start_reading(decisions.read_mails, "mails")  # while the mart is read
    users: Counter[str] = Counter()  # by segment

    def reshape(rows: pl.DataFrame) -> pl.DataFrame:
        users.update(dict(rows["segment"].value_counts().iter_rows()))
        return without_future_visits(rows, run.job.started_at)

    mart = run.read(EmailCandidate, reshape)
    queue = mails.result()
    if run.as_of < oldest:  # --force, or a guard that allows it
        decisions.prepare(run.postgres, run.settings, run.as_of, shard=run.job.shard)
        queue = run.start_reading(decisions.read_mails, "mails").result()
    # By the query's columns and not by its rows, of which a shard may have none with a visit.
    no_visits = sorted(rules.visits() - run.columns)
    if no_visits:
        _compare_visits(run, no_visits)
    templates.update(run.postgres, run.settings)
    counts, totals = _merge(run, partial(triggers, run, mart, no_visits), queue)
    run.count(counts)
    warnings.look(run, users, no_visits, totals.cancelled())
    if run.options.dry_run:
        run.add_outcomes(totals.outcomes())


def transform(mart: pl.DataFrame, as_of: dt.datetime) -> pl.DataFrame:
    """Tell whom the mart would have us mail, whatever the queue says. Pure.

    Args:
        mart: columns of `EmailCandidate`, one row a user.
        as_of: the mart's build time; the age of an occasion is measured against it.

    Returns:
        One row per user whose segment calls for a mail: user_id str, template str, episode_at
        datetime UTC (null: unknown), priority i16, payload str (JSON), due bool (the occasion
        is known and fresh; the others tell the merge that the user is still in the segment),
        expires_at datetime UTC (when the occasion is old news).
    """
    return pl.concat([_of_rule(mart, rule, as_of) for rule in rules.RULES]).sort("user_id")


def _of_rule(mart: pl.DataFrame, rule: Rule, as_of: dt.datetime) -> pl.DataFrame:
    episode = pl.col(rule.episode)
    return mart.filter(pl.col("segment") == rule.segment).select(
        "user_id",
        template=pl.lit(rule.template),
        episode_at=episode,
        priority=pl.lit(rule.priority, pl.Int16),
        payload=payloads.to_json(rule, EmailCandidate),
        due=(episode >= as_of - rule.max_age).fill_null(False),
        expires_at=episode + rule.max_age,
    )


def without_future_visits(mart: pl.DataFrame, now: dt.datetime) -> pl.DataFrame:
    """Make visits in the future null: they are placeholders such as 9999-12-31, and never old news.

    A day is allowed, because visits without a zone may be in local time.
    """
    visits = [pl.col(name) for name in ("first_seen_at", "last_seen_at")]
    latest = now + dt.timedelta(days=1)
    return mart.drop("built_at").with_columns(pl.when(v <= latest).then(v) for v in visits)


def _compare_visits(run: Run, no_visits: list[str]) -> None:
    """Give the guards what speaks against a mart that never had these visit columns."""
    run.metrics.no_visits = tuple(no_visits)
    # A run without a visit column warns of it: one that did not warn had the column.
    said = run.previous.warning if run.previous else None
    if said is not None:
        run.metrics.lost_visits = tuple(name for name in no_visits if f"no {name}" not in said)
    templates = [rule.template for rule in rules.RULES if rule.episode in no_visits]
    (queue,) = postgres.query(
        run.postgres, "email_visits", NO_EPISODE_DATE, orjson.dumps(templates).decode()
    )
    run.metrics.visits_queued = queue["visits_queued"]


def triggers(run: Run, mart: Spool, no_visits: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Stream what decisions need of the mart: one row for each of its users.

    Args:
        run: has read the mart.
        mart: its accepted rows, without visits in the future.
        no_visits: the visit columns that the mart does not have.
    """
    one_episode = [pl.lit(NO_EPISODE_DATE).alias(name) for name in no_visits]
    for rows in mart.frames():
        calling = transform(rows.with_columns(one_episode), run.as_of)
        others = rows.filter(~pl.col("segment").is_in(list(rules.templates()))).select("user_id")
        users = pl.concat([calling, others], how="diagonal")
        yield decisions.with_hash(users).with_columns(rejected=False)
    for users in run.rejected.frames():
        unknown = users.unique().with_columns(rejected=True)
        yield pl.concat([decisions.with_hash(calling.clear()), unknown], how="diagonal")


def _merge(
    run: Run, triggers: Callable[[], Iterator[pl.DataFrame]], queue: Spool
) -> tuple[dict[str, int], decisions.Totals]:
    """Decide and merge; again where another program has just queued a mail for the same user."""
    for plain_insert in (True, False):
        totals = _stage(run, triggers(), queue)
        try:
            with run.savepoint():
                return _write(run, totals, plain_insert=plain_insert), totals
        except SyncError as error:
            if error.sqlstate != postgres.UNIQUE_VIOLATION:
                raise
        queue = decisions.read_mails(run.postgres, run.folder / "mails").result()
    # Only a mail that is to be pending again can meet another: those wait for a later run.
    totals = _stage(run, triggers(), queue)
    postgres.execute(run.postgres, queries.load("postgres", "email_without_revivals"))
    return _write(run, totals, plain_insert=False), totals


def _stage(run: Run, triggers: Iterator[pl.DataFrame], queue: Spool) -> decisions.Totals:
    """Decide; stage what is to change in the queue as it was read."""
    totals = decisions.Totals()
    unsubscribed = decisions.read_unsubscribed(run.postgres, run.folder / "unsubscribed").result()

    def changes(decided: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        with lists.writing(run.options.decisions) as write:
            for rows in decided:
                totals.add(rows)
                write(rows)
                yield decisions.to_stage(rows)

    with decisions.decide(
        warehouse.to_batches(triggers), queue, unsubscribed, run.as_of, run.settings.email_holdout
    ) as decided:
        run.copy("decisions", warehouse.to_batches(changes(decided)))
    return totals


def _write(run: Run, totals: decisions.Totals, *, plain_insert: bool) -> dict[str, int]:
    names = ("due", "is_candidate", "is_suppressed", "is_without_episode")
    return run.merge(_MERGE, *run.job.shard, *(totals.sums[name] for name in names), plain_insert)


if __name__ == "__main__":
    from etl import cli

    cli.main("email_triggers")
