"""A wrong clock of one host, and a ledger row of the future, decide nothing for the next runs."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace

import pytest
from conftest import segments
from destinations import execute, last_run
from fixture_types import Mart, Select

from etl import user_segments
from etl.errors import Refused
from etl.run import job, ledger
from etl.status import Flags, status

RUNS = "SELECT status, started_at, finished_at, now() AS now FROM etl.sync_runs"


@pytest.mark.parametrize("days", [-400, 400])
def test_when_a_run_was_is_told_by_the_servers_clock(
    days: int, mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return dt.datetime.now(tz) + dt.timedelta(days=days)

    clock = SimpleNamespace(datetime=Wrong, timedelta=dt.timedelta, UTC=dt.UTC)
    mart(segments("('a', 'regular', 1, 0, 0)"))
    with monkeypatch.context() as host:
        host.setattr(job, "dt", clock)
        host.setattr(ledger, "dt", clock)
        user_segments.sync(force=True)

    (row,) = select(RUNS)
    assert row["status"] == "ok"
    assert abs(row["now"] - row["finished_at"]) < dt.timedelta(minutes=5)
    assert row["now"] - dt.timedelta(minutes=5) < row["started_at"] <= row["finished_at"]


def test_a_ledger_row_of_the_future_is_nobodys_last_ok_run(mart: Mart, select: Select) -> None:
    mart(segments(USERS))
    user_segments.sync()
    # As an older version on a host with a wrong clock left it: of a mart with one row.
    execute(
        "INSERT INTO etl.sync_runs SELECT (jsonb_populate_record(r, jsonb_build_object('run_id',"
        " 'x', 'mart_rows', 1, 'started_at', now() + interval '99 days', 'finished_at',"
        " now() + interval '99 days'))).* FROM etl.sync_runs AS r"
    )
    mart(segments("('a', 'regular', 1, 0, 0)"))

    with pytest.raises(Refused, match="shrunk"):
        user_segments.sync()

    assert last_run(select)["run_id"] == "x"


def test_a_ledger_row_of_the_future_does_not_end_what_is_overdue(
    mart: Mart, select: Select
) -> None:
    mart(segments(USERS))
    user_segments.sync()
    (row,) = select(RUNS)
    execute("UPDATE etl.sync_runs SET finished_at = now() + interval '99 days'")

    known = status(Flags(), row["now"])

    assert "user_segments" in known["overdue"]


USERS = ", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(9))
