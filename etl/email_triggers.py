"""E-mail triggers: mart_user_segments -> crm.email_queue.

Mail workers send what the segment asks for. The rules of the queue (episodes, cooldowns,
cancelling) are in docs/email-queue.md. What the mart alone tells is in `transform`; what needs
the queue's state is in SQL: sql/warehouse/email_decisions.sql decides and
sql/postgres/email_triggers.sql does it.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from types import new_class

import dataframely as dy
import polars as pl

from etl.mail import decisions, payloads, rules, templates, visits, warnings
from etl.mail.merge import merge
from etl.mail.rules import Rule
from etl.options import Options
from etl.result import SyncResult
from etl.run import Run, execute
from etl.run.contract import without_nul
from etl.settings import Settings
from etl.user_segments import UserSegment
from etl.warehouse import Spool

# A mart older than that has the queue read again, with what older visits need.
_EXPECTED_AGE = dt.timedelta(days=7)


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
        SyncError: nothing was changed, unless the message says that the commit may have gone
            through; it says why, `.result` what was known.
    """
    options = Options(
        dry_run, force, wait=wait, shard=shard, name_users=name_users, decisions=decisions
    )
    return execute("email_triggers", load, options, settings=settings)


def load(run: Run) -> None:
    """Read, check, decide, stage what changes, merge; `execute` commits."""
    rules.check(EmailCandidate.columns().keys() - {"user_id", "built_at"})
    oldest = run.job.started_at - _EXPECTED_AGE
    decisions.prepare(run.session, run.settings, oldest, shard=run.job.shard)
    templates.check_names(run)
    # In order where many mails are inserted, or users are listed.
    ordered = run.is_new("crm.email_queue") or run.options.decisions is not None
    reading = run.start_reading(decisions.read_mails, "mails")  # while the mart is read
    users: Counter[str] = Counter()  # by segment

    def reshape(rows: pl.DataFrame) -> pl.DataFrame:
        users.update(dict(rows["segment"].value_counts().iter_rows()))
        return visits.without_future(rows, run.job.started_at)

    mart = run.read(EmailCandidate, reshape, ordered=ordered)
    mails = reading.result()
    missing = visits.missing(run)
    visits.tell_guards(run, missing)
    if run.as_of < oldest:  # --force, or a guard that allows it
        decisions.prepare(run.session, run.settings, run.as_of, shard=run.job.shard)
        mails = run.start_reading(decisions.read_mails, "mails").result()
    decided = merge(run, partial(triggers, run.as_of, missing), mart, mails)
    warnings.look(run, users, missing, decided.cancelled())
    templates.keep_history(run)
    templates.update(run.session, run.settings)
    if run.options.dry_run:
        run.tally.add_outcomes(decided.outcomes())


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


def triggers(
    as_of: dt.datetime, missing: Sequence[str], mart: Spool, rejected: Spool
) -> Iterator[pl.DataFrame]:
    """Stream what decisions need of the mart: one row for each of its users.

    Args:
        as_of: the mart's build time.
        missing: the visit columns that the mart does not have.
        mart: its accepted rows, without visits in the future.
        rejected: the keys of the others.
    """
    for rows in mart.frames():
        calling = transform(visits.one_episode(rows, missing), as_of)
        others = rows.filter(~pl.col("segment").is_in(list(rules.templates()))).select("user_id")
        users = pl.concat([calling, others], how="diagonal")
        yield decisions.with_hash(users).with_columns(rejected=False)
    for users in rejected.frames():
        unknown = users.unique().with_columns(rejected=True)
        yield pl.concat([decisions.with_hash(calling.clear()), unknown], how="diagonal")


if __name__ == "__main__":
    from etl import cli

    cli.main("email_triggers")
