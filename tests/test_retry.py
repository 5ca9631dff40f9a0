"""What may pass is tried again: for so long, with growing pauses, and told once."""

from __future__ import annotations

import time

import pytest

from etl.plumbing.retry import retry


class Passing(Exception):  # noqa: N818
    """A failure that may pass."""


def passing(error: Exception) -> bool:
    return isinstance(error, Passing)


def test_what_passes_is_tried_until_it_succeeds_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = iter([Passing("away"), Passing("away"), 7])

    assert retry(lambda: give(next(outcomes)), 5, passing, "server.lost") == 7
    (told,) = caplog.messages
    assert told == 'server.lost reason=away trying_again_for="5 s"'


def test_what_does_not_pass_is_not_tried_again() -> None:
    outcomes = iter([ValueError("wrong"), 7])

    with pytest.raises(ValueError, match="wrong"):
        retry(lambda: give(next(outcomes)), 5, passing, "server.lost")


def test_the_time_counts_from_the_first_failure_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    attempts: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))

    def slow_to_fail() -> None:
        if not attempts:
            time.sleep(500)
        attempts.append(clock[0])
        raise Passing

    with pytest.raises(Passing):
        retry(slow_to_fail, 40, passing, "server.lost")

    assert len(attempts) > 10
    assert attempts[-1] == attempts[0] + 40


def test_no_seconds_mean_no_second_attempt() -> None:
    outcomes = iter([Passing(), 7])

    with pytest.raises(Passing):
        retry(lambda: give(next(outcomes)), 0, passing, "server.lost")


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    outcomes = iter([*[Passing()] * 8, 7])

    retry(lambda: give(next(outcomes)), 60, passing, "server.lost")

    assert pauses[0] <= 0.3
    assert all(1 <= pause <= 3 for pause in pauses[4:])
    assert len(set(pauses)) == 8


def give(outcome: object) -> object:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
