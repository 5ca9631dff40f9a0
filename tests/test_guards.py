"""What looks wrong stops before it does harm, and says how to go on on purpose."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis
from conftest import command, results, segments
from destinations import digest, dump, execute, in_shards, last_run
from fixture_types import Mart, Select, Sync

from etl import email_triggers, recommendations, user_segments
from etl.errors import Refused
from etl.run import guards
from etl.run.guards import Metrics
from etl.settings import Settings

Sql = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A mart that a guard must refuse after the first one was synced, and one that it must not."""

    sync: Sync
    first: Sql
    wrong: Sql
    says: tuple[str, ...]
    fine: Sql
    queue: int = 0  # mails that were sent long before

    @property
    def name(self) -> str:
        return self.sync.__module__.removeprefix("etl.")


@pytest.fixture
def case(request: pytest.FixtureRequest, mart: Mart) -> Case:
    """A case whose first mart has been synced."""
    chosen: Case = CASES[request.param]
    if chosen.queue:
        execute(SENT_LONG_AGO.format(chosen.queue))
    mart(*chosen.first)
    chosen.sync()
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(CASES), indirect=True)


@pytest.mark.few(4)
def test_a_guard_refuses_and_the_destination_is_as_before(
    case: Case, mart: Mart, select: Select, keys: redis.Redis
) -> None:
    mart(*case.wrong)
    before = digest(select), dump(keys)

    for dry_run in (True, False):
        with pytest.raises(Refused) as refusal:
            case.sync(dry_run=dry_run)

        assert [part for part in case.says if part not in str(refusal.value)] == []
        assert str(refusal.value).endswith(
            "If this is meant, run again with --force (in Python: force=True)"
        )
        assert refusal.value.exit_code == 3
        assert refusal.value.result is not None
        assert refusal.value.result["status"] == "refused"
        assert (digest(select), dump(keys)) == before

    row = last_run(select, case.name)
    assert (row["status"], row["forced"]) == ("refused", False)
    assert case.says[0] in row["error"]


@pytest.mark.few(2)
def test_force_goes_past_every_guard_and_is_recorded(
    case: Case, mart: Mart, select: Select
) -> None:
    mart(*case.wrong)

    result = case.sync(force=True)

    row = last_run(select, case.name)
    assert result["status"] == "ok"
    assert (row["run_id"], row["status"], row["forced"]) == (result["run_id"], "ok", True)


@pytest.mark.few(2)
def test_the_normal_case_does_not_trip_a_guard(case: Case, mart: Mart) -> None:
    mart(*case.fine)

    assert case.sync()["status"] == "ok"


