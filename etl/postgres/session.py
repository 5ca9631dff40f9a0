"""A session in Postgres that can be interrupted, has a deadline, and tells who is in its way."""

from __future__ import annotations

import contextvars
import datetime as dt
import os
import socket
import threading
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from etl.errors import ConnectionLost, SyncError, Transient
from etl.plumbing import cancellation, log, queries
from etl.postgres import errors, sessions
from etl.postgres.login import CONNECT_SECONDS, login
from etl.settings import hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.settings import Settings

_T = TypeVar("_T")

LOCK_SECONDS = 30  # a lock that somebody else holds for this long is a reason to stop and say so
_GRACE_SECONDS = 5  # the client waits so much longer than the server, which explains itself better
STOP_SECONDS = 1.5  # what a stop may take: a container is given ten seconds, a terminal none

# Said by ourselves, because the driver knows no savepoints in a transaction that it began; as a
# script, because that is one message: a pooler might give the second of two to another session.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_STATUS, _OPEN = "adbc.postgresql.transaction_status", ("intrans", "active")


class _NoAnswerError(Transient):
    """The server, or the network, is stuck."""


class Connection:
    """What ADBC offers, each call in a thread of its own.

    Python's signal handlers run between two steps of the main thread, hence not while that waits
    inside the driver: a stop would only be noticed when a long merge is through. Nor does the
    driver notice a server that is frozen. After such a call the connection is `abandoned`: the
    server undoes what it holds when the process is gone.

    Settings are made for each transaction anew and end with it (session.sql), because a pooler
    may give each transaction another session, and that session to somebody else afterwards.
    """

    def __init__(self, raw: Raw, settings: Settings) -> None:
        self._raw, self._settings = raw, settings
        self._pid: int | None = None  # of the server's process; None: no transaction is open
        self._busy: Future[Any] | None = None
        self._blocked_by = ""
        self.abandoned = False

    def call(self, work: Callable[[Raw], _T]) -> _T:
        """Do blocking work on the driver's connection; cancel it when this thread is stopped.

        Raises:
            SyncError: it failed, or no answer came within POSTGRES_STATEMENT_TIMEOUT and a few
                seconds; `ConnectionLost`, where the same may succeed in a moment.
        """
        return self.submit(work).result()

    def call_alone(self, work: Callable[[Raw], _T]) -> _T:
        """Do work that must not be in a transaction, with the settings of the role."""
        if self._pid is not None:
            raise SyncError("a transaction is open")
        return self._start(work).result()

    def submit(self, work: Callable[[Raw], _T]) -> Call[_T]:
        """Start work on the driver's connection, which can do one thing at a time.

        Raises:
            ConnectionLost: an earlier call got no answer.
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
        except _NoAnswerError as error:
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
            self._with_deadline(partial(execute, self._raw, "ROLLBACK"))

    def cancel(self) -> None:
        """Have the server end what is under way, if anything is."""
        if self._busy and not self.abandoned:
            self._cancel(self._busy)

    def close(self) -> None:
        """End the session; what it did not commit is undone, and its locks are free at once."""
        self._with_deadline(partial(self._hang_up, self._pid is not None))

    def _pin(self, raw: Raw) -> None:
        """Begin a transaction that means the same whatever the server and role are set to."""
        if self._pid is not None:
            return
        with raw.cursor() as cursor:
            cursor.executescript(_BEGIN)
        limits = (self._settings.postgres_statement_timeout, lock_timeout(self._settings))
        milliseconds = tuple(f"{seconds * 1000:.0f}" for seconds in limits)
        (own,) = rows(raw, queries.load("postgres", "session"), milliseconds)
        self._pid = own["pid"]

    def _end(self, statement: str) -> None:
        if self._pid is None:
            return
        try:
            self._start(partial(execute, sql=statement)).result()
        finally:
            self._pid = None

    def _start(self, work: Callable[[Raw], _T]) -> Call[_T]:
        if self.abandoned:
            address = self._settings.postgres_address
            raise ConnectionLost(f"Postgres ({address}): the connection is gone")
        self._busy, self._blocked_by = in_thread(partial(work, self._raw)), ""
        return Call(self, self._busy)

    def _wait_for(self, future: Future[_T]) -> _T:
        from adbc_driver_postgresql import dbapi

        try:
            return self._result(future)
        except dbapi.Error as error:
            raise errors.to_sync_error(error, self._settings, self._blocked_by) from error
        except BaseException:
            self._cancel(future)
            raise

    def _result(self, future: Future[_T]) -> _T:
        """Wait for it; look half-way to the lock timeout what it is waiting for."""
        seconds = self._settings.postgres_statement_timeout
        begun = time.monotonic()
        if not cancellation.done(future, lock_timeout(self._settings) / 2):
            in_thread(self._log_blockers)
        left = seconds + _GRACE_SECONDS - (time.monotonic() - begun)
        if not cancellation.done(future, max(left, 0)):
            raise _NoAnswerError(
                f"Postgres ({self._settings.postgres_address}): no answer for {seconds:g} s"
                " (POSTGRES_STATEMENT_TIMEOUT); is the server or the network stuck?"
            )
        return future.result()

    def _log_blockers(self) -> None:
        with suppress(SyncError), session(self._settings, "etl.look") as other:
            sql = queries.load("postgres", "blockers")
            blockers = other.call(partial(rows, sql=sql, parameters=(self._pid,)))
            self._blocked_by = "; ".join(sessions.described(blocker) for blocker in blockers)
        if self._blocked_by:
            log.warning("lock.blocked", by=self._blocked_by)

    def _cancel(self, future: Future[Any]) -> None:
        """Have the server end the call; give up on a server that does not."""
        deadline = time.monotonic() + STOP_SECONDS

        def cancel() -> None:
            # More than once: a cancel that comes just before its statement is lost.
            while not future.done() and time.monotonic() < deadline:
                with suppress(Exception):
                    self._raw.adbc_cancel()
                wait([future], timeout=0.2)

        if not future.done():
            in_thread(cancel)
            self.abandoned = not wait([future], timeout=STOP_SECONDS).done

    def _hang_up(self, in_transaction: bool) -> None:
        if in_transaction:  # the server would let go of the locks only after a moment
            with suppress(Exception):
                execute(self._raw, "ROLLBACK")
        self._raw.close()

    def _with_deadline(self, work: Callable[[], None]) -> None:
        self.cancel()
        if not self.abandoned:
            self._pid = None
            self.abandoned = not wait([in_thread(work)], timeout=STOP_SECONDS).done


class Call(Generic[_T]):
    """Work that is under way on a connection."""

    def __init__(self, connection: Connection, future: Future[_T]) -> None:
        self._connection, self._future = connection, future

    @property
    def seconds(self) -> float:
        """How long it may take (POSTGRES_STATEMENT_TIMEOUT)."""
        return self._connection._settings.postgres_statement_timeout

    def is_over(self) -> bool:
        """Has it ended, one way or the other?"""
        return self._future.done()

    def result(self) -> _T:
        """Wait for the work and return what it returned.

        Raises:
            SyncError: as `Connection.call`.
        """
        return self._connection._wait_for(self._future)


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
        if not cancellation.done(future, 2 * CONNECT_SECONDS + _GRACE_SECONDS):
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


def in_thread(work: Callable[[], _T]) -> Future[_T]:
    """Start work in a thread that the end of the process does not wait for."""
    future: Future[_T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="etl-postgres", daemon=True).start()
    return future


def execute(raw: Raw, sql: str, parameters: tuple[Any, ...] = ()) -> None:
    """Run one statement that returns no rows; `$1` is the first parameter."""
    with raw.cursor() as cursor:
        cursor.execute(sql, _bound(parameters))


def rows(raw: Raw, sql: str, parameters: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Run one statement and return its rows; `$1` is the first parameter."""
    with raw.cursor() as cursor:
        cursor.execute(sql, _bound(parameters))
        found: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
        return found


def _bound(parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Make text of moments, because the driver ends the transaction when it is given one."""
    moments = (one.isoformat() if isinstance(one, dt.datetime) else one for one in parameters)
    return tuple(moments) or None


def lock_timeout(settings: Settings) -> float:
    """Return the seconds to wait for a lock: fewer than for a statement, whose error says less."""
    return min(LOCK_SECONDS, settings.postgres_statement_timeout * 0.8)
