"""What a run now would do about one user, by the functions and the SQL of the syncs themselves."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from etl import cache, email_triggers, recommendations, user_segments, warehouse
from etl.email_triggers import EmailCandidate
from etl.mail import decisions, rules, visits
from etl.options import Options
from etl.recommendations import Recommendation
from etl.run import Attempt, Job, Run
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import dataframely as dy

    from etl.postgres import Connection
    from etl.settings import Settings
    from etl.warehouse import Spool

SYNCS = ("user_segments", "email_triggers", "recommendations")


@dataclass(frozen=True)
class Source:
    """The user's rows of one mart: `accepted` by the contract, and in the spool as reshaped."""

    run: Run
    accepted: list[dict[str, Any]]
    spool: Spool

    @property
    def user_id(self) -> str:
        """Whose rows they are."""
        return self.run.options.only_user or ""

    @property
    def rejected(self) -> list[dict[str, Any]]:
        """The rows that break the contract: `reasons`, and the `row` as it stands in the mart."""
        rows = self.run.mart.rejects.rows.to_dicts()
        return [{"reasons": row["reasons"], "row": orjson.loads(row["row"])} for row in rows]


def read(sync: str, user_id: str, settings: Settings, spill: Path) -> Source:
    """Read the user's rows of the mart of a sync, as a run reads all of them.

    Raises:
        SyncError: the mart cannot be read.
    """
    job = Job(sync, settings, Options(dry_run=True, only_user=user_id))
    run = Run(Attempt(job), spill / sync)
    run.folder.mkdir()
    contract, reshape = _shape(run)
    accepted: list[dict[str, Any]] = []

    def keep(rows: pl.DataFrame) -> pl.DataFrame:
        accepted.extend(rows.to_dicts())
        return reshape(rows)

    return Source(run, accepted, run.read(contract, keep, key=["user_id"]))


def _shape(run: Run) -> tuple[type[dy.Schema], Callable[[pl.DataFrame], pl.DataFrame]]:
    """The contract of a sync, and what it makes of the accepted rows."""
    if run.job.sync == "recommendations":
        min_score = run.settings.reco_min_score
        return Recommendation, partial(recommendations.transform, min_score=min_score)
    if run.job.sync == "email_triggers":
        return EmailCandidate, partial(visits.without_future, now=run.job.started_at)
    return UserSegment, user_segments.transform


def segment(source: Source, row: dict[str, Any] | None) -> dict[str, Any]:
    """Return what user_segments would do to the user's row.

    Args:
        source: the mart.
        row: of crm.user_segments, as in explain_segment.sql; None: there is none.

    Returns:
        `change`: insert, update, unchanged, delete (with --delete-missing alone) or none; and
        `columns`: of those that change the `old` and the `new` value.
    """
    mart, run = source.spool, source.run
    names = mart.schema.names
    frame = pl.DataFrame([row] if row else [], schema=names)
    target = warehouse.write(warehouse.to_batches([frame]), run.folder / "target", mart.key)
    with warehouse.differing(mart, target) as changed:
        new = pl.DataFrame(pl.from_arrow(changed.read_all())).to_dicts()
    with warehouse.missing(target, [mart, run.mart.rejected]) as gone:
        is_gone = any(batch.num_rows for batch in gone)
    if is_gone:
        return _change("delete", names, row, None)
    if not new:
        return {"change": "unchanged" if mart.rows else "none", "columns": {}}
    return _change("update" if row else "insert", names, row, new[0])


def _change(
    change: str, names: list[str], old: dict[str, Any] | None, new: dict[str, Any] | None
) -> dict[str, Any]:
    columns = {
        name: {"old": plain((old or {}).get(name)), "new": plain((new or {}).get(name))}
        for name in names
        if name != "user_id"
    }
    told = {name: values for name, values in columns.items() if values["old"] != values["new"]}
    return {"change": change, "columns": told}


def mails(source: Source, connection: Connection) -> dict[str, Any]:
    """Return what email_triggers would do about the user's occasion and waiting mail.

    Returns:
        `decisions`: `template`, `outcome`, `until`, `episode_at`, `priority` and `payload`, as with
        --decisions; `segment` (None: no accepted row) and `visits` of the mart.
    """
    run = source.run
    decisions.prepare(connection, run.settings, run.as_of, user_id=source.user_id)
    queue = decisions.read_mails(connection, run.folder / "mails").result()
    unsubscribed = decisions.read_unsubscribed(connection, run.folder / "unsubscribed").result()
    triggers = partial(email_triggers.triggers, run.as_of, visits.missing(run))
    known = decisions.Known(source.spool, run.mart.rejected, queue, unsubscribed)
    with decisions.decide(triggers, known, run.as_of, run.settings.email_holdout) as decided:
        told = pl.concat([decisions.to_tell(rows) for rows in decided], how="diagonal")
    row = next(iter(source.accepted), {})
    return {
        "decisions": told.drop("user_id").to_dicts(),
        "segment": row.get("segment"),
        "visits": {name: row[name] for name in rules.VISITS if row.get(name)},
    }


def plain(value: Any) -> Any:
    """Return a value as JSON has it: money is a number there."""
    return float(value) if isinstance(value, Decimal) else value


def key(source: Source, client: cache.Client) -> dict[str, Any]:
    """Return what recommendations would do to the user's key.

    Returns:
        `change`: insert, update, unchanged or none; and the `value` that would be written.
    """
    batches = [
        batch for rows in source.spool.frames() for batch in recommendations.to_key_values(rows)
    ]
    counts = cache.compare(client, batches, source.run.settings)
    words = {"inserted": "insert", "updated": "update", "unchanged": "unchanged"}
    changes = [words[name] for name, keys in counts.items() if keys]
    values = [orjson.loads(value) for batch in batches for _, value in batch]
    return {"change": changes[0] if changes else "none", "value": values[0] if values else None}
