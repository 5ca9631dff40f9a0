"""Try again what may succeed in a moment: with backoff and jitter, and for so long only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from etl.plumbing import cancellation, log

_T = TypeVar("_T")

_FIRST_PAUSE = 0.2  # seconds; doubled each time
_LONGEST_PAUSE = 2.0  # a server that is back is not left waiting for long


def retry(
    work: Callable[[], _T], seconds: float, retryable: Callable[[Exception], bool], event: str
) -> _T:
    """Do the work; as long as it fails in a way that may pass, do it again.

    The seconds count from the first failure, so that a long run that loses its server at the end
    is tried again as well.

    Args:
        work: is safe to do again.
        seconds: the last attempt begins no later than this after the first failed.
        retryable: whether an error is worth another attempt.
        event: what to log, once, when the first attempt has failed.

    Raises:
        Exception: that of the last attempt.
    """
    deadline: float | None = None
    pause = _FIRST_PAUSE
    while True:
        try:
            return work()
        except Exception as error:
            if not seconds or not retryable(error):
                raise
            if deadline is None:
                deadline = time.monotonic() + seconds
                log.warning(event, reason=str(error), trying_again_for=f"{seconds:g} s")
            left = deadline - time.monotonic()
            if left <= 0:
                raise
        jitter = random.uniform(0.5, 1.5)  # noqa: S311  (spreads clients)
        cancellation.pause(min(pause * jitter, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
