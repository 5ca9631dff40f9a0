"""--decisions FILE: one row for each mail with what a dry run says would become of it."""

from __future__ import annotations

import datetime as dt
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, user

from etl import email_triggers, postgres
from etl.cli import flags
from etl.errors import SyncError, UsageError

if TYPE_CHECKING:
    from etl.postgres import Connection

COLUMNS = ["user_id", "template", "outcome", "until", "episode_at", "priority", "payload"]


def read(path: Path) -> pl.DataFrame:
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)


@pytest.fixture
def history(mart: Mart, database: Connection) -> None:
    """A queue in which much has happened, and a mart that calls for something else."""
    names = ["cooling", "gone", "kept", "moved", "muted", "spaced"]
    mart(audience(*(user(name, "at_risk") for name in names)))
    email_triggers.sync()
    sent = "UPDATE crm.email_queue SET status = 'sent', sent_at = now() - INTERVAL '{}' {}"
    postgres.execute(database, sent.format("30 h", "WHERE user_id = 'cooling'"))
    postgres.execute(database, sent.format("3 h", "WHERE user_id = 'spaced'"))
    postgres.execute(database, "INSERT INTO crm.email_suppressions VALUES ('muted')")
    database.commit()
    mart(
        audience(
            user("cooling", "at_risk", last=NOW),
            user("fresh", "new_user"),
            user("kept", "at_risk"),
            user("moved", "high_value"),
            user("muted", "at_risk"),
            user("old", "abandoned_search", last=NOW - 4 * DAY),
            user("spaced", "high_value"),
        )
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_each_decision_is_a_row_of_the_file(history: None, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"mails.{ending}"

    result = email_triggers.sync(dry_run=True, force=True, decisions=str(path))

    rows = read(path)
    assert rows.columns == COLUMNS
    assert [" ".join(row) for row in rows.select(COLUMNS[:3]).sort(COLUMNS[:3]).rows()] == [
        "cooling win_back held back: cooldown",
        "fresh welcome queued",
        "gone win_back cancelled: left_mart",
        "kept win_back waiting",
        "moved loyalty queued",
        "moved win_back cancelled: superseded",
        "muted win_back cancelled: suppressed",
        "old abandoned_search old news",
        "spaced loyalty held back: gap",
    ]
    told = {(o["template"], o["outcome"]): o["mails"] for o in result["outcomes"]}
    assert told == Counter(rows.select("template", "outcome").rows())


def test_the_file_says_until_when_and_what_the_mail_would_say(
    history: None, tmp_path: Path
) -> None:
    path = tmp_path / "mails.parquet"

    email_triggers.sync(dry_run=True, force=True, decisions=str(path))

    rows = {(r["user_id"], r["template"]): r for r in read(path).to_dicts()}
    now = dt.datetime.now(dt.UTC)
    rests = rows["cooling", "win_back"]["until"] - now
    assert dt.timedelta(0) <= 30 * DAY - 30 * HOUR - rests < HOUR
    assert dt.timedelta(0) <= 21 * HOUR - (rows["spaced", "loyalty"]["until"] - now) < HOUR
    fresh = rows["fresh", "welcome"]
    assert (fresh["until"], fresh["priority"]) == (None, 2)
    assert fresh["episode_at"] == NOW - DAY
    assert json.loads(fresh["payload"])["segment"] == "new_user"


def test_the_file_is_its_owners_alone_and_there_only_when_complete(
    history: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lists" / "mails.csv"
    path.parent.mkdir()
    email_triggers.sync(dry_run=True, force=True, decisions=str(path))
    before = path.read_bytes()

    def spoilt(*_: object) -> None:
        assert [p.name for p in path.parent.iterdir() if p != path] == [f".mails.csv.{os.getpid()}"]
        raise RuntimeError("spoilt")

    monkeypatch.setattr("etl.mail.decisions.Totals.add", spoilt)
    with pytest.raises(SyncError):
        email_triggers.sync(dry_run=True, force=True, decisions=str(path))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["mails.csv"]
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_one_line(history: None, tmp_path: Path) -> None:
    name = str(tmp_path / "none" / "mails.csv")

    with pytest.raises(SyncError, match=r"^--decisions .*mails.csv: No such file or directory"):
        email_triggers.sync(dry_run=True, force=True, decisions=name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--decisions mails.csv", "works with a dry run alone; add --dry-run"),
        ("--dry-run --decisions mails.xlsx", "the name of a .csv or .parquet file"),
        ("--dry-run --decisions 7", "the name of a .csv or .parquet file"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        flags.parse(words.split(), "email_triggers")


def test_a_list_changes_nothing(mart: Mart, select: Select, tmp_path: Path) -> None:
    mart(audience(user("ann", "at_risk"), user("bob", "high_value")))
    path = tmp_path / "mails.parquet"

    email_triggers.sync(dry_run=True, decisions=str(path))

    assert select("SELECT FROM crm.email_queue") == []
    assert read(path)["outcome"].to_list() == ["queued", "queued"]
