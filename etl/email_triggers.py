"""E-mail triggers: mart_user_segments -> crm.email_queue.

Mail workers send what the segment asks for. The rules of the queue (episodes, cooldowns,
cancelling) are in docs/email-queue.md. What the mart alone tells is in `transform`; what needs
the queue's state is in SQL: email_candidates, email_changes and email_known decide, email_triggers
does it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import dataframely as dy
import orjson
import polars as pl

from etl import postgres
from etl.mail import warnings as mail_warnings
from etl.options import Options
from etl.plumbing import queries
from etl.result import Outcome, SyncResult
from etl.run import Run, execute
from etl.run.contract import no_nul
from etl.settings import Settings
from etl.user_segments import UserSegment


@dataclass(frozen=True)
class Rule:
    """One template: whom it is for, what opens an occasion, and how often it may be sent."""

    segment: str
    template: str
    priority: int  # 1 is the most urgent
    episode: str  # the column with the fact that opens the occasion
    max_age: timedelta  # older occasions are old news: no mail
    cooldown: timedelta | None  # before the same template again; None: never again
    payload: tuple[str, ...]  # what the mail may say


_BASE = ("segment", "last_seen_at", "platform", "country")
_FULL = (*_BASE, "total_searches", "total_conversions", "lifetime_value")

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)

# fmt: off
RULES = (
    # segment, template, priority, episode, max age, cooldown, payload
    Rule("abandoned_search", "abandoned_search", 1, "last_seen_at",  72 * _HOUR, 24 * _HOUR, _FULL),
    Rule("new_user",         "welcome",          2, "first_seen_at", 14 * _DAY,  None,       _BASE),
    Rule("at_risk",          "win_back",         3, "last_seen_at",  180 * _DAY, 30 * _DAY,  _FULL),
    Rule("high_value",       "loyalty",          4, "last_seen_at",  90 * _DAY,  90 * _DAY,  _FULL),
)
# fmt: on

# Raise it when a field of a payload changes its meaning: mail templates can tell.
PAYLOAD_VERSION = 1

# The one episode of a user, for ever, where the mart has no visit columns: never old news.
EVER = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)

# A hash table may take twice this: 500,000 triggers with their payloads.
_WORK_MEMORY = "SET LOCAL work_mem = '64MB'"

# How many mails wait is what the planner's statistics of the queue know least of.
_NESTED_LOOPS = "SET LOCAL enable_nestloop = {}"

_WITHOUT_TRIGGER = "SELECT user_id FROM pg_temp.changes WHERE reason = 'left_mart'"

_RESULT = {"inserted", "updated", "unchanged", "cancelled", "suppressed", "held_back"}
_GUARDED = {"queued", "withdrawn", "pending", "queue_rows"}
_MERGE = postgres.Merge(
    "email_triggers", "crm.email_queue", frozenset(_RESULT | _GUARDED), "email_unwritten"
)


class Audience(UserSegment):
    """One row of the mart, as sql/warehouse/email_triggers.sql hands it over."""

    first_seen_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    last_seen_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    platform = dy.String(nullable=True, check={"nul": no_nul})
    country = dy.String(nullable=True, check={"nul": no_nul})


def sync(
    *,
    dry_run: bool = False,
    force: bool = False,
    wait: float = 0,
    shards: int = 1,
    shard: tuple[int, int] | None = None,
    name_users: bool = False,
    settings: Settings | None = None,
) -> SyncResult:
    """Bring crm.email_queue up to the mart.

    Args:
        dry_run: do all of it, then roll back; the counts are those of the real run.
        force: go past the guards.
        wait: seconds to wait for another run of this sync before giving up.
        shards: walk the mart in this many hash shards, one after the other, to bound memory.
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
    options = Options(dry_run, force, wait=wait, shards=shards, shard=shard, name_users=name_users)
    return execute("email_triggers", load, options, settings=settings)


def load(run: Run) -> None:
    """Fetch, check, reshape, stage, decide and merge; `execute` judges and commits."""
    read = run.read(Audience, lambda mart: _with_known_visits(mart, run.shard_started))
    mart = pl.concat(map(pl.DataFrame, read))
    # By the query's columns and not by its rows, of which a shard may have none with a visit.
    no_visits = sorted({rule.episode for rule in RULES} - run.columns)
    mart = mart.with_columns(pl.lit(EVER).alias(name) for name in no_visits)
    # Made while they are sent: all their payloads together would be larger than the mart.
    triggers = (transform(part, run.as_of) for part in postgres.slices(mart))
    postgres.execute(run.postgres, _WORK_MEMORY)
    postgres.stage(run.postgres, "rules", _rules())
    postgres.stage_parts(run.postgres, "triggers", triggers)
    if no_visits:
        _compare_visits(run, no_visits)
    _decide(run, "candidates", run.settings.email_min_gap_hours)
    postgres.execute(run.postgres, _NESTED_LOOPS.format("off"))
    _decide(run, "changes", run.as_of, *run.shard)
    postgres.execute(run.postgres, _NESTED_LOOPS.format("on"))
    _find_the_known(run, mart)
    run.count(postgres.merge(run.postgres, _MERGE, *run.shard))
    templates = {rule.segment: rule.template for rule in RULES}
    lasting = [rule.segment for rule in RULES if rule.episode in no_visits]
    mail_warnings.look(run, mart["segment"], templates, lasting)
    if run.options.dry_run:
        run.tell(cast("list[Outcome]", postgres.ask(run.postgres, "email_outcomes")))


