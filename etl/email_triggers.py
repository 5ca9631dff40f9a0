"""E-mail triggers: mart_user_segments -> crm.email_queue.

Mail workers send what the segment asks for. The rules of the queue (episodes, cooldowns,
cancelling) are in docs/email-queue.md. What the mart alone tells is in `transform`; what needs
the queue's state is in SQL: email_candidates, email_changes and email_reclassify decide,
email_triggers does it.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import dataframely as dy
import orjson
import polars as pl

from etl import postgres, warehouse
from etl.errors import SyncError
from etl.mail import rules, templates, warnings
from etl.mail.rules import NO_EPISODE_DATE, PAYLOAD_VERSION, Rule
from etl.options import Options
from etl.plumbing import queries
from etl.run import Run, execute
from etl.run.contract import without_nul
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    from etl.result import Outcome, SyncResult
    from etl.warehouse import Spool

# Times that a merge is done anew because another program was faster.
_ATTEMPTS = 2

# A hash table may take twice this: 500,000 triggers with their payloads.
_WORK_MEMORY = "SET LOCAL work_mem = '64MB'"

# How many mails wait is what the planner's statistics of the queue know least of.
_NESTED_LOOPS = "SET LOCAL enable_nestloop = {}"

_LIMITS = {
    "template": pl.String,
    "max_age": pl.Float64,
    "cooldown": pl.Float64,
    "renamed_from": pl.String,
}

_RESULT = {"inserted", "updated", "unchanged", "cancelled", "suppressed", "held_back"}
_GUARDED = {"queued", "cancelled_by_mart", "pending", "queue_rows"}
_MERGE = postgres.Merge(
    "email_triggers", "crm.email_queue", frozenset(_RESULT | _GUARDED), "email_unwritten"
)


class EmailCandidate(UserSegment):
    """One row of the mart, as sql/warehouse/email_triggers.sql hands it over."""

    first_seen_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    last_seen_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    platform = dy.String(nullable=True, check={"nul": without_nul})
    country = dy.String(nullable=True, check={"nul": without_nul})


def sync(
    *,
    dry_run: bool = False,
    force: bool = False,
    wait: float = 0,
    shard: tuple[int, int] | None = None,
    name_users: bool = False,
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
        settings: in place of those of the environment.

    Returns:
        extracted and rejected count rows of the mart, the others mails: inserted (queued),
        updated (refreshed, or pending again), unchanged, cancelled, suppressed, held_back;
        `unmapped` counts users of segments without a template, `unmapped_segments` names these.

    Raises:
        SyncError: nothing was changed; the message says why, `.result` what was known.
    """
    options = Options(dry_run, force, wait=wait, shard=shard, name_users=name_users)
    return execute("email_triggers", load, options, settings=settings)


def load(run: Run) -> None:
    """Read, check, stage what calls for a mail, decide, merge; `execute` commits."""
    rules.check(EmailCandidate.columns().keys() - {"user_id", "built_at"})
    users: Counter[str] = Counter()  # by segment

    def reshape(rows: pl.DataFrame) -> pl.DataFrame:
        users.update(dict(rows["segment"].value_counts().iter_rows()))
        return _without_future_visits(rows, run.job.started_at)

    mart = run.read(EmailCandidate, reshape)
    # By the query's columns and not by its rows, of which a shard may have none with a visit.
    no_visits = sorted(rules.visits() - run.columns)
    one_episode = [pl.lit(NO_EPISODE_DATE).alias(name) for name in no_visits]
    triggers = (transform(rows.with_columns(one_episode), run.as_of) for rows in mart.frames())
    postgres.execute(run.postgres, _WORK_MEMORY)
    run.copy("rules", warehouse.to_batches([pl.DataFrame(rules.limits(), schema=_LIMITS)]))
    templates.keep_history(run)
    run.copy("triggers", warehouse.to_batches(triggers))
    if no_visits:
        _compare_visits(run, no_visits)
    templates.update(run.postgres, run.settings)
    run.count(_merge(run, mart))
    warnings.look(run, users, no_visits)
    if run.options.dry_run:
        run.add_outcomes(cast("list[Outcome]", postgres.query(run.postgres, "email_outcomes")))


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
    return pl.concat([_triggers(mart, rule, as_of) for rule in rules.RULES]).sort("user_id")


