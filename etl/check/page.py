"""Findings for people: one table, then what to do next."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etl.check.findings import FAIL, OK, SKIPPED, WARN
from etl.cli import report
from etl.plumbing.counted import counted

_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIPPED: "dim"}


def page(findings: Sequence[dict[str, str]]) -> str:
    """Return the table, in the terminal's width, and a last line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        style = _STYLES[one["state"]]
        table.add_row(Text(one["state"], style), one["name"], one["found"])
        if one["advice"]:
            table.add_row("", "", f"-> {one['advice']}")
    with report.capturing(console) as shown:
        console.print(table)
    lines = [line.rstrip() for line in shown.get().splitlines()]
    return "\n".join([*lines, "", _summary([one["state"] for one in findings])])


def _summary(states: Sequence[str]) -> str:
    fails, warns = states.count(FAIL), states.count(WARN)
    warned = counted(warns, "warning")
    if fails:
        things = counted(fails, "thing stops", "things stop")
        them = "it" if fails == 1 else "them from the top"
        also = f", and {warned}" if warns else ""
        return f"{things} a run{also}. Mend {them}; then check again."
    return f"Nothing stops a run{f'; {warned}' if warns else ''}. Next: python -m etl --dry-run"
