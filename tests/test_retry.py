"""What may pass is tried again: for so long, with growing pauses, and told once."""

from __future__ import annotations

import time

import pytest
from conftest import segments
from destinations import execute
from fixture_types import Mart

from etl import user_segments
from etl.plumbing.retry import retry


class Passing(Exception):  # noqa: N818
    """A failure that may pass."""


def passing(error: Exception) -> bool:
    return isinstance(error, Passing)


def test_what_passes_is_tried_until_it_succeeds_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = iter([Passing("away"), Passing("away"), 7])

    assert retry(lambda: give(next(outcomes)), 5, passing, "attempt.failed") == 7
    (told,) = caplog.messages
    assert told == 'attempt.failed reason=away trying_again_for="5 s"'


def test_a_run_that_met_a_deadlock_is_tried_again_and_the_log_does_not_call_the_server_lost(
    mart: Mart, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRY_SECONDS", "10")
    mart(segments("('a', 'regular', 1, 0, 0)"))
    execute(
        "CREATE SEQUENCE crm.tries",
        "CREATE FUNCTION crm.deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('crm.tries') = 1 THEN RAISE 'deadlock detected' USING ERRCODE = '40P01';"
        " END IF; RETURN NULL; END $$",
        "CREATE TRIGGER deadlock AFTER INSERT ON crm.user_segments EXECUTE FUNCTION crm.deadlock()",
    )

    assert user_segments.sync()["inserted"] == 1

    (told,) = [message for message in caplog.messages if "trying_again_for" in message]
    assert told.startswith("attempt.failed ")
    assert "another session was in the way" in told


def test_what_does_not_pass_is_not_tried_again() -> None:
    outcomes = iter([ValueError("wrong"), 7])

    with pytest.raises(ValueError, match="wrong"):
        retry(lambda: give(next(outcomes)), 5, passing, "attempt.failed")


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
        retry(slow_to_fail, 40, passing, "attempt.failed")

    assert len(attempts) > 10
    assert attempts[-1] == attempts[0] + 40


def test_no_seconds_mean_no_second_attempt() -> None:
    outcomes = iter([Passing(), 7])

    with pytest.raises(Passing):
        retry(lambda: give(next(outcomes)), 0, passing, "attempt.failed")


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    outcomes = iter([*[Passing()] * 8, 7])

    retry(lambda: give(next(outcomes)), 60, passing, "attempt.failed")

    assert pauses[0] <= 0.3
    assert all(1 <= pause <= 3 for pause in pauses[4:])
    assert len(set(pauses)) == 8


def give(outcome: object) -> object:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
