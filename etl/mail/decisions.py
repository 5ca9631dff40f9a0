"""What becomes of each occasion and each waiting mail.

One statement decides (sql/warehouse/email_decisions.sql). A run stages what it answers; a dry run,
`--decisions` and etl.explain tell it. What it is handed is read here: the queue's mails with what
the rules say of them by the server's clock, and who unsubscribed.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
import polars as pl

from etl import postgres, warehouse
from etl.mail import rules
from etl.mail.rules import NO_EPISODE_DATE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    import pyarrow as pa

    from etl.postgres import Call, Connection
    from etl.result import Outcome
    from etl.settings import Settings
    from etl.warehouse import Spool

    Triggers = Callable[[Spool, Spool], Iterator[pl.DataFrame]]

# What becomes of one mail, as told to people.
TOLD = ("user_id", "template", "outcome", "until", "episode_at", "priority", "payload")

_OPEN = ("pending", "processing")

# What sql/warehouse/email_decisions.sql reads the mails for that were sent or have ended.
_USES_OF_PAST = ("ended", "resting", "recent")

# What DuckDB holds in memory of users who unsubscribed and of mails, for each byte on disk: a mail
# of the past is in three joins, and was grouped before two of them. Measured with ids of 11 bytes
# and of 200.
_OF_UNSUBSCRIBED, _OF_OPEN, _OF_PAST = 2, 1.5, 4.5

# How much of it there may be at once (etl/warehouse/compare.py: _QUERY_BYTES).
_ROOM = 85_000_000

# A process may have some 1,000 files open.
_MOST_PARTS = 400

_ACTIONS = ("is_queued", "is_held_out", "is_refreshed")
_STAGED = (
    *("user_id", "template", "episode_at", "priority", "payload", "expires_at"),
    *(*_ACTIONS, "is_due", "is_without_episode", "revived_id"),
    *("waiting_id", "waiting_expires_at", "reason"),
)


@dataclass(frozen=True)
class Mails:
    """What the queue holds: mails that are open, and those that are no longer pending.

    A mail that is being sent is both.
    """

    open: Spool
    past: Spool


@dataclass(frozen=True)
class Known:
    """What decisions go by, on disk."""

    mart: Spool  # accepted rows, without visits in the future
    rejected: Spool  # keys of the others
    mails: Mails
    unsubscribed: Spool

    def parts(self) -> Iterator[Known]:
        """Hand out the users in parts of which all mails fit into memory; mostly there is one."""
        mails = self.mails
        room = _OF_OPEN * mails.open.bytes + _OF_PAST * mails.past.bytes
        room += _OF_UNSUBSCRIBED * self.unsubscribed.bytes
        parts = min(math.ceil(room / _ROOM), _MOST_PARTS)
        spools = (self.mart, self.rejected, mails.open, mails.past, self.unsubscribed)
        split = [warehouse.split(spool, "user_id", parts) for spool in spools]
        for mart, rejected, open_, past, unsubscribed in zip(*split, strict=True):
            yield Known(mart, rejected, Mails(open_, past), unsubscribed)


def prepare(
    connection: Connection,
    settings: Settings,
    oldest: dt.datetime,
    *,
    shard: tuple[int, int] = (0, 1),
    user_id: str = "",
) -> None:
    """Tell this transaction what `read_mails` and `read_unsubscribed` are to read.

    Args:
        connection: its transaction may be one that only reads.
        settings: EMAIL_MIN_GAP_HOURS.
        oldest: when a mart may have been built at the earliest: mails that no such mart could
            call for are not read.
        shard: (i, n) reads the users whose hash modulo n is i.
        user_id: reads one user alone; "" reads all.
    """
    limits, gap = orjson.dumps(rules.limits()).decode(), settings.email_min_gap_hours
    postgres.query(connection, "email_settings", limits, gap, oldest.isoformat(), *shard, user_id)


def read_mails(connection: Connection, path: Path) -> Call[Mails]:
    """Start reading what the queue holds into two files; each payload becomes its hash."""

    def spool(batches: pa.RecordBatchReader) -> Mails:
        frames = (with_hash(frame).drop("payload") for frame in _frames(batches))
        first = next(frames)
        open_path, past_path = (path.with_name(f"{path.name}_{of}") for of in ("open", "past"))
        schema = first.to_arrow().schema
        with (
            warehouse.Writer(open_path, schema, ["id"]) as open_,
            warehouse.Writer(past_path, schema, ["id"]) as past,
        ):
            for frame in frames:
                open_.add_rows(frame.filter(pl.col("status").is_in(_OPEN)))
                past.add_rows(frame.filter(pl.col("status") != "pending"))
        return Mails(open_.spool, past.spool)

    return postgres.stream(connection, "email_mails", spool)


def read_unsubscribed(connection: Connection, path: Path) -> Call[Spool]:
    """Start reading who must not be mailed into a file."""

    def spool(batches: pa.RecordBatchReader) -> Spool:
        return warehouse.write(warehouse.to_batches(_frames(batches)), path, ["user_id"])

    return postgres.stream(connection, "email_unsubscribed", spool)


@contextmanager
def decide(
    triggers: Triggers, known: Known, as_of: dt.datetime, holdout: float
) -> Iterator[Iterator[pl.DataFrame]]:
    """Stream what was decided, one row a user with an occasion or a waiting mail of ours.

    Args:
        triggers: makes of the mart's rows, and of the keys that were rejected, one row a user:
            columns of `email_triggers.transform`, payload_hash (see `with_hash`) and rejected
            bool; template is null where the segment calls for no mail. Rows come out in this
            order, then those of users who are not in it; where the queue is large, users by the
            hash of their key.
        known: the mart and what the queue holds.
        as_of: the mart's build time.
        holdout: EMAIL_HOLDOUT, the part of the users who are held out.
    """
    variables = {"as_of": as_of, "no_episode": NO_EPISODE_DATE, "holdout": holdout}

    def decided() -> Generator[pl.DataFrame]:
        for part in known.parts():
            streams = {
                "triggers": warehouse.to_batches(triggers(part.mart, part.rejected)),
                "unsubscribed": part.unsubscribed.batches(),
                "mails_open": part.mails.open.batches(),
                **{f"mails_{use}": part.mails.past.batches() for use in _USES_OF_PAST},
            }
            folder = part.mart.path.parent
            with warehouse.joined("email_decisions", folder, streams, variables) as rows:
                yield from _frames(rows)

    with closing(decided()) as frames:
        yield frames


def with_hash(rows: pl.DataFrame) -> pl.DataFrame:
    """Add payload_hash, which payloads are compared by: joins hold it in memory in their place."""
    payload = pl.col("payload")
    hashed = pl.when(payload.is_not_null()).then(payload.hash())
    return rows.with_columns(payload_hash=hashed)


def to_stage(decided: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that change the queue, with the columns that the merge needs."""
    changes = pl.any_horizontal(*_ACTIONS, pl.col("reason").is_not_null())
    return decided.filter(changes).select(_STAGED)


