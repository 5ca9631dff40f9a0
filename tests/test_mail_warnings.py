"""What a run of email_triggers says of a mart that may have lost its meaning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import command, results
from destinations import execute, in_shards, last_run
from fixture_types import Mart, Select
from mails import DAY, HOUR, NOW, audience, counts, queue, user

from etl import email_triggers
from etl.errors import Refused
from etl.mail.rules import NO_EPISODE_DATE

IN_SHARDS = pytest.mark.parametrize("shards", [1, 4], ids=["whole", "shards"])
DRY_AND_WET = pytest.mark.parametrize("dry_run", [True, False], ids=["dry", "real"])
VISITS = ("first_seen_at", "last_seen_at")


# Segments


@pytest.mark.few(2)
@DRY_AND_WET
def test_users_of_segments_without_a_template_are_told_by_segment(
    dry_run: bool, mart: Mart, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "etl")
    mart(audience(*people(4, "fresh_user"), *people(7, "regular"), *people(2, "at_risk")))

    result = email_triggers.sync(dry_run=dry_run)

    assert result["unmapped"] == 11
    assert result["unmapped_segments"] == {"regular": 7, "fresh_user": 4}
    assert [line for line in caplog.messages if "unmapped" in line and "fresh_user" in line]


def test_unmapped_users_stand_in_the_ledger_and_on_the_page(mart: Mart, select: Select) -> None:
    mart(audience(*people(4, "fresh\u202euser"), *people(20, "regular")))

    for flags in ([], ["--dry-run"]):
        page = command("etl.email_triggers", *flags).stdout
        assert 'segments without a template: regular 20, "fresh\\u202euser" 4.' in page

    assert last_run(select, "email_triggers")["unmapped"] == 24


def test_a_mart_whose_segments_are_all_different_names_twenty_of_them(mart: Mart) -> None:
    mart(audience(*(user(f"u{n:02}", f"of u{n:02}") for n in range(50))))

    result = email_triggers.sync()

    assert result["unmapped"] == 50
    assert len(result["unmapped_segments"]) == 20


@pytest.mark.few(1)
@DRY_AND_WET
def test_a_renamed_segment_whose_mails_wait_is_warned_of(
    dry_run: bool, mart: Mart, select: Select
) -> None:
    mart(audience(*people(49, "new_user"), *people(60, "at_risk")))
    email_triggers.sync()

    mart(audience(*people(49, "fresh_user", named="new_user"), *people(60, "at_risk")))
    result = email_triggers.sync(dry_run=dry_run)

    (warning,) = result["warnings"]
    assert (
        "segment new_user has no user in the mart, and of its template welcome 49 waiting mails are"
        in warning
    )
    assert "mails are to be cancelled; was it renamed?" in warning
    assert "fresh_user 49" in warning
    assert result["cancelled"] == 49
    if not dry_run:
        assert last_run(select, "email_triggers")["warning"] == warning


def test_a_refused_run_keeps_its_warnings(
    mart: Mart, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    mart(audience(*people(120, "new_user")))
    email_triggers.sync()
    mart(audience(*people(120, "fresh_user", named="new_user")))

    with pytest.raises(Refused, match="wipe: ") as refusal:
        email_triggers.sync()

    assert refusal.value.result is not None
    assert "fresh_user 120" in refusal.value.result["warnings"][0]
    assert "fresh_user 120" in last_run(select, "email_triggers")["warning"]
    assert [r.levelname for r in caplog.records if "segments.lost" in r.message] == ["WARNING"]


def test_a_segment_without_users_whose_mails_are_gone_is_everyday_business(mart: Mart) -> None:
    mart(audience(*people(1, "new_user"), *people(9, "regular")))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET status = 'sent', sent_at = now()")
    mart(audience(*people(10, "regular")))

    assert "warnings" not in email_triggers.sync()


def test_a_segment_whose_rows_are_all_rejected_loses_no_mail(mart: Mart) -> None:
    mart(audience(*people(1, "new_user"), *people(200, "regular")))
    email_triggers.sync()
    mart("UPDATE mart_user_segments SET lifetime_searches = -1 WHERE segment = 'new_user'")

    result = email_triggers.sync()

    assert (counts(result), result["rejected"]) == ({}, 1)
    assert "warnings" not in result


# First mails


@pytest.mark.few(2)
@DRY_AND_WET
def test_a_first_run_that_mails_many_goes_through_with_figures(
    dry_run: bool,
    mart: Mart,
    select: Select,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mart(audience(*people(50, "at_risk"), *people(50, "regular")))

    result = email_triggers.sync(dry_run=dry_run)

    (warning,) = result["warnings"]
    assert (result["status"], result["inserted"]) == ("ok", 50)
    assert "mails for 50 of 100 users are to be queued (GUARD_MAX_MAILS=0.25)" in warning
    assert "the queue had 0 rows" in warning
    assert [r.levelname for r in caplog.records if "mails.first" in r.message] == ["WARNING"]
    if not dry_run:
        assert last_run(select, "email_triggers")["warning"] == warning


def test_the_warning_stands_on_stderr_in_the_json_and_in_the_status(mart: Mart) -> None:
    mart(audience(*people(50, "at_risk"), *people(50, "regular")))

    ended = command("etl.email_triggers", "--json", LOG_FORMAT="text")
    status = " ".join(command("etl.status").stdout.split())

    (result,) = results(ended)
    assert "warning" in ended.stderr
    assert "mails for 50 of 100 users" in ended.stderr
    assert "mails for 50 of 100 users" in result["warnings"][0]
    assert "warning: mails for 50 of 100 users" in status


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("mailed", "queued_before", "warned"), [(25, 0, False), (26, 0, True), (26, 1_000, True)]
)
def test_as_many_mails_as_the_setting_allows_need_no_word(
    mailed: int, queued_before: int, warned: bool, mart: Mart
) -> None:
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status)"
        f" SELECT 'old' || n, 'receipt', 'epoch', 1, '{{}}', 'sent'"
        f" FROM generate_series(1, {queued_before}) AS n"
    )
    mart(audience(*people(mailed, "at_risk"), *people(100 - mailed, "regular")))

    result = email_triggers.sync()

    assert result["inserted"] == mailed
    assert ("warnings" in result) is warned
    assert f"the queue had {queued_before:,} rows" in str(result.get("warnings")) or not warned


def test_a_queue_that_was_emptied_is_warned_of(mart: Mart) -> None:
    mart(audience(*people(1_200, "at_risk"), *people(1_200, "regular")))
    email_triggers.sync()
    assert "warnings" not in email_triggers.sync()

    execute("DELETE FROM crm.email_queue")

    assert "mails for 1,200 of 2,400 users" in email_triggers.sync()["warnings"][0]


def test_a_large_queue_is_not_called_empty_for_a_last_shard_that_queues_nothing(
    mart: Mart,
) -> None:
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status)"
        " SELECT 'old' || n, 'receipt', 'epoch', 1, '{}', 'sent' FROM generate_series(1, 2000) AS n"
    )
    mart(audience(*people(50, "at_risk")))
    last = "('0x' || substr(md5(user_id), 1, 8))::UINTEGER % 2 = 1"
    mart(f"UPDATE mart_user_segments SET segment = 'regular' WHERE {last}")

    result = in_shards(email_triggers.sync, 2, force=True)

    assert result["inserted"] is not None
    assert 13 <= result["inserted"] < 50
    assert "warnings" not in result


# Visits


@pytest.mark.few(1)
def test_a_mart_that_never_had_visits_has_one_occasion_for_ever(mart: Mart, select: Select) -> None:
    mart(audience(*people(3, "at_risk"), *people(2, "new_user"), *people(95, "regular")))
    mart(*(drop(column) for column in ("first_seen_at", "last_seen_at")))

    first = email_triggers.sync()
    again = email_triggers.sync()

    assert (counts(first), counts(again)) == ({"inserted": 5}, {"unchanged": 5})
    assert "has no first_seen_at and no last_seen_at: 5 users" in first["warnings"][0]
    assert "5 mails are to be queued" in first["warnings"][0]
    assert "0 mails are to be queued" in again["warnings"][0]
    assert select("SELECT DISTINCT episode_at FROM crm.email_queue") == [
        {"episode_at": NO_EPISODE_DATE}
    ]


@pytest.mark.few(1)
@IN_SHARDS
@pytest.mark.parametrize("lost", [("last_seen_at",), ("first_seen_at",), VISITS], ids=str)
def test_a_mart_that_lost_its_visits_mails_nobody(
    lost: tuple[str, ...], shards: int, mart: Mart, select: Select
) -> None:
    mart(audience(*long_ago(40), *people(1, "new_user"), *people(2, "abandoned_search")))
    assert email_triggers.sync()["inserted"] == 3
    before = queue(select)

    mart(*(f"ALTER TABLE mart_user_segments RENAME {name} TO {name}_utc" for name in lost))
    for dry_run in (True, False):
        with pytest.raises(Refused, match=r"visits: the mart has no ") as refusal:
            in_shards(email_triggers.sync, shards, dry_run=dry_run)
        assert f"no {' and no '.join(lost)}, but" in str(refusal.value)
        queued = {("last_seen_at",): 2, ("first_seen_at",): 1, VISITS: 3}[lost]
        mails = "1 mail of the queue has" if queued == 1 else f"{queued} mails of the queue have"
        assert f"{mails} a visit" in str(refusal.value)

    assert queue(select) == before


@pytest.mark.parametrize("lost", [("last_seen_at",), VISITS], ids=str)
def test_a_renamed_column_is_refused_though_no_mail_was_ever_queued(
    lost: tuple[str, ...], mart: Mart, select: Select
) -> None:
    mart(audience(*long_ago(40)))
    assert counts(email_triggers.sync()) == {}

    mart(*(f"ALTER TABLE mart_user_segments RENAME {name} TO {name}_utc" for name in lost))
    with pytest.raises(Refused, match=f"but it had {' and '.join(lost)} at the last ok run"):
        email_triggers.sync()

    assert queue(select) == []


def test_a_mart_that_never_had_one_of_the_visits_goes_through_again_and_again(mart: Mart) -> None:
    people_seen = people(2, "new_user"), people(3, "abandoned_search")
    mart(audience(*people_seen[0], *people_seen[1], *people(95, "regular")), drop("first_seen_at"))

    first, again = email_triggers.sync(), email_triggers.sync()

    assert (counts(first), counts(again)) == ({"inserted": 5}, {"unchanged": 5})
    assert "has no first_seen_at: 2 users" in first["warnings"][0]


def test_force_mails_on_a_mart_that_lost_its_visits(mart: Mart, select: Select) -> None:
    mart(audience(*long_ago(4)))
    mart("ALTER TABLE mart_user_segments RENAME last_seen_at TO seen_at")

    assert email_triggers.sync(force=True)["inserted"] == 4
    assert last_run(select, "email_triggers")["forced"] is True


def test_visits_of_mails_that_are_not_ours_prove_nothing(mart: Mart) -> None:
    execute(
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        " VALUES ('zoe', 'receipt', 'epoch', 1, '{}')"
    )
    mart(audience(*people(1, "at_risk")), *(drop(column) for column in VISITS))

    assert email_triggers.sync()["inserted"] == 1


# Whether there are visits is asked of the query, not of the rows

OWN = """
    SELECT user_id, segment, lifetime_searches AS total_searches,
        lifetime_conversions AS total_conversions, lifetime_revenue AS lifetime_value,
        {first} AS first_seen_at, {last} AS last_seen_at,
        NULL AS platform, NULL AS country, segmented_at AS built_at
    FROM mart_user_segments {join}
