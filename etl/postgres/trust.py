"""Refuse schemas and tables of untrusted owners, whose triggers would run with our rights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from etl.errors import SyncError
from etl.plumbing import queries
from etl.postgres.query import query
from etl.postgres.session import Connection, session
from etl.settings import Settings


@contextmanager
def trusted_session(settings: Settings, purpose: str) -> Iterator[Connection]:
    """Connect for the length of a block, once `check` has passed; see `session`."""
    with session(settings, purpose) as connection:
        check(connection, settings)
        yield connection


def check(connection: Connection, settings: Settings) -> None:
    """Check the owners of the schemas crm and etl and of the tables of schema.sql before use.

    Raises:
        SyncError: an owner is untrusted (docs/deployment.md says who is trusted), or another
            table inherits from one of these; nothing was read or written.
    """
    # Of a column or a constraint: its table or view.
    names = re.findall(
        r"^-- makes: (\w+(?:\.\w+)?)", queries.load("postgres", "schema"), re.MULTILINE
    )
    found = query(connection, "untrusted", orjson.dumps(names).decode())
    if not found:
        return
    first = found[0]
    if first["parent"] is None:
        theirs = ", ".join(row["name"] for row in found if row["owner"] == first["owner"])
        said = (
            f"{theirs}: owned by {first['owner']}, whose triggers would run with the rights of"
            f" {settings.postgres_user}; drop it, change its owner or, if that is right, GRANT"
            f" searchflow_owner TO {first['owner']} (docs/deployment.md)"
        )
    else:
        said = (
            f"{first['name']} inherits from {first['parent']}, so that its rows would count as rows"
            f" of that; ALTER TABLE {first['name']} NO INHERIT {first['parent']}"
        )
    raise SyncError(f"Postgres ({settings.postgres_address}): {said}")