def test_all_guards_that_fire_are_listed(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_CHANGE", "0.2")
    mart(users(1_001))
    user_segments.sync()
    mart(users(400, "at_risk", bad=10), aged(49))

    with pytest.raises(Refused) as refusal:
        user_segments.sync(delete_missing=True)

    fired = ["shrunk", "rejects", "deletes", "churn", "stale"]
    assert [name for name in fired if f"{name}: " not in str(refusal.value)] == []


def test_a_refusal_ends_the_command_with_3_and_the_whole_reason(mart: Mart) -> None:
    mart(users(0))

    finished = command("etl.user_segments", "--json")

    (result,) = results(finished)
    assert finished.returncode == 3
    assert (result["status"], result["extracted"]) == ("refused", 0)
    assert "empty: the mart has no rows" in result["error"]


def test_guards_of_the_mart_look_at_the_whole_of_it_when_it_is_walked_in_shards(
    mart: Mart, select: Select
) -> None:
    mart(users(100))
    user_segments.sync()
    mart(users(49))

    with pytest.raises(Refused, match=r"shrunk: the mart has 49 rows, 100 at the last ok run"):
        in_shards(user_segments.sync, 4)
    assert last_run(select)["mart_rows"] == 49

    mart(users(51))
    assert in_shards(user_segments.sync, 4)["extracted"] == 51


@pytest.mark.few(1)
@pytest.mark.parametrize("shards", [1, 4])
def test_churn_and_deletes_are_found_in_shards_as_in_the_whole(mart: Mart, shards: int) -> None:
    mart(users(2_000))
    user_segments.sync()

    mart(users(2_000, "at_risk"))
    with pytest.raises(Refused, match="churn: "):
        in_shards(user_segments.sync, shards)

    mart(users(1_600))
    with pytest.raises(Refused, match="deletes: "):
        in_shards(user_segments.sync, shards, delete_missing=True)


def test_deletes_and_churn_are_both_judged_by_the_target_as_it_was(mart: Mart) -> None:
    mart(users(1_010))
    user_segments.sync()
    mart(users(1_000, "at_risk"), more(users(9_000, start=5_000)))

    with pytest.raises(Refused, match="churn: 1,000 of 1,010 users") as refusal:
        user_segments.sync(delete_missing=True)

    assert "deletes" not in str(refusal.value)


def test_cancels_by_suppression_or_by_a_newer_visit_are_no_wipe(mart: Mart) -> None:
    mart(users(300, "at_risk"))
    email_triggers.sync()
    execute(
        "INSERT INTO crm.email_suppressions (user_id)"
        " SELECT user_id FROM crm.email_queue ORDER BY user_id LIMIT 150"
    )
    mart("UPDATE mart_user_segments SET last_seen_at = last_seen_at + INTERVAL 1 HOUR")

    result = email_triggers.sync()

    assert (result["status"], result["cancelled"], result["inserted"]) == ("ok", 300, 150)


@pytest.mark.parametrize(
    ("setting", "figures"),
    [
        ("guard_max_shrink", Metrics(previous_mart_rows=10, mart_rows=7)),
        ("guard_max_rejected", Metrics(extracted=10, rejected=3)),
        ("guard_max_delete", Metrics(target_rows=10, deleted=3)),
        ("guard_max_change", Metrics(target_rows=2_000, changed_segment=600)),
        ("guard_max_mails", Metrics(queue_rows=1_001, extracted=10, queued=3)),
        ("guard_max_cancel", Metrics(pending=1_000, cancelled_by_mart=300)),
    ],
)
def test_a_setting_is_the_part_that_is_still_allowed(setting: str, figures: Metrics) -> None:
    figures = replace(figures, mart_rows=figures.mart_rows or 10)
    enough: dict[str, Any] = {setting: 0.3}
    too_little: dict[str, Any] = {setting: 0.29}

    guards.check(figures, Settings(**enough))
    with pytest.raises(Refused, match=rf"\({setting.upper()}=0.29\)"):
        guards.check(figures, Settings(**too_little))


def test_a_mart_may_be_as_old_as_the_setting_says() -> None:
    built_at = dt.datetime.now(dt.UTC) - dt.timedelta(hours=10)
    figures = Metrics(mart_rows=1, built_at=built_at)
    guards.check(figures, Settings(guard_max_age_hours=10.1))

    with pytest.raises(Refused, match=r"built 10 hours ago, .* UTC \(GUARD_MAX_AGE_HOURS=9.9\)"):
        guards.check(figures, Settings(guard_max_age_hours=9.9))


def test_a_small_target_may_change_and_few_mails_may_be_cancelled() -> None:
    small = Metrics(
        mart_rows=1,
        target_rows=1_000,
        changed_segment=1_000,
        queue_rows=1_000,
        extracted=1,
        queued=1,
    )
    few = Metrics(mart_rows=1, pending=100, cancelled_by_mart=100)

    assert (refusal(small), refusal(few)) == (None, None)
    assert refusal(replace(small, target_rows=1_001, queue_rows=1_001)) is not None
    assert refusal(replace(few, pending=101, cancelled_by_mart=101)) is not None


def refusal(figures: Metrics) -> str | None:
    """What the guards say of figures under the default settings."""
    try:
        guards.check(figures, Settings())
    except Refused as refused:
        return str(refused)
    return None


def users(count: int, segment: str = "regular", *, start: int = 0, bad: int = 0) -> str:
    """SQL for a mart of so many users, the first `bad` of them with negative searches."""
    rows = (f"('u{start + n:05}', '{segment}', {-1 if n < bad else 3}, 0, 0)" for n in range(count))
    made = segments(", ".join(rows) or "('', '', 0, 0, 0)")
    # The same visits each time the mart is made, so that no new episode opens.
    visits = "now()::DATE - INTERVAL 1 DAY"
    made = made.replace("now()::TIMESTAMP - INTERVAL 1 HOUR", visits)
    return made if count else made + " WHERE false"


def more(made: str) -> str:
    """The same users beside those of the mart that is there."""
    return "INSERT INTO mart_user_segments SELECT" + made.partition("AS\n        SELECT")[2]


def aged(hours: int, mart: str = "mart_user_segments", built: str = "segmented_at") -> str:
    return f"UPDATE {mart} SET {built} = now() - INTERVAL {hours} HOUR"


def recommended(count: int, *, bad: int = 0) -> str:
    """SQL for a mart with one destination for each of so many users."""
    return f"""
        CREATE OR REPLACE TABLE mart_recommendations AS
        SELECT
            'u' || i AS user_id,
            'Miami' AS recommended_destination,
            CASE WHEN i < {bad} THEN 2 ELSE 0.9 END::DOUBLE AS recommendation_score,
            5::BIGINT AS supporting_users,
            1::BIGINT AS rank,
            now() AS generated_at
        FROM range({count}) AS t(i)
    """


SENT_LONG_AGO = """
    INSERT INTO crm.email_queue
        (user_id, template, episode_at, priority, payload, status, created_at, sent_at)
    SELECT 'old' || i, 'win_back', '2020-01-01', 3, '{{}}', 'sent', '2020-01-01', '2020-01-01'
    FROM generate_series(1, {}) AS i
"""

_segments, _mails, _keys = user_segments.sync, email_triggers.sync, recommendations.sync


def _mirror(**options: Any) -> Any:
    return user_segments.sync(delete_missing=True, **options)


_mirror.__module__ = user_segments.__name__

CASES = {
    "empty": Case(
        _segments, (users(3),), (users(0),), ("empty: the mart has no rows",), (users(3),)
    ),
    "shrunk": Case(
        _segments,
        (users(10),),
        (users(4),),
        ("shrunk: the mart has 4 rows, 10 at the last ok run (GUARD_MAX_SHRINK=0.5)",),
        (users(5),),
    ),
    "rejects": Case(
        _segments,
        (users(200),),
        (users(200, bad=3),),
        ("rejects: 3 of 200 rows break the contract (GUARD_MAX_REJECTED=0.01)",),
        (users(200, bad=2),),
    ),
    # Judged by the 20 users there were, not by these and the 10 new ones.
    "deletes": Case(
        _mirror,
        (users(20),),
        (users(17), more(users(10, start=100))),
        ("deletes: 3 of 20 rows of the target would be deleted (GUARD_MAX_DELETE=0.1)",),
        (users(18), more(users(10, start=100))),
    ),
    "churn": Case(
        _segments,
        (users(1_001),),
        (users(601, "at_risk"), more(users(400, start=601))),
        ("churn: 601 of 1,001 users of the target would change segment (GUARD_MAX_CHANGE=0.6)",),
        (users(600, "at_risk"), more(users(401, start=600))),
    ),
    "stale": Case(
        _segments,
        (users(3),),
        (users(3), aged(49)),
        ("stale: the mart was built 49 hours ago", "(GUARD_MAX_AGE_HOURS=48)"),
        (users(3), aged(47)),
    ),
    "flood": Case(
        _mails,
        (users(100),),
        (users(26, "at_risk"), more(users(74, start=26))),
        ("flood: mails for 26 of 100 users would be queued (GUARD_MAX_MAILS=0.25)",),
        (users(25, "at_risk"), more(users(75, start=25))),
        queue=1_001,
    ),
    "wipe": Case(
        _mails,
        (users(201, "at_risk"),),
        (users(101), more(users(100, "at_risk", start=101))),
        ("wipe: 101 of 201 pending mails would be cancelled (GUARD_MAX_CANCEL=0.5)",),
        (users(100), more(users(101, "at_risk", start=100))),
    ),
    "keys, empty": Case(
        _keys, (recommended(3),), (recommended(0),), ("empty: ",), (recommended(3),)
    ),
    "keys, shrunk": Case(
        _keys, (recommended(10),), (recommended(4),), ("shrunk: ",), (recommended(5),)
    ),
    "keys, rejects": Case(
        _keys,
        (recommended(200),),
        (recommended(200, bad=3),),
        ("rejects: 3 of 200 rows",),
        (recommended(200, bad=2),),
    ),
    "keys, stale": Case(
        _keys,
        (recommended(3),),
        (recommended(3), aged(49, "mart_recommendations", "generated_at")),
        ("stale: the mart was built 49 hours ago", "the first keys expire at "),
        (recommended(3), aged(47, "mart_recommendations", "generated_at")),
    ),
}
