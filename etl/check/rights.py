"""What the syncs need of Postgres, read where it is granted and made: roles.sql and schema.sql."""

from __future__ import annotations

import re
from typing import Any

from etl.plumbing import queries

# What the syncs call; everybody may, unless somebody took that away.
FUNCTIONS = {"etl.shard_of": "text, integer"}

_SET = re.compile(r"^\\set (\w+) (.*)$", re.MULTILINE)
_GRANT = re.compile(r"^GRANT (.+?)\s+ON (.+?)\s+TO ([^;]+);", re.MULTILINE | re.DOTALL)
_PRIVILEGE = re.compile(r"(\w+)(?: \(([^)]*)\))?")
_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\S+) \(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(
    r"^    ([a-z_]+) +(double precision|numeric\(\d+, \d+\)|[a-z]+(?:\[\])?)(?!\w)(.*?)"
    r"(?=^    [a-zA-Z]|\Z)",
    re.MULTILINE | re.DOTALL,
)

_KEY = re.compile(r"^    (?:CONSTRAINT \w+ )?(?:PRIMARY KEY|UNIQUE) \(([^)]*)\)", re.MULTILINE)


def needed() -> list[dict[str, Any]]:
    """Return the rights of searchflow_etl as dicts: kind, name, privilege, columns (None: all)."""
    text = _expanded(re.sub(r"--.*", "", queries.load("postgres", "roles")))
    rights = [
        {**target, "privilege": privilege, "columns": columns.split(", ") if columns else None}
        for privileges, targets, grantees in _GRANT.findall(text)
        if "searchflow_etl" in re.split(r",\s*", grantees.strip())
        for target in _targets(targets)
        for privilege, columns in _PRIVILEGE.findall(privileges)
    ]
    rights += [
        {"kind": "function", "name": name, "privilege": "EXECUTE", "columns": None}
        for name in FUNCTIONS
    ]
    return [{**right, "place": place} for place, right in enumerate(rights)]


def _expanded(text: str) -> str:
    """Put the values of psql's variables in their places, as its meta-command makes them."""
    values: dict[str, str] = {}

    def value(found: re.Match[str]) -> str:
        return values.get(found[1], found[0])

    for name, words in _SET.findall(text):
        parts = re.findall(r"'([^']*)'|(:\w+)", words)
        values[name] = "".join(quoted or re.sub(r":(\w+)", value, other) for quoted, other in parts)
    return re.sub(r":(\w+)", value, text)


def _targets(text: str) -> list[dict[str, str]]:
    kind, _, name = text.partition(" ")
    if kind in ("SCHEMA", "DATABASE"):
        return [{"kind": kind.lower(), "name": one} for one in re.split(r",\s*", name)]
    if kind == "FUNCTION":
        return []
    return [{"kind": "table", "name": one} for one in re.split(r",\s*", text)]


def tables() -> list[dict[str, Any]]:
    """Return the tables that the syncs use: name, types of the columns, keys, names of checks."""
    used = {right["name"] for right in needed() if right["kind"] == "table"}
    return [
        {
            "name": name,
            "columns": {column: type_ for column, type_, _ in _COLUMN.findall(body)},
            "keys": _keys(body),
            "checks": [
                *re.findall(r"CONSTRAINT (\w+)", body),
                *(
                    f"{name.partition('.')[2]}_{column}_check"
                    for column, _, rest in _COLUMN.findall(body)
                    if "CHECK" in rest
                ),
            ],
        }
        for name, body in _TABLE.findall(queries.load("postgres", "schema"))
        if name in used
    ]


def _keys(body: str) -> list[list[str]]:
    """Return the columns of each key of a table, less keys that Postgres counts itself."""
    inline = [[name] for name, _, rest in _COLUMN.findall(body) if _is_key(rest)]
    return [*inline, *(names.split(", ") for names in _KEY.findall(body))]


def _is_key(rest: str) -> bool:
    return "PRIMARY KEY" in rest.partition(",")[0] and "IDENTITY" not in rest
