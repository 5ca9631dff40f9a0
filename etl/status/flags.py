"""The flags of `python -m etl.status`, and how far back it looks."""

from __future__ import annotations

from dataclasses import dataclass

from etl.cli import arguments
from etl.errors import UsageError
from etl.syncs import SYNCS

# Runs that the trend looks back on.
TREND = 12

# Of the page for browsers: runs that have a bar, and runs in its list.
HTML_RUNS = 30

# Redis keys live for so long (recommendations.TTL_SECONDS): without a run they are gone then. The
# DAG runs every six hours, so that three runs may fail before.
OVERDUE_HOURS = 24.0


@dataclass(frozen=True)
class Flags:
    """What was asked for on the command line."""

    sync: str = arguments.flag("all", "NAME", f"{', '.join(SYNCS)}, or all of them (all)")
    max_age: float | None = arguments.flag(
        None,
        "HOURS",
        f"overdue is a sync without an ok run for so long ({OVERDUE_HOURS:g}); exit 1 where one is",
    )
    check: bool = arguments.flag(
        False,
        "",
        "for health checks: print only what is wrong, exit 1 where a sync's last run was not ok or"
        " is overdue",
    )
    history: int = arguments.flag(0, "N", "also list the last N runs")
    html: str | None = arguments.flag(None, "FILE", "write a page for a browser to FILE")
    prometheus: bool = arguments.flag(
        False, "", "print metrics, for the node exporter's textfile collector"
    )
    json: bool = arguments.flag(False, "", "print one JSON object on stdout and nothing else there")

    def __post_init__(self) -> None:
        if self.sync not in ("all", *SYNCS):
            raise UsageError(f"unknown sync {self.sync!r}; it can be all, {', '.join(SYNCS)}")
        if self.max_age is not None and not _is_number(self.max_age):
            raise UsageError(f"--max-age takes a number of hours, not {self.max_age!r}")
        if not _is_number(self.history) or self.history != int(self.history):
            raise UsageError(f"--history takes a whole number from 0 on, not {self.history!r}")
        if [self.html is not None, self.json is True, self.prometheus is True].count(True) > 1:
            raise UsageError("--html, --json and --prometheus: give one of them")

    @property
    def syncs(self) -> tuple[str, ...]:
        """The syncs to look at."""
        return SYNCS if self.sync == "all" else (self.sync,)

    @property
    def runs(self) -> int:
        """How many runs of a sync its trend looks back on."""
        return HTML_RUNS if self.html is not None else TREND

    @property
    def listed(self) -> int:
        """How many runs to list."""
        return max(self.history, HTML_RUNS if self.html is not None else 0)

    @property
    def hours(self) -> float:
        """How many hours without an ok run make a sync overdue."""
        return OVERDUE_HOURS if self.max_age is None else self.max_age


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
