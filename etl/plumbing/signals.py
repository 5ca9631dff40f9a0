"""SIGTERM and Ctrl-C on the command line: one line and 128 + the number, at any moment.

`sync()` itself sets no handler: in Airflow and notebooks signals are the host's business.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

from etl.errors import Cancelled
from etl.plumbing import cancellation

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_received: list[signal.Signals] = []


def install_exiting() -> None:
    """From here on a signal ends the process on the spot: there is nothing to undo.

    An exception would not do while modules are imported: some turn it into an ImportError.
    """
    _received.clear()
    for number in _SIGNALS:
        signal.signal(number, _exit)


def install_raising() -> None:
    """From here on a signal raises `Cancelled`, so that a run can roll back and say so."""
    for number in _SIGNALS:
        signal.signal(number, _raise)


def count() -> int:
    """How many signals have come so far; what `pending` wants to know."""
    return len(_received)


def pending(before: int = 0) -> Cancelled | None:
    """The stop that a signal after the first `before` asked for, also when its exception got lost.

    DuckDB turns it into a RuntimeError, and one that is raised in a destructor is dropped.
    """
    return Cancelled(_received[before]) if len(_received) > before else None


def check() -> None:
    """Raise `Cancelled` for a signal whose own exception got lost."""
    if stop := pending():
        raise stop


def ignore_all() -> None:
    """From here on a signal does nothing: the work is done and its exit code stands.

    While Python winds up it gives up the handlers made in Python, and only those.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    os.write(2, f"etl: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    # The run is asked as well, because an exception raised in a destructor or in a callback of the
    # import system is dropped: the query that runs next would be waited for to its end.
    cancellation.ask(_received[-1])
    if not _within_polars(frame):
        raise Cancelled(_received[-1])


def _within_polars(frame: FrameType | None) -> bool:
    """Whether Polars waits for Python to return, as for the digits of a Decimal.

    An exception would make it panic and print a stack, because it expects none there. Its calls
    take milliseconds, and the run looks for a stop after each batch.
    """
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("polars."):
            return True
        frame = frame.f_back
    return False
