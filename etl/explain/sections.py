"""What is known of one user, section by section; a section that cannot be told says why."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import dataframely as dy
import orjson
import polars as pl

from etl import cache, postgres
from etl.errors import SyncError, UsageError
from etl.explain import decisions
from etl.run.contract import USER_ID_RULES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from etl.explain.decisions import Source
    from etl.postgres import Connection
    from etl.settings import Settings

    _Look = Callable[[Connection, str], dict[str, Any]]  # at what Postgres knows of a user

    Read = Source | SyncError  # the user's rows of a mart, or why it cannot be read


class _UserId(dy.Schema):
    """What the contracts ask of a user id."""

    user_id = dy.String(min_length=1, check=USER_ID_RULES)


def check(user_id: str) -> None:
    """Let a user id pass that the contracts would.

    Raises:
        UsageError: it is empty, longer than 255 characters, has a NUL byte or is not UTF-8.
    """
    try:
        user_id.encode()
        fits = _UserId.is_valid(pl.DataFrame({"user_id": [user_id]}))
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise UsageError("a user id has 1 to 255 characters of UTF-8, and no NUL byte among them")


def tell(user_id: str, settings: Settings, spill: Path) -> dict[str, Any]:
    """Return all sections, and as `known` whether any of them has heard of the user."""

    def read(sync: str) -> Read:
        try:
            return decisions.read(sync, user_id, settings, spill)
        except SyncError as error:
            return error

    segments, candidates, recommended = map(read, decisions.SYNCS)
    sections: dict[str, _Look] = {
        "crm": partial(_crm, segments),
        "mails": partial(_mails, candidates),
        "rejections": _rejections,
        "runs": _runs,
    }
    told = {
        "mart": _mart(segments),
        **_in_postgres(sections, user_id, settings),
        "recommendations": _recommendations(recommended, user_id, settings),
    }
    return {"known": _is_known(told), **told}


def _mart(source: Read) -> dict[str, Any]:
    """The user's rows of mart_user_segments: accepted, and rejected with reasons."""
    if isinstance(source, SyncError):
        return {"error": str(source)}
    return {"built_at": source.run.tally.metrics.built_at, **_rows(source)}


def _rows(source: Source) -> dict[str, Any]:
    accepted = [
        {name: decisions.plain(value) for name, value in row.items()} for row in source.accepted
    ]
    return {"accepted": accepted, "rejected": source.rejected}


def _in_postgres(
    sections: dict[str, _Look],
    user_id: str,
    settings: Settings,
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    try:
        with postgres.trusted_session(settings, "etl.explain") as connection:
            for name, look in sections.items():
                connection.try_rollback()  # a statement that failed ended its transaction
                try:
                    postgres.execute(connection, "SET TRANSACTION READ ONLY")
                    told[name] = look(connection, user_id)
                except SyncError as error:
                    told[name] = {"error": str(error)}
    except SyncError as error:
        return {**{name: {"error": str(error)} for name in sections}, **told}
    return told


def _crm(source: Read, connection: Connection, user_id: str) -> dict[str, Any]:
    """The user's row of crm.user_segments."""
    rows = postgres.query(connection, "explain_segment", user_id)
    row = rows[0] if rows else None
    return {"row": row, "next_run": _next_run(decisions.segment, source, row)}


def _mails(source: Read, connection: Connection, user_id: str) -> dict[str, Any]:
    """The user's mails, the newest first, and what keeps the user from getting any."""
    (reins,) = postgres.query(connection, "explain_reins", user_id)
    mails = postgres.query(connection, "explain_mails", user_id)
    suppressions = postgres.query(connection, "explain_suppressions", user_id)
    next_run = _next_run(
        decisions.mails, source, connection
    )  # the last: it may end the transaction
    for one in next_run.get("decisions", []):
        one["by"] = _held_back_by(one, mails)
    return {
        "mails": mails,
        "suppressions": suppressions,
        **reins,
        "next_run": next_run,
    }


def _held_back_by(decision: dict[str, Any], mails: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Name the mail that a decision speaks of: `template`, `status` and the moment `at`."""
    word, told = decision["outcome"].removeprefix("held back: "), None
    for mail in mails:
        is_open = mail["status"] in ("pending", "processing")
        mailed = mail["status"] in ("processing", "sent", "failed")
        at = mail["sent_at"] or mail["created_at"]
        same = mail["template"] == decision["template"]
        fits = {"open": is_open, "gap": mailed, "cooldown": mailed and same}.get(word, False)
        if fits and (told is None or at > told["at"]):
            told = {"template": mail["template"], "status": mail["status"], "at": at}
    return told


def _rejections(connection: Connection, user_id: str) -> dict[str, Any]:
    """The last rejected rows of the user."""
    return {"last": postgres.query(connection, "explain_rejects", user_id)}


def _runs(connection: Connection, _: str) -> dict[str, Any]:
    """The last run of each sync."""
    runs = postgres.query(connection, "status_runs", 1)
    facts = ("sync", "status", "started_at", "finished_at", "error")
    last = {run["sync"]: run for run in runs if not run["lock_taken"]}
    known = [last[sync] for sync in decisions.SYNCS if sync in last]
    return {"last": [{name: run[name] for name in facts} for run in known]}


def _recommendations(source: Read, user_id: str, settings: Settings) -> dict[str, Any]:
    """The user's rows of mart_recommendations, and the key that the search page reads."""
    told: dict[str, Any] = {"key": f"reco:{user_id}", "min_score": settings.reco_min_score}
    told |= {"mart": {"error": str(source)} if isinstance(source, SyncError) else _rows(source)}
    try:
        with closing(cache.connect(settings)) as client:
            cache.require_writable(client, settings)
            value, seconds = cache.look_up(client, told["key"], settings)
            told |= {"value": _parsed(value), "seconds_left": seconds}
            return {**told, "next_run": _next_run(decisions.key, source, client)}
    except SyncError as error:
        return {**told, "error": str(error)}


def _parsed(value: bytes | None) -> Any:
    """The value of a key; as text where another program has put something else there."""
    try:
        return None if value is None else orjson.loads(value)
    except orjson.JSONDecodeError:
        return str(value, errors="replace") if value else ""


def _next_run(
    decide: Callable[[Source, Any], dict[str, Any]], source: Read, server: Any
) -> dict[str, Any]:
    """What a run now would do; or why nobody can tell."""
    if isinstance(source, SyncError):
        return {"error": str(source)}
    try:
        return decide(source, server)
    except SyncError as error:
        return {"error": str(error)}


def _is_known(told: dict[str, Any]) -> bool:
    marts = (told["mart"], told["recommendations"]["mart"])
    lists = [mart.get(name) for mart in marts for name in ("accepted", "rejected")]
    lists += [told["mails"].get(name) for name in ("mails", "suppressions")]
    facts = (told["crm"].get("row"), told["recommendations"].get("value"))
    return (
        any(lists)
        or any(fact is not None for fact in facts)
        or bool(told["rejections"].get("last"))
    )
