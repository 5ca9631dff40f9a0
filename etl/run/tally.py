"""What an attempt read and counted: for its result, its ledger row and the guards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import orjson

from etl.errors import SyncError
from etl.plumbing import log
from etl.result import Change, Outcome, SyncResult, count_names
from etl.run import guards
from etl.run.contract import Rejects
from etl.run.job import Job, PreviousRun
from etl.run.reading import MartReading

_FIGURES = frozenset(each.name for each in fields(guards.Metrics))


@dataclass
class Tally:
    """Figures and findings of one attempt; only its own methods change it."""

    job: Job
    counts: dict[str, int] = field(default_factory=dict)
    metrics: guards.Metrics = field(init=False)  # for the guards
    rejects: Rejects | None = None  # None: the mart was not read through
    outcomes: list[Outcome] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)  # by the event they are logged as
    unmapped: dict[str, int] = field(default_factory=dict)  # users by segment without a template

    def __post_init__(self) -> None:
        self.metrics = guards.Metrics(shards=self.job.shard[1], now=self.job.started_at)

    def tell_guards(self, **figures: Any) -> None:
        """Set figures of `guards.Metrics`."""
        self.metrics = replace(self.metrics, **figures)

    def add_reading(self, mart: MartReading, previous: PreviousRun | None) -> None:
        """Take over how many rows a mart has, accepted and rejected."""
        self.rejects = mart.rejects
        self.counts.update(extracted=mart.rows, rejected=mart.rejects.total, deleted=0)
        self.tell_guards(
            mart_rows=mart.whole.rows,
            built_at=mart.whole.built_at,
            previous_mart_rows=previous.mart_rows if previous else None,
            extracted=mart.rows,
            rejected=mart.rejects.total,
        )

    def count(self, counts: Mapping[str, int]) -> None:
        """Take over what a merge counted: into the result, the guards' figures, or both.

        Raises:
            SyncError: neither knows a count by that name, which would be lost or switch off a
                guard.
        """
        declared = set(count_names(self.job.sync))
        if unknown := sorted(counts.keys() - declared - _FIGURES):
            raise SyncError(
                f"{self.job.sync}: the count {' and '.join(unknown)} is not declared; add it to"
                " `counts` of the sync's line in etl/syncs.py"
            )
        self.counts.update({name: counts[name] for name in counts if name in declared})
        if figures := {name: counts[name] for name in counts if name in _FIGURES}:
            self.tell_guards(**figures)

    def require_counts(self) -> None:
        """See that the sync counted all that its result tells.

        Raises:
            SyncError: it did not, and a result without a count looks as if nothing was done.
        """
        due = set(count_names(self.job.sync))
        if "written" in due:  # keys are written, or in a dry run compared
            compared = {"inserted", "updated", "unchanged"}
            due -= {"written"} if self.job.options.dry_run else compared
        if missing := sorted(due - self.counts.keys()):
            raise SyncError(
                f"{self.job.sync}: nothing was counted as {', '.join(missing)}; let its load() hand"
                " what the merge or the writer returns to run.count()"
            )

    def expect_keys(self, keys: int, ttl: int, previous: PreviousRun | None) -> None:
        """Tell the guards how many keys the run would write, and that they last `ttl` seconds."""
        written_at = previous.began_at if previous else None
        self.tell_guards(
            keys=keys,
            previous_keys=previous.keys(self.job.shard) if previous else 0,
            rows_without_keys=0 if keys else self.metrics.extracted - self.metrics.rejected,
            expiry_note=guards.expiry_note(written_at, ttl, self.metrics.now),
        )

    def add_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Keep what a dry run says would become of the mails.

        Users are named only where that was asked for, because a scheduler keeps what it is given.
        """
        for outcome in outcomes:
            if not self.job.options.name_users:
                outcome.pop("users", None)
            self.outcomes.append(outcome)

    def add_changes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep what a dry run says would become of rows: `user_id`, `change`, `columns` (JSON)."""
        for row in rows:
            columns = orjson.loads(row["columns"])
            self.changes.append(
                Change(user_id=row["user_id"], change=row["change"], columns=columns)
            )

    def warn(self, warnings: Mapping[str, str], unmapped: Mapping[str, int]) -> None:
        """Keep warnings, by the event they are logged as, and users by unmapped segment."""
        self.warnings.update(warnings)
        self.unmapped.update(unmapped)

    def log_warnings(self) -> None:
        """Log the warnings, and the segments without a template."""
        if self.unmapped:
            log.event("segments.unmapped", users=self.unmapped)
        for name, reason in self.warnings.items():
            log.warning(name, reason=reason)

    def result(self, status: str, error: str | None = None) -> SyncResult:
        """Return the counts so far, as the caller gets them."""
        options = self.job.options
        result = {
            "sync": self.job.sync,
            "run_id": self.job.run_id,
            "status": status,
            "dry_run": options.dry_run,
            **{name: self.counts.get(name) for name in count_names(self.job.sync)},
            "seconds": round(time.perf_counter() - self.job.begun, 3),
            **({"unmapped_segments": self.unmapped} if self.unmapped else {}),
            **({"warnings": list(self.warnings.values())} if self.warnings else {}),
            **({"outcomes": self.outcomes} if self.outcomes else {}),
            **({"changes": self.changes} if options.show else {}),
            **({"error": error} if error else {}),
        }
        return cast("SyncResult", result)
