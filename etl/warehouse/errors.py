"""What DuckDB complains of, as one line: what, where, what to do; never with values of rows."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import chain
from typing import TYPE_CHECKING

from etl.errors import SyncError, Transient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOT_DUCKDB = "not a DuckDB file; set DUCKDB_PATH to the file dbt writes"

# What DuckDB says, and what that means to whoever runs the sync.
_PROBLEMS = (
    (
        r"Conflicting lock is held in .*\bPID 0\b",  # it is not among the processes that we see
        "locked by a writer, a process of another machine or container; run again when dbt is done",
    ),
    (
        r"Conflicting lock is held in (.*?)\.? See also",
        "locked by a writer, {}; run again when dbt is done",
    ),
    (r"Could not set lock", "locked by a writer; run again when dbt is done"),
    (
        r"different configuration than existing connections",
        "is open in this very process; close that connection first",
    ),
    (
        r"created with a newer version",
        "written by a newer DuckDB; upgrade the duckdb package of this service",
    ),
    (
        r"created with (DuckDB version .*?)\.?$",
        "written by {}, which is too old; let dbt build it anew",
    ),
    (
        r"encrypted database .* without a key",
        "is encrypted, which is not supported; let dbt write it without a key",
    ),
    (r"not a valid DuckDB database file", NOT_DUCKDB),
    (r"Corrupt|Could not read enough bytes", "damaged; restore it or let dbt build it anew"),
    (
        r'with name "([^".]+)\.[^".]+\.[^"]+" does not exist',
        "a view reads from a database called {0}; if that is this file, name it {0}.duckdb"
        " as dbt knows it, else make the mart a table",
    ),
    (
        r'Ambiguous reference to catalog or schema "(.*?)"',
        "both the file and a schema in it are called {0}, so that {0}.<table> may mean either;"
        " name the file as dbt knows it, or write the catalog too ({0}.{0}.<table>)",
    ),
    (
        r"(?:requires|exists in) the (?:extension (\w+)|(\w+) extension)",
        "a view or the query needs DuckDB's extension {0}{1}, which is not loaded here;"
        " make the mart a table",
    ),
    (
        r"Out of Memory",
        # It has one message for a full folder and for memory that cannot be had by writing to it.
        "more than fits into the memory that a sync allows itself; make room in the temporary"
        " folder (TMPDIR), shorten rows of a megabyte, or run in shards (--shard 0/2, --shard 1/2)",
    ),
)

_KIND = re.compile(r"([A-Z][\w ]*? Error): ")

# Errors of these kinds are of names, statements and files; those of any other may quote rows.
_WITHOUT_VALUES = re.compile(
    r"(Binder|Catalog|Parser|Syntax|IO|Permission|Dependency|Connection) Error"
)
# Errors of these kinds come of values: nothing in them is looked for but their first words.
_OF_VALUES = re.compile(
    r"(Conversion|Out of Range|Invalid Input|Not implemented|Constraint|Mismatch Type) Error"
)
# Up to the first punctuation, and to the first word that could be a value: a quoted one, a number,
# an address.
_WORD = r"(?:[A-Za-z]+|U?INT\d+)(?=[ ,:!]|$)"
_FIRST_WORDS = re.compile(rf"{_WORD}(?:,? {_WORD})*")
_ABSENT_COLUMN = re.compile(
    r'\b[Cc]olumn (?:named )?"(\w+)"(?: (?:was )?not found| does not exist| in \w+ list not|$)',
    re.MULTILINE,
)
_CANDIDATES = re.compile(r"^Candidate (?:binding|table)s: .*$", re.MULTILINE)
_COLUMN = re.compile(r'(?:casting from source column |converting column ")(\w+)')


class WarehouseLocked(Transient):
    """Somebody writes to the file."""


class NotFoundError(SyncError):
    """A table or columns that the warehouse does not have, hence perhaps by other names."""

    def __init__(
        self,
        text: str,
        tables: Sequence[str] = (),
        columns: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> None:
        """`tables` and `columns` were looked for, among them by the `names` that the query has."""
        super().__init__(text)
        self.tables, self.columns = tables, columns
        alike = (get_close_matches(one, names, cutoff=0.5) for one in columns)
        self.alike = [*dict.fromkeys(chain.from_iterable(alike) if columns else names)]


def to_sync_error(
    error: BaseException, path: Path, otherwise: str, what: str = "warehouse"
) -> SyncError:
    """Turn an error of DuckDB's into one line; `otherwise` is the advice for one not known."""
    message = str(error).strip()
    kind = found.group(1) if (found := _KIND.match(message)) else ""
    if not _OF_VALUES.fullmatch(kind):
        for pattern, meaning in _PROBLEMS:
            if found := re.search(pattern, message, re.DOTALL | re.MULTILINE):
                words = (" ".join((group or "").split()) for group in found.groups())
                locked = WarehouseLocked if meaning.startswith("locked") else SyncError
                return locked(f"{what} {path}: {meaning.format(*words)}")
    binding = message if kind == "Binder Error" else ""
    names = re.findall(r'"([^"]+)"', "".join(_CANDIDATES.findall(binding)))
    line = f"{what} {path}: {_told(error, kind, message)}; {otherwise}"
    return NotFoundError(line, columns=_ABSENT_COLUMN.findall(binding), names=names)


def _told(error: BaseException, kind: str, message: str) -> str:
    """As much of a message as cannot hold a value."""
    if _WITHOUT_VALUES.fullmatch(kind):
        return message.partition("\n")[0]
    if not kind:
        reason = error.strerror if isinstance(error, OSError) else None
        return reason or f"{type(error).__name__} of DuckDB"
    first_line = message.partition("\n")[0]
    words = _FIRST_WORDS.match(first_line.removeprefix(f"{kind}: "))
    told = f"{kind}: {words.group()}" if words else kind
    columns = _COLUMN.findall(message)
    return f"{told} (column {columns[-1]})" if columns else told
