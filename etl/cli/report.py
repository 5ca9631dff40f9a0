"""How results look: a table for people, or one JSON object per sync, on stdout."""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from etl.errors import SyncError
from etl.plumbing import redact
from etl.plumbing.redact import escaped, quote_value
from etl.result import count_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Capture, Console
    from rich.table import Table
    from rich.text import Text

    from etl.result import Change, Outcome, SyncResult

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
    "below_threshold": "below the score threshold",
    "rejected": "rejected",
}

# Counts that other lines of the page tell.
_UNTOLD = {"extracted", "unmapped"}

_CHANGES = {"insert": "inserted", "update": "updated", "delete": "deleted"}

# An address or a command to copy stays in one piece.
_NO_WORD_BREAK: Any = {"break_long_words": False, "break_on_hyphens": False}


def show(results: Sequence[SyncResult], as_json: bool, *, reasons: bool = True) -> None:
    """Print results on stdout: one JSON object each, or a table and why a sync did not work."""
    if as_json:
        write("\n".join(map(redact.as_json, results)))
    else:
        write(_page(results, reasons))


def print_reasons(results: Sequence[SyncResult]) -> None:
    """Print one line on stderr for each sync that did not do its work."""
    for result in results:
        if "error" in result and result["status"] != "cancelled":  # which is told by itself
            line = f"etl: {reason(result)}"
            if sys.stderr.isatty():
                width = shutil.get_terminal_size().columns - 1
                line = textwrap.fill(line, width, subsequent_indent="  ", **_NO_WORD_BREAK)
            print(line, file=sys.stderr)  # noqa: T201


def reason(result: SyncResult) -> str:
    """Why a sync did not do its work, in one line."""
    return escaped(f"{result['sync']} {result['status']}: {result['error']}")


def outcome(result: SyncResult) -> str:
    """What an ok run did, in one phrase: `12 inserted, 3 updated`."""
    if result["status"] != "ok":
        return ""
    names = [*_WORDS, *(name for name in count_names(result["sync"]) if name not in _UNTOLD)]
    told = {name: _WORDS.get(name, name.replace("_", " ")) for name in names}
    counts = {words: result.get(name) for name, words in told.items()}
    return ", ".join(f"{count:,} {words}" for words, count in counts.items() if count) or "nothing"


def outcome_or_error(run: Any) -> str:
    """What a run of the ledger did, or why it did not."""
    return run["error"] or outcome(run)


def write(text: str) -> None:
    """Print on stdout; a reader who has gone (`| head`) does not stop the syncs.

    Raises:
        SyncError: it cannot be written to.
    """
    if sys.stdout is None:  # closed
        return
    with _telling_of_stdout():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


@contextmanager
def capturing(console: Console) -> Iterator[Capture]:
    """Capture what the console prints, which writes to stdout, if only nothing: see `write`."""
    with _telling_of_stdout(), console.capture() as shown:
        yield shown


@contextmanager
def _telling_of_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            reason = f"{error.strerror}; python -m etl.status shows which syncs are done"
            raise SyncError(f"stdout: {reason}") from error


def escape_unencodable() -> None:
    r"""Let stdout write as \uXXXX what its encoding does not have, as JSON does."""

    def escape(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("etl_escape", escape)
        sys.stdout.reconfigure(errors="etl_escape")


def _page(results: Sequence[SyncResult], reasons: bool) -> str:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    with capturing(console) as page:
        console.print(_table(results))
        for result in results:
            if "unmapped_segments" in result:
                console.print(_unmapped(result["unmapped_segments"]))
            if "outcomes" in result:
                console.print()
                console.print(_outcomes(result["outcomes"], console.width))
                console.print()
            if "changes" in result:
                console.print()
                console.print(_changes(result["changes"]))
                console.print()
        if any(result["dry_run"] for result in results):
            console.print(_dry(results))
        for result in results if reasons else ():
            if "error" in result:
                console.print(f"\n{reason(result)}")
    return page.get().rstrip()


def _table(results: Sequence[SyncResult]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sync", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("rows read", justify="right", no_wrap=True)
    table.add_column("what it did")
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
    return table


def _outcomes(outcomes: Sequence[Outcome], width: int) -> Text:
    """One row an outcome; below it the users that are named, who are too many for a column."""
    from rich.text import Text

    head = ("template", "would be", "mails")
    rows = [head, *((one["template"], one["outcome"], f"{one['mails']:,}") for one in outcomes)]
    first, second, third = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{name:{first}}  {what:{second}}  {mails:>{third}}" for name, what, mails in rows]
    page = Text(lines[0], "bold")
    for line, one in zip(lines[1:], outcomes, strict=True):
        users = ", ".join(map(quote_value, one.get("users", [])))
        told = textwrap.wrap(
            users, width, initial_indent="    ", subsequent_indent="    ", **_NO_WORD_BREAK
        )
        page.append("\n".join(["", line, *told]), "not bold")
    return page


def _changes(changes: Sequence[Change]) -> Table | str:
    from rich.table import Table

    if not changes:
        return "No user would change."
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("user", overflow="fold", max_width=30)
    table.add_column("would be")
    table.add_column("old -> new")
    for one in changes:
        what = "\n".join(change_of(name, **values) for name, values in one["columns"].items())
        table.add_row(quote_value(one["user_id"]), _CHANGES[one["change"]], what)
    return table


def change_of(column: str, old: object, new: object) -> str:
    """Return what becomes of a column in a few words: `segment at_risk -> regular`."""
    values = [_shown(value) for value in (old, new) if value is not None]
    return f"{column} {' -> '.join(values)}"


def _shown(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else quote_value(value)


def _unmapped(segments: dict[str, int]) -> str:
    names = ", ".join(f"{quote_value(name)} {users:,}" for name, users in segments.items())
    return f"Users of segments without a template: {names}."


def _dry(results: Sequence[SyncResult]) -> str:
    """What the dry runs did: a guard refuses at the end of one, a failure ends it on the way."""
    groups: dict[str, list[str]] = {}
    for result in results:
        groups.setdefault(_done(result), []).append(result["sync"])
    told = (f"{' and '.join(names)}: {done}." for done, names in groups.items())
    return " ".join(["Dry run: nothing was changed.", *told])


def _done(result: SyncResult) -> str:
    in_redis, status = "written" in result, result["status"]
    if status == "refused" and result["extracted"] is None:
        return "not begun"
    if status in ("ok", "refused"):
        postgres = (
            "all was done in Postgres and rolled back, with the locks and the time that takes"
        )
        return "Redis was only read" if in_redis else postgres
    postgres = "ended on the way, and what was done in Postgres by then was rolled back"
    return "ended on the way; Redis was at most read" if in_redis else postgres
