"""Cancel the runs of this process from another thread, or from a scheduler's `on_kill`."""

from __future__ import annotations

import _thread
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from etl.errors import Cancelled

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

# How often a wait looks for a cancel, in seconds.
_LOOK = 0.1


class _Cancel:
    """Whether one run is to be cancelled, and by whom.

    A handler of a signal sets it, so it takes no lock: the code below the handler may hold it.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.asked = False
        self.by: signal.Signals | str = ""
        self.interrupts: list[Callable[[], None]] = []


_running: set[_Cancel] = set()
_current: ContextVar[_Cancel | None] = ContextVar("etl_cancel", default=None)


def cancel(by: str = "etl.cancel()") -> int:
    """Cancel every run of this process: it rolls back at once, and the ledger says `cancelled`.

    Safe to call from any thread and in a signal handler, as Airflow does with `on_kill`. The
    `sync()` that is cancelled raises `etl.errors.Cancelled`, which is no Exception; when called in
    the thread of that sync, this function raises it. Without a run it does nothing.

    Args:
        by: who asks; the ledger says `cancelled by ...`.

    Returns:
        How many runs were told to stop.
    """
    threads = ask(by)
    if threading.get_ident() in threads:
        raise Cancelled(by)
    return len(threads)


def ask(by: signal.Signals | str) -> set[int]:
    """Tell every run of this process to stop where it next looks; return their threads."""
    running = [run for run in list(_running) if not run.asked]
    for run in running:
        run.by = by
        run.asked = True
        _thread.start_new_thread(_interrupt, (run,))
    return {run.thread for run in running}


@contextmanager
def cancellable() -> Iterator[None]:
    """Let `cancel` end what runs inside the block; what has to be undone comes after it.

    A block around this one is cancelled with it, and disturbs nothing after it.

    Raises:
        Cancelled: it was cancelled, and failed for that or for another reason.
    """
    run = _Cancel()
    _current.set(run)
    _running.add(run)
    try:
        yield
    except BaseException as error:
        # DuckDB and the drivers turn a stop into an error of their own.
        if run.asked and not isinstance(error, Cancelled):
            raise Cancelled(run.by) from error
        raise
    finally:
        _running.discard(run)
        _current.set(None)


@contextmanager
def interrupting(interrupt: Callable[[], None]) -> Iterator[None]:
    """Have a cancel call `interrupt`, for the length of a block whose calls do not look for one."""
    run = _current.get()
    interrupts = [] if run is None else run.interrupts
    interrupts.append(interrupt)
    try:
        yield
    finally:
        interrupts.remove(interrupt)


def _interrupt(run: _Cancel) -> None:
    """Interrupt again and again: one that comes just before its statement is lost."""
    while run in _running:
        for interrupt in list(run.interrupts):
            with suppress(Exception):  # it may just have been closed
                interrupt()
        time.sleep(_LOOK)


def check() -> None:
    """Raise `Cancelled` when this run is to be cancelled."""
    run = _current.get()
    if run is not None and run.asked:
        raise Cancelled(run.by)


def pause(seconds: float) -> None:
    """Sleep, unless the run is cancelled meanwhile."""
    if _current.get() is None:
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _LOOK))
    check()


def done(future: Future[Any], seconds: float) -> bool:
    """Wait for a future no longer than that, unless the run is cancelled meanwhile."""
    from concurrent.futures import wait

    deadline = time.monotonic() + seconds
    while True:
        check()
        left = deadline - time.monotonic()
        if wait([future], max(min(left, _LOOK), 0)).done:
            return True
        if left <= 0:
            return False
