"""A line about what goes on, for people at a terminal and for nobody else."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, segments
from fixture_types import Mart
from pace import HANG

from etl.cli import progress
from etl.plumbing import log

RUN = """
import time
from etl import user_segments
from etl.cli import progress
from etl.plumbing import log
log.configure()
with progress.shown(json={json}):
    log.event("sync.started", sync="slow_sync")
    time.sleep(2)  # it is drawn four times a second
    log.event("sync.finished", sync="slow_sync")
    user_segments.sync()
"""


def test_a_terminal_sees_the_phases_and_afterwards_the_log_alone(mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))

    seen = on_a_terminal(RUN.format(json=False))

    assert re.search(r"slow_sync  reading the mart  \d+ s", seen)
    for event in ("sync.started", "mart.read", "sync.finished"):
        assert re.search(rf"^\S+ \S+ {event}", seen, re.MULTILINE)
    assert "rows.copied" not in seen


def test_the_line_has_phase_rows_and_rate() -> None:
    line = progress.Line()

    def tell(event: str, **fields: object) -> str:
        record = logging.makeLogRecord({"etl_event": event, "etl_fields": fields})
        line.emit(record)
        return line.text()

    assert tell("sync.started", sync="email_triggers") == "email_triggers  reading the mart  0 s"
    assert tell("mart.read", rows=1_000_000) == "email_triggers  loading  1,000,000 rows  0 s"
    assert tell("rows.copied", rows=65_536, of=1_000_000).startswith(
        "email_triggers  copying  65,536 of 1,000,000 rows  "
    )
    assert re.fullmatch(
        r"email_triggers  copying  131,072 of 1,000,000 rows  [\d,]+ rows/s  0 s",
        tell("rows.copied", rows=131_072, of=1_000_000),
    )
    assert "131,072" in tell("something.else", rows=5)
    assert tell("merge.started") == "email_triggers  merging  1,000,000 rows  0 s"
    tell("sync.finished")
    assert str(line.render()) == ""


@pytest.mark.slow
def test_json_switches_it_off(mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))

    assert "reading the mart" not in on_a_terminal(RUN.format(json=True))


def test_where_there_is_no_terminal_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("etl")
    before = list(logger.handlers), logger.level

    with progress.shown():
        log.event("sync.started", sync="user_segments")
        assert (list(logger.handlers), logger.level) == before

    assert capsys.readouterr().err == ""


def on_a_terminal(code: str) -> str:
    """What 80 columns show of a program, each state of the line on a line of its own."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "LOG_FORMAT": "text"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(HANG) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "\n", shown.decode())
