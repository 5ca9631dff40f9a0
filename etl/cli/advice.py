"""The command to type next, after a run that did not go well."""

from __future__ import annotations

import re

# A command that a message names already; etl.status is where the reader comes from.
_COMMAND = re.compile(r"python -m etl\.(?!status)\w+(?: --[a-z-]+)*")


def next_command(sync: str, status: str, error: str | None) -> str:
    """Return the command to type next.

    Args:
        sync: its name.
        status: of the run, as in the ledger.
        error: what the run said.
    """
    if named := _COMMAND.search(error or ""):
        return named[0]
    if (error or "").startswith("not run, because"):  # all in turn, so that the first goes first
        return "python -m etl"
    # A guard that is asked again shows its figures, and a dry run does no harm.
    return f"python -m etl.{sync}{' --dry-run' if status == 'refused' else ''}"