"""


@pytest.mark.few(1)
@IN_SHARDS
@pytest.mark.parametrize(
    "how",
    [
        ("seen_utc", 3, ""),  # a column, which most users have no value in
        ("seen_utc", 3, "JOIN other USING (user_id)"),
        ("NULL::TIMESTAMP", 0, ""),  # a visit that nobody knows
        ("CASE WHEN user_id = '' THEN seen_utc END", 0, ""),  # never a value
    ],
)
def test_an_own_query_decides_alike_in_the_whole_and_in_shards(
    how: tuple[str, int, str], shards: int, mart: Mart, own_query: Any
) -> None:
    last, queued, join = how
    mart(audience(*people(12, "at_risk")), *RENAMED)
    own_query(OWN.format(first="NULL", last=last, join=join))

    result = in_shards(email_triggers.sync, shards, force=True)

    assert counts(result) == {
        name: n for name, n in {"inserted": queued, "held_back": 12 - queued}.items() if n
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("join", ["", "JOIN other USING (user_id)"], ids=["one mart", "two"])
def test_an_own_query_without_visits_says_null(join: str, mart: Mart, own_query: Any) -> None:
    mart(audience(*people(12, "at_risk")), *RENAMED)
    own_query(OWN.format(first="NULL", last="NULL", join=join))

    result = email_triggers.sync()

    assert counts(result) == {"inserted": 12}
    assert any("12 users have one occasion for ever" in text for text in result["warnings"])


@pytest.mark.few(1)
@IN_SHARDS
def test_a_visit_column_in_which_nothing_stands_holds_its_mails_back(
    shards: int, mart: Mart
) -> None:
    mart(audience(*people(12, "at_risk")), "UPDATE mart_user_segments SET last_seen_at = NULL")

    assert counts(in_shards(email_triggers.sync, shards)) == {"held_back": 12}


@pytest.mark.few(1)
@IN_SHARDS
@pytest.mark.parametrize(
    "unknown",
    [NO_EPISODE_DATE, NO_EPISODE_DATE.replace(month=12, day=31), NOW + 25 * HOUR],
    ids=["the placeholder", "another", "tomorrow"],
)
def test_a_visit_in_the_future_is_a_visit_that_nobody_knows(
    unknown: Any, shards: int, mart: Mart, select: Select
) -> None:
    mart(
        audience(
            user("ann", "at_risk", last=unknown),
            user("bob", "new_user", first=unknown),
            user("eve", "new_user", last=unknown),
            user("zoe", "at_risk", last=NOW + 23 * HOUR),
        )
    )

    assert counts(in_shards(email_triggers.sync, shards)) == {"inserted": 2, "held_back": 2}
    assert sorted(queue(select)) == ["eve welcome pending", "zoe win_back pending"]
    (welcome,) = select("SELECT payload FROM crm.email_queue WHERE user_id = 'eve'")
    assert json.loads(welcome["payload"])["last_seen_at"] is None


@pytest.fixture
def own_query(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a query of one's own in front of the shipped one."""
    monkeypatch.setenv("ETL_SQL_DIR", str(tmp_path))
    return (tmp_path / "email_triggers.sql").write_text


# The last visit under another name, known of 3 of 12 users; and another table to join.
RENAMED = (
    "CREATE TABLE other AS SELECT user_id FROM mart_user_segments",
    "ALTER TABLE mart_user_segments RENAME last_seen_at TO seen_utc",
    "UPDATE mart_user_segments SET seen_utc = NULL WHERE user_id >= 'at_risk03'",
)


def people(number: int, segment: str, *, named: str = "") -> list[str]:
    """So many users of a segment, seen an hour ago."""
    return [user(f"{named or segment}{n:02}", segment) for n in range(number)]


def long_ago(number: int) -> list[str]:
    """Users at risk who were last seen 400 days ago."""
    return [
        user(f"old{n:02}", "at_risk", first=NOW - 500 * DAY, last=NOW - 400 * DAY - HOUR)
        for n in range(number)
    ]


def drop(column: str) -> str:
    return f"ALTER TABLE mart_user_segments DROP COLUMN {column}"
