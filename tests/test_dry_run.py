"""A dry run is the real run without its effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import command, results, segments
from fixture_types import Mart, Select

from etl import email_triggers, user_segments
from etl.errors import Refused

Snapshot = Callable[[], dict[str, Any]]


@pytest.fixture
def snapshot(select: Select) -> Snapshot:
    """Every relation there is and every row in it, down to where it lies and who wrote it."""

    def take() -> dict[str, Any]:
        relations = select(
            "SELECT n.nspname || '.' || c.relname AS name, c.relkind::text AS kind"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname !~ '^(pg_|information_schema)' ORDER BY name"
        )
        tables = [one["name"] for one in relations if one["kind"] == "r"]
        rows = {
            table: select(f"SELECT ctid::text, xmin::text, t::text FROM {table} AS t ORDER BY 1")
            for table in tables
        }
        return {"relations": relations, **rows}

    return take


@pytest.mark.parametrize("module", [user_segments, email_triggers])
def test_a_first_dry_run_foretells_and_leaves_nothing(
    module: Any, mart: Mart, snapshot: Snapshot
) -> None:
    mart(segments(BEFORE))
    empty = snapshot()

    dry = module.sync(dry_run=True)

    assert snapshot() == empty
    assert dry["inserted"] > 0
    assert _counts(module.sync()) == _counts(dry)
    assert snapshot() != empty


@pytest.mark.few(3)
@pytest.mark.parametrize("options", [{}, {"shard": (1, 2)}], ids=str)
@pytest.mark.parametrize("module", [user_segments, email_triggers])
def test_a_dry_run_counts_what_the_real_one_does_and_changes_nothing(
    module: Any, options: dict[str, Any], mart: Mart, snapshot: Snapshot
) -> None:
    mart(segments(BEFORE))
    module.sync()
    mart(segments(AFTER))
    before = snapshot()

    dry = module.sync(dry_run=True, force=True, **options)
    assert snapshot() == before

    real = module.sync(force=True, **options)
    assert _counts(real) == _counts(dry)
    assert dry["dry_run"] is True
    assert real["dry_run"] is False
    assert snapshot() != before
    if not options and module is user_segments:
        assert _counts(dry) == {
            "extracted": 26,
            "rejected": 2,
            "inserted": 2,
            "updated": 2,
            "unchanged": 20,
            "deleted": 0,
        }


def test_a_dry_run_foretells_deletes(mart: Mart, snapshot: Snapshot) -> None:
    mart(segments(BEFORE))
    user_segments.sync()
    mart(segments(AFTER))
    before = snapshot()

    dry = user_segments.sync(dry_run=True, delete_missing=True, force=True)

    assert snapshot() == before
    assert dry["deleted"] == 1
    assert _counts(user_segments.sync(delete_missing=True, force=True)) == _counts(dry)


@pytest.mark.parametrize("module", [user_segments, email_triggers])
def test_a_dry_run_is_refused_like_the_real_one(
    module: Any, mart: Mart, snapshot: Snapshot
) -> None:
    mart(segments(AFTER))  # 2 of 26 rows are rejected
    before = snapshot()

    with pytest.raises(Refused) as dry:
        module.sync(dry_run=True)
    assert snapshot() == before

    with pytest.raises(Refused) as real:
        module.sync()
    assert str(real.value) == str(dry.value)
    assert dry.value.result is not None
    assert real.value.result is not None
    assert _counts(real.value.result) == _counts(dry.value.result)


def test_the_command_line_does_the_same(mart: Mart, snapshot: Snapshot) -> None:
    mart(segments(BEFORE))
    before = snapshot()

    (dry,) = results(command("etl.user_segments", "--dry-run", "--json"))

    assert snapshot() == before
    (real,) = results(command("etl.user_segments", "--json"))
    assert _counts(real) == _counts(dry)


# Helpers


def _rows(*users: tuple[str, str, str]) -> str:
    return ", ".join(
        f"({user}, '{segment}', {searches}, 0, 0)" for user, segment, searches in users
    )


_SAME = [(f"'same{n}'", "regular", "1") for n in range(20)]

BEFORE = _rows(
    *_SAME,
    ("'moves'", "abandoned_search", "1"),
    ("'grows'", "at_risk", "1"),
    ("'spoils'", "regular", "1"),
    ("'leaves'", "high_value", "1"),
)

# One user moved, one has a new figure, two are new, one left, and two rows are bad.
AFTER = _rows(
    *_SAME,
    ("'moves'", "at_risk", "1"),
    ("'grows'", "at_risk", "2"),
    ("'new1'", "abandoned_search", "1"),
    ("'new2'", "regular", "1"),
    ("'spoils'", "regular", "-1"),
    ("NULL", "regular", "1"),
)


def _counts(result: Any) -> dict[str, Any]:
    named = ("sync", "run_id", "status", "dry_run", "seconds", "outcomes", "error")
    return {name: value for name, value in result.items() if name not in named}
