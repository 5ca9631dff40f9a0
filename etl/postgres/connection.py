"""A session in Postgres that can be interrupted, has a deadline, and tells who is in its way."""

from __future__ import annotations

import contextvars
import os
import socket
import threading
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from etl.errors import Lost, SyncError, Transient
from etl.plumbing import cancellation, log, queries
from etl.postgres import errors as postgres_errors
from etl.postgres import sessions
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


class _NoAnswerError(Transient):
    """The server, or the network, is stuck."""


class Connection:
    """What ADBC offers, each call in a thread of its own.

    Python's signal handlers run between two steps of the main thread, hence not while that waits
    inside the driver: a stop would only be noticed when a long merge is through. Nor does the
    driver notice a server that is frozen. After such a call the connection is `stuck` and is let
    go of: the server undoes what it holds when the process is gone.
    """

    def __init__(self, raw: Raw, settings: Settings, pid: int) -> None:
        self._raw, self._settings, self._pid = raw, settings, pid
        self._busy: Future[Any] | None = None
        self.stuck = False
        self._blocker = ""

    def call(self, work: Callable[[Raw], _T]) -> _T:
        """Do blocking work on the driver's connection; cancel it when this thread is stopped.

        Raises:
            SyncError: it failed, or no answer came within POSTGRES_STATEMENT_TIMEOUT and a few
                seconds; `Lost`, where the same may succeed in a moment.
        """
        return self.begin(work)()

    def begin(self, work: Callable[[Raw], _T]) -> Callable[[], _T]:
        """Start the same, and return what waits for it; the connection can do one thing at a time.

        Raises:
            SyncError: as `call`, when it is waited for.
        """
        if self.stuck:
            raise Lost(f"Postgres ({self._settings.postgres_address}): the connection is gone")
        future = in_thread(partial(work, self._raw))
        self._busy, self._blocker = future, ""
        return partial(self._wait_for, future)

    def commit(self) -> None:
        """Make what was done since the last commit last."""
        try:
            self.call(lambda raw: raw.commit())
        except _NoAnswerError as error:  # which may be found in the ledger, once the server is back
            raise Lost(str(error)) from error

    def rollback(self) -> None:
        """Undo it."""
        self.call(lambda raw: raw.rollback())

    def undo(self) -> None:
        """Roll back if that can be done at once.

        A connection that the server has cut cannot, and one that was interrupted at the wrong
        moment may never answer: the server undoes both.
        """
        self._within_a_stop(self._raw.rollback)

    def close(self) -> None:
        """End the session; what it did not commit is undone, and the next run may lock at once."""
        self._within_a_stop(self._end)

    def _end(self) -> None:
        # The server lets go of the locks as well, but a moment after the client has gone.
        with suppress(Exception):
            self._raw.rollback()
            rows(self._raw, queries.load("postgres", "unlock"), ())
            self._raw.commit()
        self._raw.close()

    def _wait_for(self, future: Future[_T]) -> _T:
        from adbc_driver_postgresql import dbapi

        try:
            return self._result(future)
        except dbapi.Error as error:
            raise postgres_errors.explained(error, self._settings, self._blocker) from error
        except BaseException:
            self._cancel(future)
            raise

    def _result(self, future: Future[_T]) -> _T:
        """Wait for it; look half-way to the lock timeout what it is waiting for."""
        seconds = self._settings.postgres_statement_timeout
        begun = time.monotonic()
        if not cancellation.done(future, lock_seconds(self._settings) / 2):
            in_thread(self._look_who_blocks)
        left = seconds + _GRACE_SECONDS - (time.monotonic() - begun)
        if not cancellation.done(future, max(left, 0)):
            raise _NoAnswerError(
                f"Postgres ({self._settings.postgres_address}): no answer for {seconds:g} s"
                " (POSTGRES_STATEMENT_TIMEOUT); is the server or the network stuck?"
            )
        return future.result()

    def _look_who_blocks(self) -> None:
        with suppress(SyncError), session(self._settings, "etl.look") as other:
            sql = queries.load("postgres", "blockers")
            blockers = other.call(partial(rows, sql=sql, parameters=(self._pid,)))
            self._blocker = "; ".join(sessions.described(blocker) for blocker in blockers)
        if self._blocker:
            log.warning("lock.blocked", by=self._blocker)

    def _cancel(self, future: Future[Any]) -> None:
        """Have the server end the call; give up on a server that does not."""

        def cancel() -> None:
            # More than once: a cancel that comes just before its statement is lost.
            while not future.done() and time.monotonic() < deadline:
                self._raw.adbc_cancel()
                wait([future], timeout=0.2)

        deadline = time.monotonic() + STOP_SECONDS
        if not future.done():
            in_thread(cancel)
            self.stuck = not wait([future], timeout=STOP_SECONDS).done

    def _within_a_stop(self, work: Callable[[], None]) -> None:
        if self._busy and not self.stuck:
            self._cancel(self._busy)
        if not self.stuck:
            future = in_thread(work)
            self.stuck = not wait([future], timeout=STOP_SECONDS).done


def connect(settings: Settings, purpose: str) -> Connection:
    """Open a connection that names itself `purpose pid@host` in pg_stat_activity.

    Raises:
        Lost: the server cannot be reached now.
        SyncError: it does not let us in.
    """
    from adbc_driver_postgresql import dbapi

    future = in_thread(partial(_open, settings, purpose))
    try:
        # Two addresses of a host, say, with time for each.
        if not cancellation.done(future, 2 * CONNECT_SECONDS + _GRACE_SECONDS):
            raise Lost(f"Postgres ({settings.postgres_address}): it accepts but does not answer")
        return future.result()
    except dbapi.Error as error:
        # Its frames hold the conninfo, password and all, which some tracebacks show.
        problem = postgres_errors.explained(error, settings, connecting=True)
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


def rows(raw: Raw, sql: str, parameters: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Run one statement and return its rows; `$1` is the first parameter."""
    with raw.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        found: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
        return found


def lock_seconds(settings: Settings) -> float:
    """How long to wait for a lock: less than for a statement, whose error would say less."""
    return min(LOCK_SECONDS, settings.postgres_statement_timeout * 0.8)


def _open(settings: Settings, purpose: str) -> Connection:
    raw = login(settings, f"{purpose} {os.getpid()}@{hidden(socket.gethostname())}")
    limits = (settings.postgres_statement_timeout, lock_seconds(settings))
    milliseconds = tuple(f"{seconds * 1000:.0f}" for seconds in limits)
    (own,) = rows(raw, queries.load("postgres", "session"), milliseconds)
    raw.commit()
    return Connection(raw, settings, own["pid"])
