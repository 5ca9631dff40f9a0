"""Random histories: of every user etl.explain says what a dry run says, and what a claim does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_email_histories import PEOPLE, STEPS, World, histories

from etl import email_triggers, postgres, user_segments
from etl.explain import explain

# Runs that crash and race are of no interest here, and take long.
SLOW = ("crash", "race", "run_beside_workers", "die")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@histories(12)
@given(
    people=PEOPLE,
    steps=st.lists(STEPS.filter(lambda step: step[0] not in SLOW), min_size=9, max_size=18),
)
def test_explain_says_of_every_user_what_a_dry_run_says(
    environment: Path, people: list[tuple[str, int]], steps: list[tuple[Any, ...]]
) -> None:
    """The CRM keeps what the mart said half-way, and both are compared at the end."""
    with World.opened(environment) as world:
        world.begin(people)
        for number, (name, *arguments) in enumerate([("run", 1), *steps]):
            getattr(world, name)(*arguments)
            if number == len(steps) // 2:
                world._write_mart()
                user_segments.sync(force=True)
        compare(world)


def compare(world: World) -> None:
    """Compare what both say of everybody, of whom some are in the queue alone."""
    world._write_mart()
    mails = email_triggers.sync(dry_run=True, force=True, name_users=True)
    crm = user_segments.sync(dry_run=True, force=True, delete_missing=True, show=99)

    told = {user: explain(user) for user in world.people}

    decided = Counter(
        (one["template"], one["outcome"])
        for page in told.values()
        for one in page["mails"]["next_run"]["decisions"]
    )
    expected = mails.get("outcomes", [])
    assert decided == {(one["template"], one["outcome"]): one["mails"] for one in expected}
    for one in expected:
        for user in one["users"]:
            assert (one["template"], one["outcome"]) in [
                (decision["template"], decision["outcome"])
                for decision in told[user]["mails"]["next_run"]["decisions"]
            ]
    changes = {one["user_id"]: (one["change"], one["columns"]) for one in crm["changes"]}
    assert changes == {
        user: (page["crm"]["next_run"]["change"], page["crm"]["next_run"]["columns"])
        for user, page in told.items()
        if page["crm"]["next_run"]["columns"]
    }
    waiting = {
        (user, mail["template"]): mail["rests"]
        for user, page in told.items()
        for mail in page["mails"]["mails"]
        if mail["status"] == "pending"
    }
    claimed = postgres.query(world.workers["w1"], "claim_emails", 99, "w1")
    assert {(mail["user_id"], mail["template"]) for mail in claimed} == {
        key for key, rests in waiting.items() if rests is None
    }
