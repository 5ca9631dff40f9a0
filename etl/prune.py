"""`python -m etl.prune --days N`: drop what nobody needs any more from ledger and mail queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etl.cli import arguments
from etl.errors import UsageError
from etl.plumbing import failure
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection

_ABOUT = (
    "Drop ledger rows, rejected rows and finished mails that are older than --days.",
    "What a later run needs stays, however old: the last runs of each sync, and a mail whose"
    " episode could come again or whose cooldown is not over (a welcome for ever, so that nobody"
    " is welcomed twice). Settings come from the environment (see .env.example).",
)


@dataclass(frozen=True)
class Flags:
    """What was asked for on the command line."""

    days: float | None = arguments.flag(None, "N", "how many days to keep; must be given")
    dry_run: bool = arguments.flag(False, "", "drop nothing, only count")

    def __post_init__(self) -> None:
        if self.days is None:
            raise UsageError("--days N must be given: how many days to keep")
        _check(self.days)


@failure.sanitised()
def prune(days: float, *, dry_run: bool = False) -> dict[str, int]:
    """Drop what is older than `days` and return how many rows of each table.

    Raises:
        UsageError: `days` is not a number from 1 on.
        SyncError: Postgres cannot be reached or does not let us; nothing was dropped.
    """
    import orjson

    from etl import postgres
    from etl.mail.rules import limits

    _check(days)
    settings = Settings.from_environment()
    rules = orjson.dumps(limits()).decode()
    hours = (settings.email_min_gap_hours, settings.guard_max_age_hours)
    with postgres.trusted_session(settings, "etl.prune") as connection:
        dropped = {
            # First, because it looks at the ledger as it was.
            "crm.email_queue": _drop(connection, "crm.email_queue", "queue", days, rules, *hours),
            "etl.sync_runs": _drop(connection, "etl.sync_runs", "runs", days),
            "etl.rejected_rows": _drop(connection, "etl.rejected_rows", "rejects", days),
        }
        if dry_run:
            connection.rollback()
        else:
            connection.commit()
    return dropped


def _drop(connection: Connection, table: str, what: str, *parameters: Any) -> int:
    from etl import postgres

    (first,) = postgres.write(connection, table, f"prune_{what}", *parameters)
    if first["rows"] == first["due"]:
        return int(first["rows"])
    # Another session may have dropped or revived the others; what is due still was kept.
    (again,) = postgres.write(connection, table, f"prune_{what}", *parameters)
    postgres.refuse_unwritten(connection, table, again["due"] - again["rows"])
    return int(first["rows"] + again["rows"])


def _check(days: object) -> None:
    if isinstance(days, bool) or not isinstance(days, int | float) or not 1 <= days <= 36_500:
        raise UsageError(f"--days takes a number of days from 1 on, not {days!r}")


def _run(flags: Flags) -> int:
    from etl.cli import report

    done = "would go" if flags.dry_run else "dropped"
    for table, rows in prune(flags.days or 0, dry_run=flags.dry_run).items():
        report.write(f"{table:<18}{rows:>10,} {'row' if rows == 1 else 'rows'} {done}")
    return 0


if __name__ == "__main__":
    arguments.main(Flags, "etl.prune", _ABOUT, _run)
