"""SIGTERM and Ctrl-C on the command line: one line and 128 + the number, at any moment.

`sync()` itself sets no handler: in Airflow and notebooks signals are the host's business.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from etl.errors import Cancelled

if TYPE_CHECKING:
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_received: list[signal.Signals] = []


def end_at_once() -> None:
    """From here on a signal ends the process on the spot: there is nothing to undo.

    An exception would not do while modules are imported: some turn it into an ImportError.
    """
    for number in _SIGNALS:
        signal.signal(number, _exit)


def raise_stopped() -> None:
    """From here on a signal raises `Cancelled`, so that a run can roll back and say so."""
    _received.clear()
    for number in _SIGNALS:
        signal.signal(number, _raise)


def heard() -> int:
    """How many signals have come so far; what `received` wants to know."""
    return len(_received)


def received(before: int = 0) -> Cancelled | None:
    """The stop that a signal after the first `before` asked for, also when its exception got lost.

    DuckDB turns it into a RuntimeError, and one that is raised in a destructor is dropped.
    """
    return Cancelled(_received[before]) if len(_received) > before else None


def check() -> None:
    """Raise `Cancelled` for a signal whose own exception got lost."""
    if stop := received():
        raise stop


def ignore() -> None:
    """From here on a signal does nothing: the work is done and its exit code stands.

    While Python winds up it gives up the handlers made in Python, and only those.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    os.write(2, f"etl: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> NoReturn:
    _received.append(signal.Signals(number))
    raise Cancelled(_received[-1])