def transform(mart: pl.DataFrame, as_of: dt.datetime) -> pl.DataFrame:
    """Tell whom the mart would have us mail, whatever the queue says. Pure.

    Args:
        mart: columns of `Audience`, one row a user.
        as_of: the mart's build time; the age of an occasion is measured against it.

    Returns:
        One row per user whose segment calls for a mail: user_id str, template str, episode_at
        datetime UTC (null: unknown), priority i16, payload str (JSON), due bool (the occasion
        is known and fresh; the others tell the merge that the user is still in the segment).
    """
    return pl.concat([_triggers(mart, rule, as_of) for rule in RULES]).sort("user_id")


def _triggers(mart: pl.DataFrame, rule: Rule, as_of: dt.datetime) -> pl.DataFrame:
    episode = pl.col(rule.episode)
    return mart.filter(pl.col("segment") == rule.segment).select(
        "user_id",
        template=pl.lit(rule.template),
        episode_at=episode,
        priority=pl.lit(rule.priority, pl.Int16),
        payload=_payload(rule),
        due=(episode >= as_of - rule.max_age).fill_null(False),
    )


def _payload(rule: Rule) -> pl.Expr:
    """The mail's own data as JSON: no more of a person than the template needs."""
    # Cents stay exact as text; as a float they would not.
    money = pl.col("lifetime_value").cast(pl.String)
    first, last = (
        pl.col(name).replace(EVER, None).dt.to_string("iso:strict")
        for name in ("first_seen_at", "last_seen_at")
    )
    known = {"lifetime_value": money, "first_seen_at": first, "last_seen_at": last}
    fields = [known.get(name, pl.col(name)).alias(name) for name in rule.payload]
    return pl.struct(pl.lit(PAYLOAD_VERSION).alias("version"), *fields).struct.json_encode()


def _with_known_visits(mart: pl.DataFrame, now: dt.datetime) -> pl.DataFrame:
    """Make visits in the future null: they are placeholders such as 9999-12-31, and never old news.

    A day is allowed, because visits without a zone may be in local time.
    """
    visits = [pl.col(name) for name in ("first_seen_at", "last_seen_at")]
    return mart.drop("built_at").with_columns(pl.when(v <= now + _DAY).then(v) for v in visits)


def _compare_visits(run: Run, no_visits: list[str]) -> None:
    """Give the guards what speaks against a mart that never had these visit columns."""
    run.figures.no_visits = tuple(no_visits)
    # A run without a visit column warns of it: one that did not warn had the column.
    said = run.previous.warning if run.previous else None
    if said is not None:
        run.figures.lost_visits = tuple(name for name in no_visits if f"no {name}" not in said)
    templates = [rule.template for rule in RULES if rule.episode in no_visits]
    (queue,) = postgres.ask(run.postgres, "email_visits", EVER, orjson.dumps(templates).decode())
    run.figures.visits_queued = queue["visits_queued"]


def _decide(run: Run, table: str, *parameters: Any) -> None:
    """Stage what sql/postgres/email_<table>.sql finds, with statistics for whoever reads it."""
    postgres.execute(run.postgres, f'DROP TABLE IF EXISTS pg_temp."{table}"')
    postgres.execute(run.postgres, queries.load("postgres", f"email_{table}"), *parameters)
    postgres.execute(run.postgres, f'ANALYZE pg_temp."{table}"')


def _find_the_known(run: Run, mart: pl.DataFrame) -> None:
    """Tell who left their segment, or has a bad row, from who left the mart."""
    gone = postgres.select(run.postgres, _WITHOUT_TRIGGER)
    if gone:
        users = pl.DataFrame(gone, schema={"user_id": pl.String})
        rejected = run.rejected_users().unique().with_columns(rejected=True)
        known = users.join(mart, on="user_id", how="semi").with_columns(rejected=False)
        postgres.stage(run.postgres, "known", pl.concat([known, rejected]))
        postgres.execute(run.postgres, queries.load("postgres", "email_known"))


def _rules() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "template": [rule.template for rule in RULES],
            "max_age": [rule.max_age.total_seconds() for rule in RULES],
            "cooldown": [rule.cooldown and rule.cooldown.total_seconds() for rule in RULES],
        },
        schema={"template": pl.String, "max_age": pl.Float64, "cooldown": pl.Float64},
    )


if __name__ == "__main__":
    from etl import cli

    cli.main("email_triggers")
