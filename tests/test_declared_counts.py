"""A count that a sync forgot is an error: its result never looks as if nothing was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import segments
from destinations import digest, execute
from fixture_types import Mart, Select

from etl import recommendations, user_segments
from etl.errors import SyncError
from etl.run import Run
from etl.syncs import BY_NAME

SCORES = """
    CREATE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS destination, 0.9 AS score, now() AS generated_at
"""


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let syncs count under other names; what gets the name "" is not counted."""

    def rename(**names: str) -> None:
        count = Run.count

        def renamed(run: Run, counts: dict[str, int]) -> None:
            named = {names.get(name, name): value for name, value in counts.items()}
            count(run, {name: value for name, value in named.items() if name})

        monkeypatch.setattr(Run, "count", renamed)

    return rename


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_count_that_is_not_declared_is_named(
    mart: Mart, select: Select, counting: Callable[..., None], dry_run: bool
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    before = digest(select)
    counting(inserted="gathered")

    with pytest.raises(SyncError, match=r"the count gathered is not declared; .*etl/syncs\.py"):
        user_segments.sync(dry_run=dry_run)

    assert digest(select) == before


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_sync_that_did_not_count_fails(
    mart: Mart, select: Select, counting: Callable[..., None], dry_run: bool
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"), SCORES)
    before = digest(select)
    counting(unchanged="", written="")

    with pytest.raises(SyncError, match="nothing was counted as unchanged; let its load"):
        user_segments.sync(dry_run=dry_run)
    with pytest.raises(SyncError, match=r"counted as (unchanged|written); let its load"):
        recommendations.sync(dry_run=dry_run)

    assert digest(select) == before


@pytest.mark.parametrize("module", [user_segments, recommendations])
def test_a_count_that_the_ledger_does_not_keep_fails_the_run(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"), SCORES)
    name = module.__name__.removeprefix("etl.")
    declared = (*BY_NAME[name].counts, "gathered")
    monkeypatch.setitem(BY_NAME, name, replace(BY_NAME[name], counts=declared))
    load = module.load
    monkeypatch.setattr(module, "load", lambda run: (load(run), run.count({"gathered": 1})))
    before = digest(select)

    with pytest.raises(SyncError, match=r"does not keep the count gathered; run .*init_db"):
        module.sync()
    execute("ALTER TABLE etl.sync_runs ADD COLUMN gathered bigint")  # record_run has it not
    with pytest.raises(SyncError, match=r"does not keep the count gathered; run .*init_db"):
        module.sync()

    assert digest(select) == before
