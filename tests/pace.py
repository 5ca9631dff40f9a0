"""Time limits that hold on a busy machine too.

A limit is either far from both sides (`HANG`: longer than anything takes, shorter than what would
be waited for if the rule were broken), or a promise in seconds (`within`, `soon`), which is kept
to on an idle machine and stretched as far as this machine is too busy for any program to keep it.
One that is broken raises `TooSlow`, after which pytest runs the test once more (pyproject.toml),
because the machine may stand still for a moment: a promise is broken when it is broken twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HANG = 60.0


class TooSlow(AssertionError):  # noqa: N818  (what pytest prints)
    """A promise in seconds was not kept."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail a block that takes longer."""
    begun = time.monotonic()
    yield
    in_time(time.monotonic() - begun, seconds)


def in_time(took: float, seconds: float) -> None:
    """Fail what took longer."""
    if took >= seconds and took >= seconds * crowding():
        raise TooSlow(f"{took:.1f} s instead of {seconds:g} s")


def soon(holds: Callable[[], bool], seconds: float, every: float = 0.02) -> bool:
    """Wait until it comes true, and fail when it does not in that time."""
    deadline, stretched = time.monotonic() + seconds, False
    while not holds():
        if time.monotonic() > deadline:
            if stretched:
                raise TooSlow(f"it does not come true in {seconds:g} s")
            deadline, stretched = deadline + seconds * (crowding() - 1), True
        time.sleep(every)
    return True


def crowding() -> float:
    """Measure how much longer than on an idle machine computing takes here; 1 for no longer."""
    begun, computed = time.monotonic(), time.thread_time()
    while time.thread_time() - computed < 0.1:
        pass
    return max(1.0, (time.monotonic() - begun) / 0.1)