def to_tell(decided: pl.DataFrame) -> pl.DataFrame:
    """Return one row per occasion and per waiting mail that is taken back, columns as in TOLD."""
    occasions = decided.filter(pl.col("outcome").is_not_null()).select(TOLD)
    cancelled = decided.filter(pl.col("reason").is_not_null()).select(
        "user_id",
        template=pl.col("waiting_template"),
        outcome=pl.lit("cancelled: ") + pl.col("reason"),
        episode_at=pl.col("waiting_episode_at"),
        priority=pl.col("waiting_priority"),
    )
    return pl.concat([occasions, cancelled], how="diagonal")


@dataclass
class Totals:
    """What was decided, counted as it streams by."""

    sums: Counter[str] = field(default_factory=Counter)
    mails: Counter[tuple[str, str]] = field(default_factory=Counter)  # by template and outcome
    users: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # five of them

    def add(self, decided: pl.DataFrame) -> None:
        """Count the rows of a frame, and keep nothing that would hold it in memory."""
        self.sums.update(
            decided.select(
                pl.col("due", "is_candidate", "is_without_episode").sum(),
                is_suppressed=(pl.col("outcome") == "suppressed").sum(),
            ).row(0, named=True)
        )
        told = to_tell(decided).group_by("template", "outcome")
        counted = told.agg(pl.len(), pl.col("user_id").sort().head(5))
        for template, outcome, mails, users in counted.iter_rows():
            key = (template, outcome)
            self.mails[key] += mails
            self.users[key] = sorted([*self.users.get(key, []), *users])[:5]

    def outcomes(self) -> list[Outcome]:
        """Return what a dry run tells, by template and outcome."""
        return [
            {"template": key[0], "outcome": key[1], "mails": mails, "users": self.users[key]}
            for key, mails in sorted(self.mails.items())
        ]

    def cancelled(self) -> Counter[str]:
        """Return how many waiting mails of each template are to be cancelled."""
        counts: Counter[str] = Counter()
        for (template, outcome), mails in self.mails.items():
            if outcome.startswith("cancelled: "):
                counts[template] += mails
        return counts


def _frames(batches: pa.RecordBatchReader) -> Iterator[pl.DataFrame]:
    """Stream Arrow batches as frames, one at least."""
    yield pl.DataFrame(pl.from_arrow(batches.schema.empty_table()))
    for batch in batches:
        yield pl.DataFrame(pl.from_arrow(batch))
