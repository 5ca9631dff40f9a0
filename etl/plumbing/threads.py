"""Work beside the main thread, which may end first."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def in_thread(work: Callable[[], _T]) -> Future[_T]:
    """Start work in a thread that the end of the process does not wait for."""
    future: Future[_T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="etl", daemon=True).start()
    return future
