"""`python -m etl.prune`: what is old and needed by nobody goes, and nothing else."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from conftest import command, segments
from destinations import execute, in_shards
from fixture_types import Mart, Select

from etl import email_triggers, user_segments
from etl.cli.arguments import parse
from etl.errors import Refused, UsageError
from etl.mail.rules import NO_EPISODE_DATE
from etl.prune import Flags as PruneFlags
from etl.prune import prune
from etl.status import Flags, status

YEARS = 2_000  # days


def test_old_runs_and_rejects_go_and_young_ones_stay(mart: Mart, select: Select) -> None:
    for hours in (24 * 31, 24 * 29):
        mart(segments("('bad', NULL, 1, 0, 0)"))
        with pytest.raises(Refused):
            user_segments.sync()
        age("etl.sync_runs", hours, "finished_at", "started_at")
        age("etl.rejected_rows", hours, "rejected_at")
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()

    # The second loop aged the first run once more: it is 60 days old.
    assert prune(30) == {"etl.sync_runs": 1, "etl.rejected_rows": 1, "crm.email_queue": 0}
    assert len(select("SELECT FROM etl.sync_runs")) == 2
    assert len(select("SELECT FROM etl.rejected_rows")) == 1


def test_the_last_runs_stay_however_old_so_that_guards_and_status_know_them(mart: Mart) -> None:
    mart(segments(", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(10))))
    in_shards(user_segments.sync, 2)
    in_shards(user_segments.sync, 2)
    mart("DROP TABLE mart_user_segments")
    for _ in range(2):
        with pytest.raises(Exception, match="mart_user_segments"):
            user_segments.sync()
    age("etl.sync_runs", 24 * YEARS, "finished_at", "started_at")

    before = status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))["syncs"][0]

    assert prune(30)["etl.sync_runs"] == 3

    after = status(Flags(sync="user_segments"), dt.datetime.now(dt.UTC))["syncs"][0]
    assert (after["last"]["run_id"], after["ok_at"]) == (before["last"]["run_id"], before["ok_at"])
    mart(segments("('u0', 'regular', 1, 0, 0)"))
    with pytest.raises(Refused, match="1 row, 10 at the last ok run"):
        user_segments.sync()


# template, status, age of its episode in days (None: the one of a mart without visits), days
# since it ended, whether it goes.
MAILS = [
    # The cooldown is 30 days, and an episode older than 180 + 2 days cannot come again.
    ("win_back", "sent", 183, 31, True),
    ("win_back", "failed", 183, 31, True),
    ("win_back", "cancelled", 183, 31, True),
    ("win_back", "sent", 183, 29, False),  # cooldown
    ("win_back", "cancelled", 183, 29, True),  # it was not sent: there is none
    ("win_back", "sent", 181, 100, False),  # its episode could come again
    ("win_back", "cancelled", 181, 100, False),
    ("win_back", "pending", 400, 400, False),
    ("win_back", "processing", 400, 400, False),
    ("abandoned_search", "sent", 6, 6, False),  # younger than --days
    ("abandoned_search", "sent", 11, 11, True),
    ("loyalty", "sent", 93, 89, False),
    ("loyalty", "sent", 93, 91, True),
    ("welcome", "sent", YEARS, YEARS, False),  # never twice
    ("welcome", "failed", YEARS, YEARS, False),
    ("welcome", "cancelled", YEARS, YEARS, True),
    ("win_back", "sent", None, YEARS, False),
    ("newsletter", "sent", YEARS, YEARS, False),  # not ours
]


def test_a_mail_goes_when_neither_episode_nor_cooldown_needs_it(select: Select) -> None:
    for number, (template, state, episode, ended, _) in enumerate(MAILS):
        mail(f"u{number:02}", template, state, episode, ended)

    assert prune(10)["crm.email_queue"] == sum(goes for *_, goes in MAILS)

    left = {row["user_id"] for row in select("SELECT user_id FROM crm.email_queue")}
    expected = {f"u{number:02}" for number, (*_, goes) in enumerate(MAILS) if not goes}
    assert left == expected


def test_the_gap_between_any_two_mails_keeps_a_mail_too(
    monkeypatch: pytest.MonkeyPatch, select: Select
) -> None:
    mail("a", "abandoned_search", "sent", 11, 11)
    monkeypatch.setenv("EMAIL_MIN_GAP_HOURS", str(24 * 12))

    assert prune(10)["crm.email_queue"] == 0


def test_a_gap_or_cooldown_that_the_last_sync_had_keeps_a_mail_as_well(
    monkeypatch: pytest.MonkeyPatch, mart: Mart
) -> None:
    mail("a", "abandoned_search", "sent", 11, 11)
    mail("b", "win_back", "sent", 400, 400)
    mart(segments("('c', 'regular', 1, 0, 0)"))
    with monkeypatch.context() as syncs:
        syncs.setenv("EMAIL_MIN_GAP_HOURS", str(24 * 12))
        email_triggers.sync()
    execute("UPDATE crm.email_templates SET cooldown = NULL WHERE template = 'win_back'")

    assert prune(10)["crm.email_queue"] == 0

    email_triggers.sync()
    assert prune(10)["crm.email_queue"] == 2


@pytest.mark.few(1)
@pytest.mark.parametrize("visit", ["now() - INTERVAL 1 DAY", "now() - INTERVAL 100 DAY"])
def test_nothing_that_was_sent_is_queued_again(mart: Mart, select: Select, visit: str) -> None:
    everybody = ", ".join(
        f"('{segment}', '{segment}', 1, 0, 0)"
        for segment in ("abandoned_search", "new_user", "at_risk", "high_value", "regular")
    )
    made = segments(everybody).replace("now()::TIMESTAMP - INTERVAL 1 HOUR", f"({visit})::DATE")
    made = made.replace("now() - INTERVAL 40 DAY", f"({visit})::DATE")
    mart(made)
    queued = email_triggers.sync()["inserted"]
    for months in (4, 8):
        send_all(days_ago=30 * months)
        prune(1)

        assert email_triggers.sync(force=True)["inserted"] == 0
    assert queued is not None


def test_nothing_that_a_forced_run_of_an_old_mart_sent_is_queued_again(mart: Mart) -> None:
    """The guard's limit is 2 days; this mart was built 20 days ago."""
    made = segments("('a', 'abandoned_search', 1, 0, 0), ('b', 'regular', 1, 0, 0)")
    made = made.replace("now()::TIMESTAMP - INTERVAL 1 HOUR", "now()::TIMESTAMP - INTERVAL 20 DAY")
    mart(made, "UPDATE mart_user_segments SET segmented_at = now() - INTERVAL 20 DAY")
    assert email_triggers.sync(force=True)["inserted"] == 1
    send_all(days_ago=5)

    prune(1)

    assert email_triggers.sync(force=True)["inserted"] == 0