def _triggers(mart: pl.DataFrame, rule: Rule, as_of: dt.datetime) -> pl.DataFrame:
    episode = pl.col(rule.episode)
    return mart.filter(pl.col("segment") == rule.segment).select(
        "user_id",
        template=pl.lit(rule.template),
        episode_at=episode,
        priority=pl.lit(rule.priority, pl.Int16),
        payload=_payload(rule),
        due=(episode >= as_of - rule.max_age).fill_null(False),
        expires_at=episode + rule.max_age,
    )


def _payload(rule: Rule) -> pl.Expr:
    """The mail's own data as JSON: no more of a person than the template needs."""
    # Cents stay exact as text; as a float they would not.
    money = pl.col("lifetime_value").cast(pl.String)
    first, last = (
        pl.col(name).replace(NO_EPISODE_DATE, None).dt.to_string("iso:strict")
        for name in ("first_seen_at", "last_seen_at")
    )
    known = {"lifetime_value": money, "first_seen_at": first, "last_seen_at": last}
    fields = [known.get(name, pl.col(name)).alias(name) for name in rule.payload]
    return pl.struct(pl.lit(PAYLOAD_VERSION).alias("version"), *fields).struct.json_encode()


def _without_future_visits(mart: pl.DataFrame, now: dt.datetime) -> pl.DataFrame:
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


def _merge(run: Run, mart: Spool) -> dict[str, int]:
    """Decide and merge; again where another program has just queued a mail for the same user."""
    for _ in range(_ATTEMPTS):
        _decide(run, mart)
        try:
            with run.savepoint():
                return run.merge(_MERGE, *run.job.shard)
        except SyncError as error:
            if error.sqlstate != postgres.UNIQUE_VIOLATION:
                raise
    # Only a mail that is to be pending again can meet another: those wait for a later run.
    _decide(run, mart)
    postgres.execute(run.postgres, queries.load("postgres", "email_without_revivals"))
    return run.merge(_MERGE, *run.job.shard)


def _decide(run: Run, mart: Spool) -> None:
    """Stage what is to change in the queue as it is now."""
    gap, holdout = run.settings.email_min_gap_hours, run.settings.email_holdout
    _create_temp_from(run, "candidates", gap, NO_EPISODE_DATE, holdout)
    postgres.execute(run.postgres, _NESTED_LOOPS.format("off"))
    _create_temp_from(run, "changes", run.as_of, *run.job.shard, NO_EPISODE_DATE)
    postgres.execute(run.postgres, _NESTED_LOOPS.format("on"))
    _reclassify(run, mart)


def _create_temp_from(run: Run, table: str, *parameters: Any) -> None:
    """Stage what sql/postgres/email_<table>.sql finds, with statistics for whoever reads it."""
    postgres.execute(run.postgres, f'DROP TABLE IF EXISTS pg_temp."{table}"')
    postgres.execute(run.postgres, queries.load("postgres", f"email_{table}"), *parameters)
    postgres.execute(run.postgres, f'ANALYZE pg_temp."{table}"')


def _reclassify(run: Run, mart: Spool) -> None:
    """Tell who left their segment, or has a bad row, from who left the mart."""
    gone = postgres.query(run.postgres, "email_without_trigger")
    if not gone:
        return
    users = pl.DataFrame(gone, schema={"user_id": pl.String})
    rejected = (rows.with_columns(rejected=True) for rows in run.rejected.frames())
    present = (
        users.join(rows, on="user_id", how="semi").with_columns(rejected=False)
        for rows in mart.frames()
    )
    postgres.execute(run.postgres, 'DROP TABLE IF EXISTS pg_temp."known"')
    run.copy("known", warehouse.to_batches(chain(present, rejected)))
    postgres.execute(run.postgres, queries.load("postgres", "email_reclassify"))


if __name__ == "__main__":
    from etl import cli

    cli.main("email_triggers")
