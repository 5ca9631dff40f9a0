"""`etl.check` in this process, and whether it says what a dry run says."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from conftest import segments

from etl.check import Finding, check
from etl.errors import Refused, SyncError
from etl.syncs import SYNCS

GOOD = (
    segments("('a', 'at_risk', 3, 1, 9.5), ('b', 'regular', 1, 0, 0)"),
    "CREATE OR REPLACE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Rome' AS destination,"
    " 0.9 AS score, 1 AS rank, now() AS generated_at",
)


def states(findings: Iterable[Finding]) -> dict[str, str]:
    """The worst state of each thing that is not ok."""
    worst = ("ok", "skipped", "warn", "fail")
    found: dict[str, str] = {}
    for one in findings:
        if one.state != "ok":
            found[one.name] = max(found.get(one.name, "ok"), one.state, key=worst.index)
    return found


def looked(name: str, state: str = "fail") -> list[Finding]:
    """The findings of one thing that have this state."""
    return [one for one in check() if (one.name, one.state) == (name, state)]


def dry_runs() -> dict[str, SyncError]:
    """Why syncs fail that are run dry, by name."""
    failed = {}
    for sync in SYNCS:
        module: Any = importlib.import_module(f"etl.{sync}")
        try:
            module.sync(dry_run=True)
        except SyncError as error:
            failed[sync] = error
    return failed


def says(findings: Iterable[Finding], error: SyncError, phrase: str = "") -> bool:
    """Is the error's line among the findings, or this phrase of both?"""
    line = str(error)
    told = [one for one in findings if one.state in ("warn", "fail")]
    if phrase:
        return phrase in line and any(phrase in f"{one.found}; {one.advice}" for one in told)
    if isinstance(error, Refused):
        return any(one.found in line and one.advice in line for one in told)
    found, _, advice = line.rpartition("; ")
    if not found:
        return any(one.found == line for one in told)
    core = found.partition("): ")[2] if found.startswith("Postgres (") else found
    return any(core in one.found and advice in one.advice for one in told)


def agrees(findings: list[Finding], phrase: str = "") -> bool:
    """Does a dry run of every sync go through, or fail with what was found?"""
    unsaid = [str(error) for error in dry_runs().values() if not says(findings, error, phrase)]
    assert unsaid == []
    return True