def test_a_dry_run_counts_and_drops_nothing(select: Select) -> None:
    mail("a", "win_back", "sent", 400, 400)

    finished = command("etl.prune", "--days", "30", "--dry-run")

    assert finished.returncode == 0
    assert re.search(r"crm.email_queue +1 row would go", finished.stdout)
    assert len(select("SELECT FROM crm.email_queue")) == 1
    assert "1 row dropped" in command("etl.prune", "--days", "30").stdout
    assert select("SELECT FROM crm.email_queue") == []


@pytest.mark.parametrize("days", [0, -1, True, "30", float("nan")])
def test_days_must_be_a_number_from_1_on(days: Any) -> None:
    with pytest.raises(UsageError, match="--days"):
        prune(days)


@pytest.mark.parametrize("words", [[], ["--days"], ["--days", "0"], ["30"], ["--day", "30"]])
def test_words_that_say_something_else_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(PruneFlags, words)


def test_without_days_the_command_ends_with_2(environment: object) -> None:
    finished = command("etl.prune")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "etl: --days N must be given: how many days to keep\n"


def age(table: str, hours: float, *columns: str) -> None:
    """Put the moments in these columns so many hours back."""
    moves = ", ".join(f"{column} = {column} - INTERVAL '{hours} hours'" for column in columns)
    execute(f"UPDATE {table} SET {moves}")


def mail(user_id: str, template: str, status: str, episode: int | None, ended: int) -> None:
    """A mail about an episode, ended; both so many days ago."""
    ever = f"'{NO_EPISODE_DATE:%Y-%m-%d}'"
    episode_at = ever if episode is None else f"now() - INTERVAL '{episode} days'"
    ended_at = f"now() - INTERVAL '{ended} days'"
    sent_at = ended_at if status == "sent" else "NULL"
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
        f" created_at, updated_at, sent_at) VALUES ('{user_id}', '{template}', {episode_at}, 3,"
        f" '{{}}', '{status}', {ended_at}, {ended_at}, {sent_at})"
    )


def send_all(days_ago: int) -> None:
    """Make every mail one that was sent so long ago."""
    moment = f"now() - INTERVAL '{days_ago} days'"
    execute(
        f"UPDATE crm.email_queue SET status = 'sent', created_at = {moment},"
        f" updated_at = {moment}, sent_at = {moment}"
    )
