"""What `python -m etl.explain` prints for people, made for a terminal of 80 columns."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from etl.cli import report
from etl.explain import lines

if TYPE_CHECKING:
    from collections.abc import Iterable


def page(told: dict[str, Any]) -> str:
    """Return what `explain()` returned as text."""
    now, mart = told["at"], told["mart"]
    runs = {run["sync"]: run for run in told["runs"].get("last", [])}
    sections: dict[str, Iterable[str]] = {
        f"User {told['user_id']}, {now:%Y-%m-%d %H:%M} UTC": (),
        "Mart: what dbt knows": lines.mart(mart, now),
        "CRM: what sales and support see": lines.crm(told["crm"], mart, runs, now),
        "Mails": lines.mails(told["mails"], mart, runs, now),
        "Recommendations: what the search page reads": lines.recommendations(
            told["recommendations"], runs
        ),
        "Rejected rows": lines.rejections(told["rejections"], now),
        "Last runs": lines.runs(told["runs"], now),
    }
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    errors = _Errors()
    with report.capturing(console) as shown:
        for head, section in sections.items():
            console.print(Text(head, "bold"))
            for line in section:
                console.print(Text(_wrapped(errors.once(line))))
            console.print()
    return shown.get().rstrip()


class _Errors:
    """Tells an error that several sections share once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def once(self, line: str) -> str:
        mark, _, error = line.partition("cannot be told: ")
        if not error:
            return line
        if error in self._told:
            return f"{mark}cannot be told, for the reason above"
        self._told.add(error)
        return line


def _wrapped(line: str) -> str:
    width = max(40, min(shutil.get_terminal_size().columns, 80)) - 1
    own = len(line) - len(line.lstrip())
    return textwrap.fill(
        line.lstrip(),
        width,
        initial_indent=" " * (2 + own),
        subsequent_indent=" " * (4 + own),
        break_long_words=len(max(line.split(), key=len, default="")) > width - 8,
        break_on_hyphens=False,
    )
