"""What can go wrong, as the caller sees it: one line of text and an exit code."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.result import SyncResult


# What a refusal ends with; a scheduler puts it in words of its own.
FORCE = "If this is meant, run again with --force (in Python: force=True)"


class SyncError(Exception):
    """A run that did not do its work; the message says what, where and what to do.

    `result` holds what the run knew of itself when it stopped; `exit_code` is what the
    command line ends with. `retryable` tells a scheduler whether the cause may pass by itself;
    where it is True the error is `Transient`.
    """

    exit_code = 1
    status = "failed"
    retryable = False
    result: SyncResult | None = None
    sqlstate: str | None = None  # what Postgres calls it


class Transient(SyncError):  # noqa: N818  (it passes)
    """What may pass by itself: a lost server, a lock, a failover, another run of this sync.

    A wrong password, a missing right or a broken constraint is none of these, nor is anything
    that nobody foresaw.
    """

    retryable = True


class ConnectionLost(Transient):
    """A server cannot be reached, is full, or ended a transaction that was in another's way.

    All of it may succeed in a moment.
    """


class AlreadyRunning(Transient):
    """Another run holds the lock."""


class UsageError(SyncError):
    """A flag, an argument or a setting that cannot be meant; nothing was run."""

    exit_code = 2


class Refused(SyncError):  # noqa: N818  (a refusal is an outcome, not a defect)
    """A guard stopped the run: all was rolled back, and no key was sent; `--force` goes on."""

    exit_code = 3
    status = "refused"


class Cancelled(BaseException):
    """A signal, or `etl.cancel()`, ended the run.

    Not an Exception, so that nothing on the way mistakes it for one.
    """

    status = "cancelled"
    result: SyncResult | None = None

    def __init__(self, by: signal.Signals | str) -> None:
        number = by if isinstance(by, signal.Signals) else signal.SIGTERM
        super().__init__(by.name if isinstance(by, signal.Signals) else by)
        self.exit_code = 128 + number
