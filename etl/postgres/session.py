"""A session in Postgres: transactions of our own making, each with settings of its own."""

from __future__ import annotations

import datetime as dt
import os
import socket
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from etl.errors import ConnectionLost, SyncError
from etl.plumbing import cancellation, queries
from etl.plumbing.threads import in_thread
from etl.postgres import errors, sessions
from etl.postgres.call import (
    GRACE_SECONDS,
    STOP_SECONDS,
    Call,
    NoAnswerError,
    lock_timeout,
)
from etl.postgres.login import CONNECT_SECONDS, login
from etl.settings import hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.settings import Settings

_T = TypeVar("_T")

# Said by ourselves, because the driver knows no savepoints in a transaction that it began; as a
# script, because that is one message: a pooler might give the second of two to another session.
# The role is that of the login, also where another program of the pool left another one.
_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED;"
    " SET LOCAL session_authorization TO DEFAULT; SET LOCAL role TO DEFAULT"
)
_STATUS, _OPEN = "adbc.postgresql.transaction_status", ("intrans", "active")


class Connection:
    """What ADBC offers, one call at a time.

    After a call that does not end, although it was told to, the connection is `abandoned`: the
    server undoes what it holds when the process is gone.

    Settings are made for each transaction anew and end with it (session.sql), because a pooler
    may give each transaction another session, and that session to somebody else afterwards.
    """

    def __init__(self, raw: Raw, settings: Settings) -> None:
        self._raw, self._settings = raw, settings
        self._pid: int | None = None  # of the server's process; None: no transaction is open
        self._last: Call[Any] | None = None
        self._hung_up = False

    @property
    def abandoned(self) -> bool:
        """Whether nothing more can be done on it."""
        return self._hung_up or (self._last is not None and self._last.abandoned)

    def call(self, work: Callable[[Raw], _T]) -> _T:
        """Do blocking work on the driver's connection.

        Raises:
            SyncError: as `Call.result`.
        """
        return self.submit(work).result()

    def call_alone(self, work: Callable[[Raw], _T]) -> _T:
        """Do work that must not be in a transaction, with the settings of the role."""
        if self._pid is not None:
            raise SyncError("a transaction is open")
        return self._start(work).result()

    def submit(self, work: Callable[[Raw], _T]) -> Call[_T]:
        """Start work on the driver's connection.

        Raises:
            ConnectionLost: an earlier call got no answer.
            SyncError: an earlier call is under way.
        """

        def pinned(raw: Raw) -> _T:
            self._pin(raw)
            return work(raw)

        return self._start(pinned)

    def commit(self) -> None:
        """Make what was done since the last commit last.

        Raises:
            SyncError: it failed and nothing lasts; `ConnectionLost`, where the ledger tells
                whether it lasts, once the server is back.
        """
        status = self._raw.adbc_connection.get_option(_STATUS)
        if self._pid is not None and status not in _OPEN:  # COMMIT itself would not tell
            raise SyncError(
                f"Postgres ({self._settings.postgres_address}): no transaction to commit"
            )
        try:
            self._end("COMMIT")
        except NoAnswerError as error:
            raise ConnectionLost(str(error)) from error

    def rollback(self) -> None:
        """Undo what was done since the last commit."""
        self._end("ROLLBACK")

    def try_rollback(self) -> None:
        """Roll back if that can be done at once.

        A connection that the server has cut cannot, and one that was interrupted at the wrong
        moment may never answer: the server undoes both.
        """
        if self._pid is not None:
            self._with_deadline(partial(execute_raw, self._raw, "ROLLBACK"))

    def cancel(self) -> None:
        """Have the server end what is under way, if anything is."""
        if self._last is not None and not self.abandoned:
            self._last.cancel()

    def close(self) -> None:
        """End the session; what it did not commit is undone, and its locks are free at once."""
        self._with_deadline(partial(_hang_up, self._raw, self._pid is not None))

    def _pin(self, raw: Raw) -> None:
        """Begin a transaction that means the same whatever the server and role are set to."""
        if self._pid is not None:
            return
        with raw.cursor() as cursor:
            cursor.executescript(_BEGIN)
        limits = (self._settings.postgres_statement_timeout, lock_timeout(self._settings))
        milliseconds = tuple(f"{seconds * 1000:.0f}" for seconds in limits)
        (own,) = fetch_raw(raw, queries.load("postgres", "session"), milliseconds)
        self._pid = own["pid"]

    def _end(self, statement: str) -> None:
        if self._pid is None:
            return
        try:
            self._start(partial(execute_raw, sql=statement)).result()
        finally:
            self._pid = None

    def _start(self, work: Callable[[Raw], _T]) -> Call[_T]:
        if self.abandoned:
            address = self._settings.postgres_address
            raise ConnectionLost(f"Postgres ({address}): the connection is gone")
        if self._last is not None and not self._last.is_over():
            raise SyncError("an earlier call on this connection is under way")
        self._last = call = Call(work, self._raw, self._settings, self._blockers)
        return call

    def _blockers(self) -> str:
        """Tell who holds the lock that this session waits for; "": nobody, or it cannot be told."""
        with suppress(SyncError), session(self._settings, "etl.look") as other:
            sql = queries.load("postgres", "blockers")
            blockers = other.call(partial(fetch_raw, sql=sql, parameters=(self._pid,)))
            return "; ".join(sessions.described(blocker) for blocker in blockers)
        return ""

    def _with_deadline(self, work: Callable[[], None]) -> None:
        self.cancel()
        if not self.abandoned:
            self._pid = None
            self._hung_up = not wait([in_thread(work)], timeout=STOP_SECONDS).done


