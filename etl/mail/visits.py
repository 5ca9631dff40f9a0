"""The visits that open occasions: those of the future, and marts that do not know any."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import orjson
import polars as pl

from etl import postgres
from etl.mail import rules
from etl.mail.rules import NO_EPISODE_DATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etl.run import Run


def without_future(mart: pl.DataFrame, now: dt.datetime) -> pl.DataFrame:
    """Make visits in the future null: they are placeholders such as 9999-12-31, and never old news.

    A day is allowed, because visits without a zone may be in local time.
    """
    latest = now + dt.timedelta(days=1)
    visits = [pl.col(name) for name in rules.VISITS]
    return mart.drop("built_at").with_columns(pl.when(v <= latest).then(v) for v in visits)


def missing(run: Run) -> list[str]:
    """Return the visit columns of the rules that the mart does not have.

    It goes by the query's columns and not by its rows, of which a shard may have none with a visit.
    """
    return sorted(rules.visits() - run.mart.source.columns)


def tell_guards(run: Run, missing: Sequence[str]) -> None:
    """Give the guards what speaks against a mart that never had these visit columns."""
    if not missing:
        return
    templates = [name for rule in rules.RULES if rule.episode in missing for name in rule.names]
    told = NO_EPISODE_DATE, orjson.dumps(templates).decode()
    (queue,) = postgres.query(run.session, "email_visits", *told)
    # A run without a visit column warns of it: one that did not warn had the column.
    said = run.previous.warning if run.previous else None
    lost = () if said is None else tuple(name for name in missing if f"no {name}" not in said)
    run.tally.tell_guards(
        no_visits=tuple(missing), lost_visits=lost, visits_queued=queue["visits_queued"]
    )


def one_episode(mart: pl.DataFrame, missing: Sequence[str]) -> pl.DataFrame:
    """Fill visit columns that the mart does not have: its users have one episode for ever."""
    return mart.with_columns(pl.lit(NO_EPISODE_DATE).alias(name) for name in missing)
