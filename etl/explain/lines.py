"""The lines that `python -m etl.explain` prints of each section."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from etl.explain import words
from etl.explain.words import when
from etl.plumbing.counted import counted
from etl.recommendations import TTL_SECONDS

Told = dict[str, Any]
Lines = Iterator[str]

# Mails that are shown; --json has all of them.
_MOST_MAILS = 10

_UNSHOWN = {"user_id", "built_at"}

# Shown in lines of their own, or in the heading.
_CRM_UNSHOWN = {"user_id", "segment", "previous_segment", "segment_changed_at", "synced_at"}


def mart(mart: Told, now: dt.datetime) -> Lines:
    """What dbt knows of the user."""
    if "error" in mart:
        yield _untold(mart)
        return
    if not mart["accepted"] and not mart["rejected"]:
        yield "There is no row of this user in mart_user_segments."
    for row in mart["accepted"]:
        yield words.columns(_shown(row))
    yield from _rejected(mart["rejected"])
    if mart["built_at"]:
        yield f"built {when(mart['built_at'], now)}"


def _rejected(rows: list[Told]) -> Lines:
    for reasons, alike in groupby(rows, lambda row: row["reasons"]):
        yield f"Rejected, hence not used: {_why(reasons)}"
        for row in alike:
            yield f"  {words.columns(_shown(row['row']))}"


def _why(reasons: list[str]) -> str:
    return "; ".join(map(words.rejected, reasons))


def crm(crm: Told, mart: Told, runs: Told, now: dt.datetime) -> Lines:
    """What the CRM holds, and what a run would do to it."""
    if "error" in crm:
        yield _untold(crm)
        return
    row = crm["row"]
    if row is None:
        yield "There is no row of this user in crm.user_segments."
    else:
        before = f" from {row['previous_segment']}" if row["previous_segment"] else ""
        yield f"segment {row['segment']}, entered{before} {when(row['segment_changed_at'], now)}"
        yield words.columns({name: row[name] for name in row if name not in _CRM_UNSHOWN})
        yield f"last written {when(row['synced_at'], now)}"
    yield _a_run(_crm_decision(crm["next_run"], bool(mart.get("rejected"))))
    yield from _stopped(runs.get("user_segments"))


def _crm_decision(decision: Told, is_rejected: bool) -> str:
    if "error" in decision:
        return _untold(decision)
    changes = ", ".join(words.change(name, one) for name, one in decision["columns"].items())
    return {
        "insert": "would add the user, as the mart has it",
        "update": f"would change {changes}",
        "unchanged": "would change nothing",
        "delete": "would keep the row of a user who left the mart; one with --delete-missing"
        " would delete it",
        "none": "would do nothing, because the mart's row is rejected"
        if is_rejected
        else "would do nothing",
    }[decision["change"]]


def mails(mails: Told, mart: Told, runs: Told, now: dt.datetime) -> Lines:
    """What keeps the user from mails, what a run would decide, and the mails that were queued."""
    if "error" in mails:
        yield _untold(mails)
        return
    for one in mails["suppressions"]:
        what = "every mail" if one["template"] == "*" else one["template"]
        why = f": {one['reason']}" if one["reason"] else ""
        yield f"unsubscribed from {what} {when(one['since'], now)}{why}"
    if mails["not_on_allowlist"]:
        yield "not on the allowlist: while that has users, nobody else is handed a mail"
    yield from _mail_decisions(mails, mart, now)
    yield from _stopped(runs.get("email_triggers"))
    for mail in mails["mails"][:_MOST_MAILS]:
        yield from _mail(mail, now)
    if not mails["mails"]:
        yield "No mail was ever queued."
    elif (more := len(mails["mails"]) - _MOST_MAILS) > 0:
        yield f"and {more:,} older (--json has them)"


def _mail_decisions(mails: Told, mart: Told, now: dt.datetime) -> Lines:
    decision = mails["next_run"]
    if "error" in decision:
        yield _a_run(_untold(decision))
        return
    for visit, moment in decision["visits"].items():
        yield f"{words.spoken(visit)} {when(moment, now)}"
    for one in decision["decisions"]:
        yield f"A run now: {_decided(one, now)}."
        if one["template"] in mails["paused"]:
            yield f"The template {one['template']} is paused: workers are handed none."
        if one["template"] in mails["cap_reached"]:
            yield f"The daily cap of {one['template']} is reached: none goes out before 00:00 UTC."
    if not decision["decisions"]:
        yield f"A run now: no mail, because {_no_occasion(decision, mart)}."


def _decided(one: Told, now: dt.datetime) -> str:
    text, by = words.outcome(one["outcome"], one["template"]), one["by"]
    if by:
        text += f": {by['template']}, {when(by['at'], now)}"
    if one["until"]:
        text += f". Possible again {when(one['until'], now)}"
    elif one["outcome"] == "held back: cooldown":
        text += ". It is sent once and never again"
    return text


def _no_occasion(decision: Told, mart: Told) -> str:
    if decision["segment"] is not None:
        return f"there is no template for the segment {decision['segment']}"
    if mart.get("rejected"):
        return "the mart's row is rejected"
    return "the user is not in the mart"


def _mail(mail: Told, now: dt.datetime) -> Lines:
    status, reason = mail["status"], mail["reason"]
    why = f": {reason}" if reason else ""
    attempts = f", attempt {mail['attempts']}" if mail["attempts"] else ""
    state = {
        "pending": f"waits, queued {when(mail['created_at'], now)}{attempts}{why}",
        "processing": f"is being sent, claimed {when(mail['claimed_at'], now)}{attempts}",
        "sent": f"sent {when(mail['sent_at'], now)}",
        "failed": f"failed {when(mail['updated_at'], now)}{attempts}{why}",
        "cancelled": f"cancelled {when(mail['updated_at'], now)}, because"
        f" {words.cancelled(reason)}",
    }[status]
    yield f"- {mail['template']} {state}"
    yield f"    for the visit {when(mail['episode_at'], now)}"
    if status == "pending":
        yield f"    a claim now {words.claim(mail, now)}"
    if status == "pending" and mail["expires_at"]:
        yield f"    expires {when(mail['expires_at'], now)}"


def recommendations(told: Told, runs: Told) -> Lines:
    """What is recommended, what the search page reads, and what a run would write."""
    mart = told["mart"]
    if "error" in mart:
        yield f"mart: {_untold(mart)}"
    else:
        for row in mart["accepted"]:
            low = row["score"] <= told["min_score"]
            why = f", not above {told['min_score']:g}: not recommended" if low else ""
            yield f"{row['destination']} {row['score']:.2f}{why}"
        yield from _rejected(mart["rejected"])
        if not mart["accepted"] and not mart["rejected"]:
            yield "There is no row of this user in mart_recommendations."
    if "error" in told:
        yield _untold(told)
        return
    if told["value"] is None:
        yield f"There is no key {told['key']}."
    else:
        yield f"key {told['key']}, {words.left(told['seconds_left'])}:"
        yield f"  {_destinations(told['value'])}"
    expires = told["value"] is not None and (told["seconds_left"] or 0) >= 0
    yield _a_run(_key_decision(told["next_run"], expires))
    yield from _stopped(runs.get("recommendations"))


def _key_decision(decision: Told, expires: bool) -> str:
    if "error" in decision:
        return _untold(decision)
    ends = "; the key expires by itself" if expires else ""
    return {
        "insert": f"would write {_destinations(decision['value'])}",
        "update": f"would write {_destinations(decision['value'])}",
        "unchanged": f"would write the same again, for another {TTL_SECONDS // 3600} hours",
        "none": f"would write no key, because there is nothing to recommend{ends}",
    }[decision["change"]]


def _destinations(value: Any) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("destinations"), list):
        return str(value)
    return f"{', '.join(map(str, value['destinations']))}; score {value.get('score')}"


def rejections(rejections: Told, now: dt.datetime) -> Lines:
    """When rows were set aside, and why."""
    if "error" in rejections:
        yield _untold(rejections)
        return
    if not rejections["last"]:
        yield "No row of this user is among them."
    for one in rejections["last"]:
        at = when(one["rejected_at"], now)
        yield f"{one['sync']}, {counted(one['rows'], 'row')} {at}: {_why(one['reasons'])}"


def runs(runs: Told, now: dt.datetime) -> Lines:
    """How the last run of each sync went."""
    if "error" in runs:
        yield _untold(runs)
        return
    if not runs["last"]:
        yield "No sync ever ran."
    for one in runs["last"]:
        why = f": {one['error']}" if one["error"] else ""
        yield f"{one['sync']} {one['status']}, {when(one['started_at'], now)}{why}"


def _stopped(run: Told | None) -> Lines:
    """Say where a run may well do nothing, because the last one did not go through."""
    if run and run["status"] not in ("ok", "running"):
        status = run["status"]
        yield f"But the last run did not go through ({status}, see below); the next may not either."


def _shown(row: Told) -> Told:
    return {name: value for name, value in row.items() if name not in _UNSHOWN}


def _a_run(decision: str) -> str:
    return (
        f"A run now {decision}." if not decision.startswith("cannot") else f"A run now: {decision}"
    )


def _untold(section: Told) -> str:
    return f"cannot be told: {section['error']}"
