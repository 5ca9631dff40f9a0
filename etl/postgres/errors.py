"""What Postgres and its driver complain of, as one line: what, where, what to do.

A server's words are repeated where they can only name objects and settings. Where they may quote a
row, the SQLSTATE is put in words of ours; DETAIL, CONTEXT and statements are never repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from etl.errors import ConnectionLost, SyncError, Transient
from etl.plumbing.redact import one_line
from etl.postgres import causes
from etl.settings import Settings, hidden

# Classes of SQLSTATE whose messages name tables, columns, constraints, roles and settings only.
_NAMES_ONLY = re.compile("08|0A|2[1356]|28|2B|3B|3D|3F|4[024]|5[34578]")

# The others by SQLSTATE or class: `invalid input syntax for type integer: "anna@example.com"`.
_OUR_WORDS = {
    "22001": "a value is too long for its column",
    "22003": "a number is out of range for its column",
    "22021": "a text that its encoding does not allow",
    "22P02": "a value that the type of its column does not allow",
    "22P05": "a character that the encoding of the database cannot hold",
    "22": "a value that cannot be stored or computed",
    "P0": "a function raised an error",
    "": "an error that only the server's log explains",
}

# `PL/pgSQL function crm.check_it() line 3 at RAISE`, in any language: what a function raises may
# hold a row whatever its SQLSTATE, which RAISE can choose.
_IN_A_FUNCTION = re.compile(r"\bPL/|\bpl(?:v8|r|java|rust)\b", re.IGNORECASE)
_FUNCTION = re.compile(r"\bPL/.*?([\w.$]+)\(")
_COPIED_COLUMN = re.compile(r"^COPY \w+, \S+ \d+, \S+ (\w+)")

# libpq heads what a server says with its severity in the server's language and two spaces.
_SERVER_SAYS = re.compile(r"(?:^|[\s:])([^\s:]+(?: [^\s:]+)?) ?:  (\S[^\n]*)")
_TO_SERVER = re.compile(r"connection to server (?:at|on) (.*?) failed: (.*)", re.DOTALL)

# The driver hands on no SQLSTATE of the temporary table that it makes for a COPY.
_NOT_CREATED = re.compile(r"Failed to create table: \S+:  (permission denied to create[^\n]*)")

_LONGEST = 300  # characters of a message from outside


@dataclass(frozen=True)
class _Message:
    """What an error says: who (a SQLSTATE, `refused`, `libpq` or `driver`), and safe words."""

    who: str
    words: str

    @property
    def cause(self) -> causes.Cause:
        """What to do about it, and whether it may pass."""
        return causes.find(f"{self.who} {self.words}")


def to_sync_error(
    error: BaseException, settings: Settings, blocker: str = "", *, connecting: bool = False
) -> SyncError:
    """Turn a driver's error into one line, and take all that may be personal out of the error.

    Args:
        error: the driver's; it stays fit to be the cause of what is returned.
        settings: for names in the advice.
        blocker: who holds the lock that was waited for, if that is known.
        connecting: no statement of ours was begun; what a server says then is a refusal.
    """
    sqlstate = getattr(error, "sqlstate", None)
    heard = _answer(sqlstate, _fields(error)) if sqlstate else _heard(str(error), connecting)
    error.args, error.details = (_safe(heard, settings),), []  # type: ignore[attr-defined]
    return _problem(heard, settings, sqlstate, blocker)


def foreseen(settings: Settings, sqlstate: str, words: str) -> SyncError:
    """Return the error of a statement that Postgres would answer with this SQLSTATE and words."""
    return _problem(_Message(sqlstate, words), settings, sqlstate)


def _safe(heard: _Message, settings: Settings) -> str:
    return one_line(heard.words, settings.secrets)[:_LONGEST]


def _problem(
    heard: _Message, settings: Settings, sqlstate: str | None, blocker: str = ""
) -> SyncError:
    advice = heard.cause.advice.format(
        user=settings.postgres_user,
        seconds=f"{settings.postgres_statement_timeout:g}",
        blocker=blocker or "another session",
    )
    if not advice and sqlstate and sqlstate not in heard.words:
        advice = f" (SQLSTATE {sqlstate})"
    kind = ConnectionLost if heard.cause.passes else Transient if heard.cause.later else SyncError
    words = _safe(heard, settings)
    problem = kind(f"Postgres ({settings.postgres_address}): {words}{advice}")
    problem.sqlstate = sqlstate
    return problem


def _fields(error: BaseException) -> dict[str, str]:
    details = getattr(error, "details", None) or []
    return {
        key.decode().removeprefix("PG_DIAG_"): value.decode(errors="replace")
        for key, value in details
    }


def _answer(sqlstate: str, fields: dict[str, str]) -> _Message:
    """What a server answered to a statement."""
    context = fields.get("CONTEXT", "")
    if _IN_A_FUNCTION.search(context):
        found = _FUNCTION.search(context.split("\n", maxsplit=1)[0])
        name = f"the function {found[1]}" if found else "a function"
        return _Message(sqlstate, f"{name} raised an error (SQLSTATE {sqlstate})")
    if _NAMES_ONLY.match(sqlstate) and (primary := fields.get("MESSAGE_PRIMARY")):
        table = _table(fields) if sqlstate.startswith("23") else ""
        return _Message(sqlstate, f"{primary} ({table})" if table else primary)
    words = next(_OUR_WORDS[key] for key in (sqlstate, sqlstate[:2], "") if key in _OUR_WORDS)
    return _Message(sqlstate, f"{words} ({_place(fields)}SQLSTATE {sqlstate})")


def _place(fields: dict[str, str]) -> str:
    """The column that a value was for, as far as the server names it."""
    copied = _COPIED_COLUMN.match(fields.get("CONTEXT", ""))
    column = fields.get("COLUMN_NAME") or (copied[1] if copied else "")
    named = (("column", column), ("table", _table(fields)), ("type", fields.get("DATATYPE_NAME")))
    return "".join(f"{what} {name}, " for what, name in named if name)


def _table(fields: dict[str, str]) -> str:
    return ".".join(fields[key] for key in ("SCHEMA_NAME", "TABLE_NAME") if key in fields)


def _heard(text: str, connecting: bool) -> _Message:
    """What an error without SQLSTATE says: libpq or the driver made it, or a server that hung up.

    After the first statement of ours a connection that libpq calls cut is that and no refusal,
    whatever the server said before.
    """
    text = re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", hidden(text))  # hidden before it is cut
    if connecting:
        attempts = [_attempt(one) for one in re.split(r"\n(?=connection to server )", text)]
        refusals = [heard for heard in attempts if heard.who == "refused"]
        return next((one for one in refusals if not one.cause.passes), (refusals or attempts)[0])
    if pooler := causes.STATEMENT_POOLING.search(text):  # it hangs up with these words
        return _Message("refused", pooler[0])
    if (cut := causes.CUT.search(text)) and "Python exception" not in text:
        return _Message("libpq", cut[0])
    if denied := _NOT_CREATED.search(text):
        return _Message("42501", denied[1])
    # Such as `nanoarrow call failed: ... Python exception: ...`: what follows may quote a row.
    return _Message("driver", re.split(r"""[:('"\n]""", text, maxsplit=1)[0].strip())


def _attempt(text: str) -> _Message:
    """How one of a host's addresses answered."""
    where = _TO_SERVER.match(text := text.removeprefix("Failed to connect: "))
    server, said = (f"cannot connect to {where[1]}: ", where[2]) if where else ("", text)
    if spoken := _SERVER_SAYS.search(said):
        return _Message("refused", f"{server}{spoken[2]}")
    cut = None if where else causes.CUT.search(said)
    words = cut[0] if cut else said.partition("\n")[0]
    return _Message("libpq", f"{server or 'cannot connect: '}{words}")
