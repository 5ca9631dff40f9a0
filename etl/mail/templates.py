"""crm.email_templates: one row a template, which people pause and cap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from etl import postgres
from etl.mail import rules

if TYPE_CHECKING:
    from etl.postgres import Connection
    from etl.settings import Settings


def missing(connection: Connection) -> list[str]:
    """Return the templates of the rules that have no row yet; takes no lock."""
    known = {row["template"] for row in postgres.query(connection, "email_templates_known")}
    return sorted(set(rules.templates().values()) - known)


def update(connection: Connection, settings: Settings) -> list[str]:
    """Add the templates of the rules that have no row yet, bring up their times; return the new."""
    told = orjson.dumps(rules.limits()).decode()
    rows = postgres.query(connection, "email_templates", told, settings.email_min_gap_hours)
    return [row["template"] for row in rows]
