"""What the syncs need of Postgres, read where it is granted and made: roles.sql and schema.sql."""

from __future__ import annotations

import re
from typing import Any

from etl.plumbing import queries

# What the syncs call; everybody may, unless somebody took that away.
FUNCTIONS = {"etl.shard_of": "text, integer"}

# The role of the syncs, and the lists of roles in roles.sql that it is in.
_GRANTEES = re.compile(r"searchflow_etl|:roles|:jobs")

_GRANT = re.compile(r"^GRANT (.+?)\s+ON (.+?)\s+TO ([^;]+);", re.MULTILINE | re.DOTALL)
_PRIVILEGE = re.compile(r"(\w+)(?: \(([^)]*)\))?")
_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\S+) \(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(
    r"^    ([a-z_]+) +(double precision|numeric\(\d+, \d+\)|[a-z]+(?:\[\])?)(?!\w)(.*?)"
    r"(?=^    [a-zA-Z]|\Z)",
    re.MULTILINE | re.DOTALL,
)


def needed() -> list[dict[str, Any]]:
    """Return the rights of searchflow_etl as dicts: kind, name, privilege, columns (None: all)."""
    text = re.sub(r"--.*", "", queries.load("postgres", "roles"))
    rights = [
        {**target, "privilege": privilege, "columns": columns.split(", ") if columns else None}
        for privileges, targets, grantees in _GRANT.findall(text)
        if any(_GRANTEES.fullmatch(one) for one in re.split(r",\s*", grantees.strip()))
        for target in _targets(targets)
        for privilege, columns in _PRIVILEGE.findall(privileges)
    ]
    rights += [
        {"kind": "function", "name": name, "privilege": "EXECUTE", "columns": None}
        for name in FUNCTIONS
    ]
    return [{**right, "place": place} for place, right in enumerate(rights)]


def _targets(text: str) -> list[dict[str, str]]:
    kind, _, name = text.partition(" ")
    if kind in ("SCHEMA", "DATABASE"):
        return [{"kind": kind.lower(), "name": one} for one in re.split(r",\s*", name)]
    if kind == "FUNCTION":
        return []
    return [{"kind": "table", "name": one} for one in re.split(r",\s*", text)]


def tables() -> list[dict[str, Any]]:
    """Return the tables that the syncs use: name, types of the columns, names of the checks."""
    used = {right["name"] for right in needed() if right["kind"] == "table"}
    return [
        {
            "name": name,
            "columns": {column: type_ for column, type_, _ in _COLUMN.findall(body)},
            "checks": [
                f"{name.partition('.')[2]}_{column}_check"
                for column, _, rest in _COLUMN.findall(body)
                if "CHECK" in rest
            ],
        }
        for name, body in _TABLE.findall(queries.load("postgres", "schema"))
        if name in used
    ]
