"""What leaves with an error, its causes included: types, frames and our words, never a value."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest
from conftest import command, results, segments
from destinations import execute, last_run
from fixture_types import Mart, Select

from etl import email_triggers, recommendations, user_segments
from etl.errors import SyncError
from etl.init_db import init_db
from etl.plumbing import failure
from etl.prune import prune
from etl.status import Flags, status

USER = "anna.test@example.com"
PASSWORD = "wr0ng-Password"
VALUES = (USER, "anna", PASSWORD, "\x1b")

# What no sync expects, with a value of the mart in its words, as libraries raise it.
UNEXPECTED: dict[str, Callable[[pl.DataFrame], Any]] = {
    "polars": lambda mart: mart.select(pl.col("user_id").cast(pl.Int64)),
    "pyarrow": lambda mart: mart["user_id"].to_arrow().cast(pa.int64()),
    "a key": lambda mart: {}[mart["user_id"][0]],
    "a number": lambda mart: int(mart["user_id"][0]),
    "a codec": lambda mart: (mart["user_id"][0] + "\ud800").encode(),
    "orjson": lambda mart: orjson.dumps({mart["user_id"][0]: mart, 1: 1}),
    "a file": lambda mart: open(f"/nowhere/{mart['user_id'][0]}").close(),
    "a note": lambda mart: _raise_with_a_note(mart["user_id"][0]),
    "a panic": lambda mart: _raise(pl.exceptions.PanicException(mart["user_id"][0])),
    "a group": lambda mart: _raise(ExceptionGroup(USER, [ValueError(mart["user_id"][0])])),
    "inside another": lambda mart: _raise_inside(mart["user_id"][0]),
}


@pytest.fixture
def one_user(mart: Mart) -> None:
    mart(
        segments(f"('{USER}', 'at_risk', 1, 0, 0)"),
        f"CREATE TABLE mart_recommendations AS SELECT '{USER}' AS user_id, 'Miami' AS destination,"
        " 0.9 AS score, now() AS generated_at",
    )


@pytest.fixture
def refused_by_postgres(one_user: None, environment: object) -> None:
    """A row that breaks a constraint: Postgres tells it in the DETAIL of its error."""
    execute(
        "ALTER TABLE crm.user_segments ADD CONSTRAINT odd CHECK (segment <> 'at_risk')",
        "ALTER TABLE crm.email_queue ADD CONSTRAINT odd CHECK (template <> 'win_back')",
    )


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", UNEXPECTED)
def test_an_unexpected_error_is_told_by_type_and_place(
    kind: str, one_user: None, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_segments, "transform", UNEXPECTED[kind])

    with pytest.raises(SyncError) as raised:
        user_segments.sync()

    row = last_run(select)
    assert str(raised.value).startswith("unexpected ")
    assert " at etl/run/context.py:" in str(raised.value)
    assert (row["status"], row["error"]) == ("failed", str(raised.value))
    assert not _values(everything(raised.value))


def test_of_the_system_its_own_words_are_told(
    one_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_segments, "transform", UNEXPECTED["a file"])

    with pytest.raises(SyncError, match=r"unexpected FileNotFoundError \(No such file or direc"):
        user_segments.sync()


@pytest.mark.parametrize("module", [user_segments, email_triggers])
def test_a_row_that_postgres_refuses_is_in_no_cause(
    module: Any, refused_by_postgres: None, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SyncError) as raised:
        module.sync()
    logging.getLogger("task").error("Task failed", exc_info=raised.value)

    recorded = select("SELECT to_jsonb(r)::text AS row FROM etl.sync_runs AS r")
    told = everything(raised.value) + caplog.text + str(recorded)
    assert "SQLSTATE 23514" in told
    assert "etl/postgres/session.py" in told  # the frames are there
    assert not _values(told)
    assert "DETAIL" not in told


def test_a_server_that_refuses_is_told_with_its_type(
    one_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_USERNAME", "nobody")
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)

    with pytest.raises(SyncError) as raised:
        recommendations.sync()

    assert "redis.exceptions.AuthenticationError" in everything(raised.value)
    assert not _values(everything(raised.value))


@pytest.mark.parametrize(
    "call",
    [init_db, lambda: prune(1), lambda: status(Flags(), last_run)],  # type: ignore[arg-type]
    ids=["init_db", "prune", "status"],
)
def test_the_other_commands_leave_no_words_of_a_driver_either(
    call: Callable[[], object], environment: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setenv("POSTGRES_USER", "anna")
        with pytest.raises(SyncError) as raised:
            call()

    causes = list(chain(raised.value))[1:]
    assert [type(cause) for cause in causes] == [failure.Cause]
    assert str(causes[0]) == "adbc_driver_manager.OperationalError"


@pytest.mark.parametrize("name", ["ETL_SQL_DIR", "GUARD_MAX_AGE_HOURS", "MART_SCHEMA"])
def test_what_a_setting_holds_is_told_in_one_safe_line(
    name: str, one_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as odd:
        odd.setenv("REDIS_PASSWORD", PASSWORD)
        odd.setenv(name, f"\x1b[2J\u3164\u202e\n{PASSWORD}")
        with pytest.raises(SyncError) as raised:
            user_segments.sync()

    assert str(raised.value).isprintable()
    assert "\u3164" not in str(raised.value)
    assert not _values(everything(raised.value))


@pytest.mark.few(1)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_etl_debug_shows_frames_and_types_and_no_values(
    log_format: str, refused_by_postgres: None, select: Select
) -> None:
    finished = command("etl", "--json", ETL_DEBUG="1", LOG_FORMAT=log_format)

    told = finished.stdout + finished.stderr
    assert finished.returncode == 1
    assert "Traceback (most recent call last)" in finished.stderr
    assert "etl.plumbing.failure.Cause: adbc_driver_manager.IntegrityError, SQLSTATE 23514" in told
    assert "errors.to_sync_error" in told
    assert not _values(told + str(select("SELECT to_jsonb(r)::text AS row FROM etl.sync_runs r")))


def test_a_dry_run_tells_a_scheduler_how_many_and_the_command_line_whom(one_user: None) -> None:
    returned = email_triggers.sync(dry_run=True)
    printed = results(command("etl.email_triggers", "--dry-run", "--json"))[0]

    assert returned["outcomes"] == [{"template": "win_back", "outcome": "queued", "mails": 1}]
    assert not _values(str(returned))
    assert printed["outcomes"] == [{**returned["outcomes"][0], "users": [USER]}]


# Helpers


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that hangs on it, also where a traceback would leave it out."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            yield one
            waiting += [one.__cause__, one.__context__]


def everything(error: BaseException) -> str:
    """Whatever a log could make of an error: words, arguments, notes, variables of its frames."""
    parts = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    each = [f"{one} {one!r} {one.args} {vars(one)}" for one in chain(error)]
    return "".join([*parts, *each])


def _values(text: str) -> list[str]:
    return [value for value in VALUES if value in text]


def _raise(error: BaseException) -> None:
    raise error


def _raise_with_a_note(user_id: str) -> None:
    error = ValueError("odd")
    error.add_note(user_id)
    raise error


def _raise_inside(user_id: str) -> None:
    try:
        raise KeyError(user_id)
    except KeyError:
        raise RuntimeError(user_id) from ValueError(user_id)
