"""`--delete-missing`: users who left the mart leave crm.user_segments."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import command, results, segments
from destinations import digest, in_shards, last_run
from fixture_types import Mart, Select

from etl import user_segments
from etl.errors import Refused

# Enough users that deleting a few is below the guard.
CROWD = ", ".join(f"('crowd{n}', 'regular', 1, 0, 0)" for n in range(60))


def test_only_those_who_left_the_mart_are_deleted(mart: Mart, select: Select) -> None:
    mart(segments(f"('gone', 'regular', 1, 0, 0), ('stays', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    mart(segments(f"('stays', 'at_risk', 1, 0, 0), ('new', 'new_user', 1, 0, 0), {CROWD}"))

    result = user_segments.sync(delete_missing=True)

    assert counts(result) == (1, 1, 60, 1)
    assert users(select) == {"stays", "new"}
    assert last_run(select)["deleted"] == 1


def test_nobody_is_deleted_unless_it_is_asked_for(mart: Mart, select: Select) -> None:
    mart(segments(f"('gone', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    mart(segments(CROWD))

    result = user_segments.sync()

    assert counts(result) == (0, 0, 60, 0)
    assert users(select) == {"gone"}


def test_a_user_whose_row_is_rejected_has_not_left(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    monkeypatch.setenv("REJECT_LIMIT", "1")
    known = "('null', 'regular', 1, 0, 0), ('twice', 'regular', 1, 0, 0)"
    mart(segments(f"{known}, ('gone', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    bad = "('null', NULL, 1, 0, 0), ('twice', 'a', 1, 0, 0), ('twice', 'b', 1, 0, 0)"
    nobody = "(NULL, 'regular', 1, 0, 0), ('a' || chr(0), 'regular', 1, 0, 0)"
    mart(segments(f"{bad}, {nobody}, {CROWD}"))

    result = user_segments.sync(delete_missing=True)

    assert (result["rejected"], result["deleted"]) == (5, 1)
    assert users(select) == {"null", "twice"}


@pytest.mark.few(1)
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_delete_the_same_users_as_the_whole(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    monkeypatch.setenv("GUARD_MAX_DELETE", "1")
    gone = ", ".join(f"('gone-{n}-ä-😀', 'regular', 1, 0, 0)" for n in range(9))
    mart(segments(f"{gone}, ('stays', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    mart(segments(f"('stays', 'at_risk', 1, 0, 0), {CROWD}"))

    result = in_shards(user_segments.sync, shards, delete_missing=True)

    assert counts(result) == (0, 1, 60, 9)
    assert users(select) == {"stays"}


def test_one_shard_leaves_the_users_of_the_others_alone(mart: Mart, select: Select) -> None:
    mart(segments(CROWD))
    user_segments.sync()

    result = user_segments.sync(delete_missing=True, shard=(1, 3))

    (left,) = select("SELECT count(*) AS users FROM crm.user_segments")
    assert (result["deleted"], left["users"]) == (0, 60)


def test_a_dry_run_counts_and_deletes_nobody(mart: Mart, select: Select) -> None:
    mart(segments(f"('gone', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    before = digest(select)
    mart(segments(CROWD))

    result = user_segments.sync(delete_missing=True, dry_run=True)

    assert (result["deleted"], digest(select)) == (1, before)


def test_deleting_too_many_is_refused_and_force_does_it(mart: Mart, select: Select) -> None:
    mart(segments(f"('stays', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    before = digest(select)
    mart(segments("('stays', 'regular', 1, 0, 0)"))

    with pytest.raises(Refused, match="deletes: 60 of 61 rows"):
        user_segments.sync(delete_missing=True)
    assert digest(select) == before

    finished = command("etl.user_segments", "--delete-missing", "--force", "--json")

    assert (finished.returncode, results(finished)[0]["deleted"]) == (0, 60)
    assert users(select) == {"stays"}


def counts(result: Any) -> tuple[int, ...]:
    assert result["extracted"] == result["rejected"] + sum(
        result[name] for name in ("inserted", "updated", "unchanged")
    )
    return tuple(result[name] for name in ("inserted", "updated", "unchanged", "deleted"))


def users(select: Select) -> set[str]:
    """Who is in the target beside the crowd."""
    rows = select("SELECT user_id FROM crm.user_segments WHERE user_id NOT LIKE 'crowd%'")
    return {row["user_id"] for row in rows}
