"""How results look: a table for people, or one JSON object per sync."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etl.options import SyncResult

# How the counts read in a sentence, in the order of telling.
_WORDS = {
    "written": "written",
    "inserted": "inserted",
    "updated": "updated",
    "unchanged": "unchanged",
    "deleted": "deleted",
    "cancelled": "cancelled",
    "suppressed": "suppressed",
    "held_back": "held back",
    "rejected": "rejected",
}


def show(results: Sequence[SyncResult], as_json: bool) -> None:
    """Print results on stdout."""
    if as_json:
        import orjson

        for result in results:
            sys.stdout.write(orjson.dumps(result).decode() + "\n")
        sys.stdout.flush()
    else:
        _table(results)


def _table(results: Sequence[SyncResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sync", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("rows read", justify="right", no_wrap=True)
    table.add_column("what it did", ratio=1)
    table.add_column("seconds", justify="right", no_wrap=True)
    for result in results:
        read = result["extracted"]
        table.add_row(
            result["sync"],
            result["status"],
            "" if read is None else f"{read:,}",
            outcome(result),
            f"{result['seconds']:.2f}",
        )
    console = Console(file=sys.stdout, soft_wrap=False, highlight=False, markup=False)
    console.print(table)
    if any(result["dry_run"] for result in results):
        console.print(
            "Dry run: nothing was changed. In Postgres all was done and rolled back, with the"
            " locks and the time that takes; Redis was only read."
        )


def outcome(result: SyncResult) -> str:
    """One phrase: `12 inserted, 3 updated`, or the error."""
    if "error" in result:
        return result["error"]
    counts = {words: result.get(name) for name, words in _WORDS.items()}
    return ", ".join(f"{count:,} {words}" for words, count in counts.items() if count) or "nothing"
