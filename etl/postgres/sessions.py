"""Who a session of Postgres is: by its pid and role, which the server vouches for."""

from __future__ import annotations

from typing import Any


def described(session: dict[str, Any]) -> str:
    """Tell pid, role, state and since when; its name only as what it says of itself.

    Args:
        session: pid, role, name, state and since, as lock_owner.sql and blockers.sql return them.
    """
    if not session["pid"]:
        return "a prepared transaction (see pg_prepared_xacts)"
    facts = [f"pid {session['pid']}", f"role {session['role'] or 'unknown'}"]
    if session["state"] or session["since"]:
        facts += [session["state"] or "its state unknown", f"since {session['since']}"]
    else:
        facts.append("its state and time shown to pg_read_all_stats alone")
    if session["name"]:
        facts.append(f'which calls itself "{session["name"]}"')
    return ", ".join(facts)


def ending(session: dict[str, Any]) -> str:
    """Tell how to end it."""
    if not session["pid"]:
        return "ROLLBACK PREPARED"
    return f"SELECT pg_terminate_backend({session['pid']})"
