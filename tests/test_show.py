"""`python -m etl.user_segments --dry-run --show N`: a fair sample of what a run would change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from conftest import command, results, segments
from destinations import digest
from fixture_types import Mart, Select

from etl import user_segments
from etl.errors import UsageError

BEFORE = segments(
    "('gone', 'regular', 1, 0, 0), ('moves', 'at_risk', 4, 0, 12.5),"
    " ('same', 'regular', 1, 1, 1), ('buys', 'regular', 2, 1, 0.25)"
)
AFTER = segments(
    "('moves', 'regular', 4, 0, 12.5), ('same', 'regular', 1, 1, 1),"
    " ('buys', 'regular', 1002, 1, 123456789012.34), ('new', 'new_user', 3, 0, 0.1)"
)
CHANGES = [
    {
        "user_id": "new",
        "change": "insert",
        "columns": {
            "segment": {"old": None, "new": "new_user"},
            "total_searches": {"old": None, "new": 3},
            "total_conversions": {"old": None, "new": 0},
            "lifetime_value": {"old": None, "new": 0.1},
        },
    },
    {
        "user_id": "buys",
        "change": "update",
        "columns": {
            "total_searches": {"old": 2, "new": 1002},
            "lifetime_value": {"old": 0.25, "new": 123456789012.34},
        },
    },
    {
        "user_id": "moves",
        "change": "update",
        "columns": {"segment": {"old": "at_risk", "new": "regular"}},
    },
]
GONE = {
    "user_id": "gone",
    "change": "delete",
    "columns": {
        "segment": {"old": "regular", "new": None},
        "total_searches": {"old": 1, "new": None},
        "total_conversions": {"old": 0, "new": None},
        "lifetime_value": {"old": 0.0, "new": None},
    },
}


@pytest.fixture
def marts(mart: Mart) -> None:
    mart(BEFORE)
    user_segments.sync()
    mart(AFTER)


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [{}, {"delete_missing": True}, {"shard": (0, 1)}], ids=str)
def test_each_changed_column_is_shown_with_its_old_and_new_value(
    options: dict[str, Any], marts: None, select: Select
) -> None:
    before = digest(select)

    dry = user_segments.sync(dry_run=True, force=True, show=9, **options)

    expected = [*CHANGES, *([GONE] if "delete_missing" in options else [])]
    assert sorted(dry["changes"], key=_by_user) == sorted(expected, key=_by_user)
    assert (dry["inserted"], dry["updated"]) == (1, 2)
    assert digest(select) == before


def test_kinds_of_change_take_turns(mart: Mart) -> None:
    """However many there are of each, and whatever the users are called."""
    mart(
        segments(
            ", ".join(f"('{kind}{n}', 'regular', 1, 0, 0)" for kind in "ags" for n in range(40))
        )
    )
    user_segments.sync()
    mart(
        segments(
            "('s0', 'at_risk', 1, 0, 0), ('s1', 'regular', 1, 0, 7), "
            + ", ".join(f"('a{n}', 'regular', 2, 0, 0)" for n in range(40))
            + ", ".join(["", *(f"('z{n}', 'regular', 1, 0, 0)" for n in range(40))])
        )
    )

    def kinds(show: int) -> Counter[str]:
        dry = user_segments.sync(dry_run=True, force=True, delete_missing=True, show=show)
        return Counter(f"{one['change']} {next(iter(one['columns']))}" for one in dry["changes"])

    assert kinds(3).total() == 3
    assert {kind.split()[0] for kind in kinds(3)} == {"insert", "update", "delete"}
    assert kinds(9) == {
        "insert segment": 3,
        "update segment": 1,
        "update total_searches": 1,
        "update lifetime_value": 1,
        "delete segment": 3,
    }
    assert kinds(30)["update total_searches"] == 8


def test_the_command_line_shows_them_to_people_and_programs(marts: None) -> None:
    words = ("etl.user_segments", "--dry-run", "--show", "9")

    told = command(*words)
    (result,) = results(command(*words, "--json"))

    assert result["changes"][0]["user_id"] == "new"
    assert "moves  updated   segment at_risk -> regular" in told.stdout
    assert "buys   updated   total_searches 2 -> 1002" in told.stdout
    assert "lifetime_value 0.25 -> 123,456,789,012.34" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_nothing_to_show_is_said(mart: Mart) -> None:
    mart(BEFORE)
    user_segments.sync()

    told = command("etl.user_segments", "--dry-run", "--show=3")

    assert "No user would change." in told.stdout


def test_users_are_shown_only_on_request_and_by_a_dry_run(marts: None) -> None:
    assert "changes" not in user_segments.sync(dry_run=True)
    with pytest.raises(UsageError, match="show works with a dry run alone; add --dry-run"):
        user_segments.sync(show=3)


# Helpers


def _by_user(change: Any) -> str:
    return str(change["user_id"])
