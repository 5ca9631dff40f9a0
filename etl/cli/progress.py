"""A line on the terminal that says what a sync is doing: phase, rows, rate.

It is fed by the events of the log, so that the syncs know nothing of it.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

# An event -> what begins with it. What has no entry leaves the phase as it is.
_PHASES = {
    "sync.started": "reading the mart",
    "lock.waiting": "waiting for another run",
    "mart.read": "loading",
    "rows.copied": "copying",
    "merge.started": "merging",
    "merge.done": "finishing",
    "keys.sent": "writing keys",
}

# Phases whose events tell how many rows they are through.
_COUNTING = {"copying", "writing keys"}


@contextmanager
def shown(*, json: bool = False) -> Iterator[None]:
    """Show the line for the length of a block, where stderr is a terminal; never with `json`."""
    if json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    logger, line = logging.getLogger("etl"), Line()
    others = [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    level = logger.level
    # transient: what was done is told by the log and the result, not by a line left behind.
    with Live(console=Console(stderr=True), get_renderable=line.render, transient=True):
        # Live has put a stream in the place of stderr that prints above the line.
        streams = [(handler, handler.setStream(sys.stderr)) for handler in others]
        for handler in others:
            handler.setLevel(max(handler.level, level))
        logger.setLevel(logging.DEBUG)
        logger.addHandler(line)
        try:
            yield
        finally:
            logger.removeHandler(line)
            logger.setLevel(level)
            for handler, stream in streams:
                if stream is not None:
                    handler.setStream(stream)


class Line(logging.Handler):
    """The state of the line; each event moves it on."""

    def __init__(self) -> None:
        from rich.spinner import Spinner

        super().__init__(logging.DEBUG)
        self._spinner = Spinner("line")
        self._sync = self._phase = ""
        self._mart_rows = self._rows = self._first = self._of = 0
        self._since = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Take an event of the log for the beginning of a phase, or for news of one."""
        event = getattr(record, "etl_event", "")
        fields: dict[str, Any] = getattr(record, "etl_fields", {})
        if event in {"sync.started", "sync.finished"}:
            self._sync = fields.get("sync", "") if event == "sync.started" else ""
            self._phase, self._mart_rows = "", 0
        if event not in _PHASES:
            return
        if event == "mart.read":
            self._mart_rows = fields["rows"]
        # Several tables are copied; what is merged is the mart.
        self._rows, self._of = fields.get("rows", self._mart_rows), fields.get("of", 0)
        if _PHASES[event] != self._phase or self._rows < self._first:
            self._phase, self._since, self._first = _PHASES[event], time.monotonic(), self._rows

    def render(self) -> RenderableType:
        """The line as rich shows it; empty between two syncs."""
        from rich.text import Text

        self._spinner.text = Text(self.text(), no_wrap=True, overflow="ellipsis")
        return self._spinner if self._sync else Text()

    def text(self) -> str:
        """What is going on: sync, phase, rows, rate, and for how long."""
        seconds = time.monotonic() - self._since
        parts = [self._sync, self._phase]
        if self._rows:
            parts.append(f"{self._rows:,}{f' of {self._of:,}' if self._of else ''} rows")
        if self._phase in _COUNTING and self._rows > self._first and seconds > 0:
            parts.append(f"{(self._rows - self._first) / seconds:,.0f} rows/s")
        return "  ".join([*parts, f"{seconds:.0f} s"])
