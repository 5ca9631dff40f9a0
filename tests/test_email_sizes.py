"""A queue larger than what is held in memory is decided upon in parts, with the same outcome."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from fixture_types import Select

from demo import sample
from etl import email_triggers, postgres, warehouse
from etl.errors import SyncError
from etl.mail import decisions
from etl.warehouse import compare

if TYPE_CHECKING:
    from etl.postgres import Connection
    from etl.result import SyncResult

# Of every status some, and users who unsubscribed; the rest is not in the queue.
MIX = """
    UPDATE crm.email_queue SET
        status = CASE id % 7
            WHEN 0 THEN 'pending' WHEN 1 THEN 'processing' WHEN 2 THEN 'failed'
            WHEN 3 THEN 'cancelled' WHEN 4 THEN 'pending' ELSE 'sent'
        END,
        reason = CASE WHEN id % 7 = 3 THEN 'holdout' END,
        sent_at = CASE WHEN id % 7 > 4 THEN now() - INTERVAL '3 h' END,
        attempts = CASE WHEN id % 7 IN (1, 2, 5, 6) THEN 1 ELSE 0 END
"""
UNSUBSCRIBE = """
    INSERT INTO crm.email_suppressions (user_id)
    SELECT user_id FROM crm.email_queue WHERE id % 11 = 0
"""
FORGET = "DELETE FROM crm.email_queue WHERE id % 5 = 0"
SEND = "UPDATE crm.email_queue SET status = 'sent', sent_at = now(), attempts = 1"


def change(database: Connection, *statements: str) -> None:
    for statement in statements:
        postgres.execute(database, statement)
    database.commit()


def counts(result: SyncResult) -> dict[str, int]:
    return {name: n for name, n in result.items() if isinstance(n, int) and name != "dry_run"}


def test_parts_of_the_users_are_decided_upon_as_all_at_once(
    environment: Path,
    database: Connection,
    select: Select,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample.build(environment, 3_000)
    email_triggers.sync()
    change(database, MIX, UNSUBSCRIBE, FORGET)
    sample.build(environment, 2_900)  # some have left

    def decide(name: str) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
        path = tmp_path / name
        result = email_triggers.sync(dry_run=True, force=True, decisions=str(path))
        rows = pl.read_parquet(path)
        return rows.sort(rows.columns).rows(), counts(result)

    whole, in_whole = decide("whole.parquet")
    monkeypatch.setattr(decisions, "_ROOM", 40_000)
    parts, in_parts = decide("parts.parquet")

    assert parts == whole
    assert in_parts == in_whole
    assert len({row[2] for row in whole}) >= 8
    assert counts(email_triggers.sync(force=True)) == in_whole
    assert email_triggers.sync()["updated"] == 0
    pending = "SELECT count(*) AS n FROM crm.email_queue WHERE status = 'pending'"
    assert select(pending) != [{"n": 0}]


def test_mails_of_the_past_that_do_not_fit_into_memory_are_decided_upon(
    environment: Path, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.build(environment, 200_000)
    mails = email_triggers.sync()["inserted"]
    change(database, SEND)
    monkeypatch.setattr(compare, "_QUERY_BYTES", 46_000_000)
    room = decisions._ROOM

    monkeypatch.setattr(decisions, "_ROOM", 10**12)
    with pytest.raises(SyncError, match=r"more than fits into the memory .* run in shards"):
        email_triggers.sync(dry_run=True)
    monkeypatch.setattr(decisions, "_ROOM", room / 4)

    assert email_triggers.sync()["unchanged"] == mails


@pytest.mark.parametrize("rows", [0, 1, 100_000])
def test_a_spool_is_split_by_its_key_and_nothing_is_lost(tmp_path: Path, rows: int) -> None:
    frames = [pl.DataFrame({"id": range(start, rows, 3)}, {"id": pl.String}) for start in range(3)]
    frames.insert(1, frames[0].clear())
    spool = warehouse.write(warehouse.to_batches(frames), tmp_path / "all", ["id"])
    others = warehouse.write(warehouse.to_batches(frames[::-1]), tmp_path / "others", ["id"])

    parts = [pl.concat(part.frames())["id"] for part in warehouse.split(spool, "id", 7)]

    assert sorted(pl.concat(parts)) == sorted(map(str, range(rows)))
    for part, same in zip(parts, warehouse.split(others, "id", 7), strict=True):
        assert sorted(pl.concat(same.frames())["id"]) == sorted(part)
    assert rows < 7 or all(len(part) for part in parts)
