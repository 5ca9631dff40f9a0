"""A mart of users to mail, and what the queue holds."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from fixture_types import Select

from etl import postgres

if TYPE_CHECKING:
    from etl.postgres import Connection

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
HOUR = dt.timedelta(hours=1)
DAY = 24 * HOUR
COUNTS = ("inserted", "updated", "unchanged", "cancelled", "suppressed", "held_back")


def user(
    user_id: str,
    segment: str,
    *,
    last: dt.datetime | None = NOW - HOUR,
    first: dt.datetime | None = NOW - DAY,
    searches: int = 5,
    platform: str = "ios",
) -> str:
    """One row of the mart as SQL; a test's moments are all relative to NOW."""
    moments = ", ".join(f"'{m:%Y-%m-%d %H:%M:%S}'" if m else "NULL" for m in (first, last))
    return f"('{user_id}', '{segment}', {searches}, {moments}, '{platform}')"


def audience(*users: str, built_at: dt.datetime = NOW) -> str:
    """mart_user_segments with these users."""
    return f"""
        CREATE OR REPLACE TABLE mart_user_segments AS
        SELECT
            user_id,
            segment,
            searches::HUGEINT AS lifetime_searches,
            1::HUGEINT AS lifetime_conversions,
            12.5::DECIMAL(38, 2) AS lifetime_revenue,
            first_seen_at::TIMESTAMP AS first_seen_at,
            last_seen_at::TIMESTAMP AS last_seen_at,
            platform AS primary_platform,
            'PT' AS primary_country,
            '{built_at:%Y-%m-%d %H:%M:%S}+00'::TIMESTAMPTZ AS segmented_at
        FROM (VALUES {", ".join(users)})
            AS v(user_id, segment, searches, first_seen_at, last_seen_at, platform)
    """


def queue(select: Select) -> list[str]:
    rows = select(
        "SELECT concat(user_id, ' ', template, ' ', status, ': ' || reason) AS mail"
        " FROM crm.email_queue ORDER BY id"
    )
    return [row["mail"] for row in rows]


def counts(result: Any) -> dict[str, int]:
    """What the run did, without the zeros."""
    return {name: result[name] for name in COUNTS if result[name]}


def mailed_lately(database: Connection, user_id: str) -> None:
    execute(
        database,
        "INSERT INTO crm.email_queue"
        " (user_id, template, episode_at, priority, payload, status, sent_at)"
        f" VALUES ('{user_id}', 'receipt', 'epoch', 1, '{{}}', 'sent', now())",
    )


def suppress(database: Connection, user_id: str) -> None:
    execute(database, f"INSERT INTO crm.email_suppressions (user_id) VALUES ('{user_id}')")


def change(database: Connection, what: str, *, of: str = "%") -> None:
    execute(database, f"UPDATE crm.email_queue SET {what} WHERE user_id LIKE '{of}'")


def execute(database: Connection, sql: str) -> None:
    postgres.execute(database, sql)
    database.commit()
