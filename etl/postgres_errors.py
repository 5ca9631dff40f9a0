"""What Postgres and its driver complain of, as one line: what, where, what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from etl.errors import Lost, SyncError

if TYPE_CHECKING:
    from etl.settings import Settings

_UNDEFINED = {"3F000", "42P01", "42703"}  # schema, table, column
_INIT = "run `python -m etl.init_db` (make init-db) to bring the database up to date"

# The server is going down, coming up or full, or it undid our work for another session's sake:
# the same may well succeed in a moment.
_PASSING = re.compile(r"08...|57P0[123]|53300|40001|40P01")
# The same as libpq words it, which has no SQLSTATE for what comes of the network.
_CUT = re.compile(r"connect|could not (send|receive|translate)|SSL SYSCALL|timeout|timed out")
_FOR_GOOD = re.compile(
    r"password|pg_hba|does not exist|certificate|not support SSL|SSL error|error state|invalid"
)


def explained(error: BaseException, settings: Settings, blocker: str = "") -> SyncError:
    """Turn a driver's error into one line: what, where, what to do."""
    sqlstate = getattr(error, "sqlstate", None)
    message = _primary_message(error)
    advice = _advice(sqlstate, message, settings, blocker)
    kind = Lost if _may_pass(sqlstate, message) else SyncError
    problem = kind(f"Postgres ({settings.postgres_address}): {message}{advice}")
    problem.sqlstate = sqlstate
    return problem


def _advice(sqlstate: str | None, message: str, settings: Settings, blocker: str) -> str:
    if sqlstate in _UNDEFINED:
        return f"; {_INIT}"
    if sqlstate == "42501":
        return f"; grant it to {settings.postgres_user}"
    if sqlstate == "55P03" and blocker:
        return f": {blocker} holds it; wait for it or end it"
    if sqlstate == "57014" and "timeout" in message:
        seconds = settings.postgres_statement_timeout
        return f"; a statement may take {seconds:g} s (POSTGRES_STATEMENT_TIMEOUT)"
    if sqlstate is None and "connect" in message:
        return f"; {_connect_hint(message)}"
    return f" (SQLSTATE {sqlstate})" if sqlstate else ""


def _may_pass(sqlstate: str | None, message: str) -> bool:
    if sqlstate is not None:
        return bool(_PASSING.fullmatch(sqlstate))
    return bool(_CUT.search(message)) and not _FOR_GOOD.search(message)


def _primary_message(error: BaseException) -> str:
    """The server's own first line: no DETAIL, which holds row values, and no query text."""
    for key, value in getattr(error, "details", None) or []:
        if key == b"PG_DIAG_MESSAGE_PRIMARY":
            return " ".join(value.decode(errors="replace").split())
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    first = re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", first)
    first = first.replace("Failed to connect: connection to server at ", "cannot connect to ")
    return first.replace("Failed to connect: ", "cannot connect: ")


def _connect_hint(message: str) -> str:
    if re.search("certificate|SSL|sslmode", message):
        return "check PGSSLMODE, PGSSLROOTCERT and POSTGRES_HOST"
    if "password" in message or "no pg_hba.conf entry" in message:
        return "check POSTGRES_USER and POSTGRES_PASSWORD"
    if "database" in message and "does not exist" in message:
        return "check POSTGRES_DB"
    return "is it up, and are POSTGRES_HOST and POSTGRES_PORT right?"
