"""What makes the tables of Postgres others than those of sql/postgres/schema.sql. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from etl import postgres
from etl.check import rights
from etl.check.findings import FAIL, OK, WARN, Finding, failed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.postgres import Connection
    from etl.settings import Settings

TABLES, TRIGGERS = "Postgres tables", "Postgres triggers"


def look(connection: Connection, settings: Settings) -> Iterable[Finding]:
    """Tell triggers, rules, policies, and columns and keys that are others."""
    found = postgres.query(connection, "check_tables", orjson.dumps(rights.tables()).decode())
    for one in found:
        yield _finding(one["kind"], one["name"], one["what"], settings)
    if not found:
        yield Finding(TRIGGERS, OK, "no triggers, rules, policies or columns of other types")


def _finding(kind: str, name: str, what: str, settings: Settings) -> Finding:
    if kind == "policy":
        table = name.rpartition(".")[2]
        words = f'query would be affected by row-level security policy for table "{table}"'
        return failed("Postgres row security", postgres.foreseen(settings, "42501", words))
    place, state, said, advice = _ODD[kind]
    return Finding(place, state, f"{name} {said} {what}".rstrip(), advice)


_ALTER = "compare the table with sql/postgres/schema.sql, and alter its column"

# By the kind that check_tables.sql tells: where it is shown, whether it stops a run, what to do.
_ODD = {
    "rule": (TRIGGERS, FAIL, "cannot be written by a run: rule", "mend it or disable it"),
    "dropper": (
        TRIGGERS,
        WARN,
        "may lose rows, which ends a run, by trigger",
        "see that it drops none; mend it or disable it",
    ),
    "trigger": (
        TRIGGERS,
        WARN,
        "has trigger",
        "it is part of each run: what it raises ends that, and its time adds to it",
    ),
    "type": (TABLES, WARN, "is", _ALTER),
    "other type": (TABLES, FAIL, "is", _ALTER),
    "absent": (
        TABLES,
        FAIL,
        "has no column",
        "add what sql/postgres/schema.sql gives the table: `python -m etl.init_db` does not, where"
        " the table was made with it",
    ),
    "key": (
        TABLES,
        FAIL,
        "has no unique index of the columns",
        "give it the key that sql/postgres/schema.sql has",
    ),
    "generated": (
        TABLES,
        FAIL,
        "is generated, and a run writes it",
        "ALTER TABLE ... ALTER COLUMN ... DROP EXPRESSION",
    ),
    "collation": (
        TABLES,
        WARN,
        "takes different texts for the same by its collation",
        'let it have that of sql/postgres/schema.sql, or COLLATE "C"',
    ),
    "not null": (
        TABLES,
        FAIL,
        "is NOT NULL, and no run has a value for it",
        "give it a DEFAULT, or drop NOT NULL",
    ),
    "constraint": (
        TABLES,
        WARN,
        "has a constraint that is not of schema.sql:",
        "a row of the mart that breaks it ends a run: see that none does",
    ),
}