def connect(settings: Settings, purpose: str) -> Connection:
    """Open a connection that names itself `purpose pid@host` in pg_stat_activity.

    Raises:
        ConnectionLost: the server cannot be reached now.
        SyncError: it does not let us in.
    """
    from adbc_driver_postgresql import dbapi

    application = f"{purpose} {os.getpid()}@{hidden(socket.gethostname())}"
    future = in_thread(partial(login, settings, application))
    try:
        # Two addresses of a host, say, with time for each.
        if not cancellation.done(future, 2 * CONNECT_SECONDS + GRACE_SECONDS):
            address = settings.postgres_address
            raise ConnectionLost(f"Postgres ({address}): it accepts but does not answer")
        return Connection(future.result(), settings)
    except dbapi.Error as error:
        # Its frames hold the conninfo, password and all, which some tracebacks show.
        problem = errors.to_sync_error(error, settings, connecting=True)
        raise problem from error.with_traceback(None)


@contextmanager
def session(settings: Settings, purpose: str) -> Iterator[Connection]:
    """Connect for the length of a block; what it did not commit is undone."""
    connection = connect(settings, purpose)
    try:
        yield connection
    finally:
        connection.close()


def _hang_up(raw: Raw, in_transaction: bool) -> None:
    if in_transaction:  # the server would let go of the locks only after a moment
        with suppress(Exception):
            execute_raw(raw, "ROLLBACK")
    raw.close()


def execute_raw(raw: Raw, sql: str, parameters: tuple[Any, ...] = ()) -> None:
    """Run one statement that returns no rows; `$1` is the first parameter."""
    with raw.cursor() as cursor:
        cursor.execute(sql, _bound(parameters))


def write_raw(raw: Raw, sql: str) -> int:
    """Run one statement without parameters, and return how many rows Postgres says it wrote."""
    with raw.cursor() as cursor:
        cursor.execute(sql)
        written: int = cursor.rowcount
        return written


def fetch_raw(raw: Raw, sql: str, parameters: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Run one statement and return its rows; `$1` is the first parameter."""
    with raw.cursor() as cursor:
        cursor.execute(sql, _bound(parameters))
        found: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
        return found


def _bound(parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Make text of moments, because the driver ends the transaction when it is given one."""
    moments = (one.isoformat() if isinstance(one, dt.datetime) else one for one in parameters)
    return tuple(moments) or None
