"""One piece of work in the driver: in a thread of its own, with a deadline, and interruptible."""

from __future__ import annotations

import time
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from etl.errors import Transient
from etl.plumbing import cancellation, log
from etl.plumbing.threads import in_thread
from etl.postgres import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.settings import Settings

_T = TypeVar("_T")

STOP_SECONDS = 1.5  # what a stop may take: a container is given ten seconds, a terminal none
GRACE_SECONDS = 5  # the client waits so much longer than the server, which explains itself better
_LOCK_SECONDS = 30  # a lock that somebody else holds for this long is a reason to stop and say so


class NoAnswerError(Transient):
    """The server, or the network, is stuck."""


class Call(Generic[_T]):
    """Work that is under way on the driver's connection.

    Python's signal handlers run between two steps of the main thread, hence not while that waits
    inside the driver: a stop would only be noticed when a long merge is through. Nor does the
    driver notice a server that is frozen.
    """

    def __init__(
        self,
        work: Callable[[Raw], _T],
        raw: Raw,
        settings: Settings,
        blockers: Callable[[], str],
    ) -> None:
        """Start the work.

        Args:
            work: what to do with the driver's connection.
            raw: that connection.
            settings: how long a statement may take, and how messages name the server.
            blockers: tells who is in the way of a session that waits for a lock.
        """
        self._raw, self._settings, self._blockers = raw, settings, blockers
        self._blocked_by = ""
        self._future = in_thread(partial(work, raw))
        self.abandoned = False  # it does not end, although it was told to

    @property
    def seconds(self) -> float:
        """How long it may take (POSTGRES_STATEMENT_TIMEOUT)."""
        return self._settings.postgres_statement_timeout

    def is_over(self) -> bool:
        """Has it ended, one way or the other?"""
        return self._future.done()

    def result(self) -> _T:
        """Wait for the work and return what it returned; cancel it when this thread is stopped.

        Raises:
            SyncError: it failed, or no answer came within POSTGRES_STATEMENT_TIMEOUT and a few
                seconds; `ConnectionLost`, where the same may succeed in a moment.
        """
        from adbc_driver_postgresql import dbapi

        try:
            return self._wait()
        except dbapi.Error as error:
            raise errors.to_sync_error(error, self._settings, self._blocked_by) from error
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Have the server end the work; give up on a server that does not."""
        deadline = time.monotonic() + STOP_SECONDS

        def cancel() -> None:
            # More than once: a cancel that comes just before its statement is lost.
            while not self.is_over() and time.monotonic() < deadline:
                with suppress(Exception):
                    self._raw.adbc_cancel()
                wait([self._future], timeout=0.2)

        if not self.is_over():
            in_thread(cancel)
            self.abandoned = not wait([self._future], timeout=STOP_SECONDS).done

    def _wait(self) -> _T:
        """Wait for it; look half-way to the lock timeout what it is waiting for."""
        begun = time.monotonic()
        if not cancellation.done(self._future, lock_timeout(self._settings) / 2):
            in_thread(self._look)
        left = self.seconds + GRACE_SECONDS - (time.monotonic() - begun)
        if not cancellation.done(self._future, max(left, 0)):
            raise NoAnswerError(
                f"Postgres ({self._settings.postgres_address}): no answer for {self.seconds:g} s"
                " (POSTGRES_STATEMENT_TIMEOUT); is the server or the network stuck?"
            )
        return self._future.result()

    def _look(self) -> None:
        blockers = self._blockers()
        if blockers and not self.is_over():
            self._blocked_by = blockers
            log.warning("lock.blocked", by=blockers)


def lock_timeout(settings: Settings) -> float:
    """Return the seconds to wait for a lock: fewer than for a statement, whose error says less."""
    return min(_LOCK_SECONDS, settings.postgres_statement_timeout * 0.8)
