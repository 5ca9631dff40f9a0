"""`python -m etl.check`: everything that a run needs, all problems at once. Reads only.

Each thing is looked at by the code of a run, which says in the same words what is wrong.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from etl.check.findings import FAIL, OK, Finding, has_failed, skipped
from etl.cli import arguments
from etl.errors import UsageError
from etl.plumbing import failure, folder, log
from etl.plumbing.redact import as_json, each_text, escaped
from etl.settings import Settings, hidden, hiding
from etl.syncs import SYNCS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from etl.cache import Memory

__all__ = ["Finding", "check", "main"]

_ABOUT = (
    "Look at everything that a run needs, and say for each what was found and what to do.",
    "It reads only: settings, the warehouse and each sync's mart, Postgres, Redis, alerts. What"
    " would stop a run is told in its words, all at once, in the order in which to mend it.",
    "Settings come from the environment (see .env.example). Exit codes: 0 nothing stops a run,"
    " 1 something does, wrong settings included, 2 wrong usage of this command.",
)

# Fields of the settings that a place needs, by how they begin.
_NEEDS = {
    "warehouse": ("duckdb_", "mart_", "etl_sql_", "warehouse_"),
    "Postgres": ("postgres_",),
    "Redis": ("redis_",),
}


@dataclass(frozen=True)
class Flags:
    """What was asked for on the command line."""

    alert: bool = arguments.flag(False, "", "also send a test message to ALERT_URLS")
    json: bool = arguments.flag(False, "", "print a JSON list of name, state, found and advice")


@failure.sanitised()
def check(*, alert: bool = False) -> list[Finding]:
    """Look at everything that a run needs; nothing is waited for, tried again or written.

    Args:
        alert: send a test message to ALERT_URLS.

    Returns:
        One finding or more for each thing, in the order in which to mend them. `found` and
        `advice` of a failure, with `; ` between them, are what a run says.
    """
    given, problems = Settings.parse()
    settings = replace(given, retry_seconds=0.0, warehouse_wait=0.0)
    broken = {
        place
        for place, prefixes in _NEEDS.items()
        if any(name.startswith(prefixes) for name in problems)
    }
    with hiding(settings.secrets), folder.temporary() as spill:
        findings = [*_settings(problems), *_places(settings, broken, spill)]
    from etl.check import alerts

    return [*findings, *alerts.look(send=alert)]


def _settings(problems: dict[str, str]) -> Iterator[Finding]:
    told = list(problems.values())
    try:
        log.chosen_style()
    except UsageError as error:
        told.append(str(error).removeprefix("settings: "))
    for problem in told:
        yield Finding("settings", FAIL, f"settings: {problem}", "correct it (see .env.example)")
    if not told:
        yield Finding("settings", OK, "each can be read")


def _places(settings: Settings, broken: Collection[str], spill: Path) -> list[Finding]:
    """Look at Postgres and Redis before the marts, since what is to be known of these is there."""
    from etl.check import marts, postgres, redis

    memory: Memory | None = None
    connection, in_redis, in_postgres = None, skipped("settings", "Redis"), []
    with ExitStack() as stack:
        if "Postgres" in broken:
            in_postgres = skipped("settings", "Postgres")
        else:
            connection, in_postgres = postgres.look(settings, stack)
        if "Redis" not in broken:
            memory, in_redis = redis.look(settings)
        if "warehouse" in broken:
            return [*skipped("settings", "warehouse", *SYNCS), *in_postgres, *in_redis]
        file = marts.file(settings, spill)
        if file.state == FAIL:
            return [file, *skipped("warehouse", *SYNCS), *in_postgres, *in_redis]
        found = [file]
        answers = not has_failed(in_redis) and "Redis" not in broken
        for sync in SYNCS:
            own = spill / sync
            own.mkdir()
            run, seen = marts.look(sync, settings, own, connection, cache=answers)
            found += seen
            if memory and (one := redis.room(memory, run)):
                in_redis.append(one)
        if memory and not any(one.name == redis.MEMORY for one in in_redis):
            in_redis += skipped("the marts", redis.MEMORY)
        return [*found, *in_postgres, *in_redis]


def _run(flags: Flags) -> int:
    from etl.check.page import page
    from etl.cli import report

    # What a run would log is among the findings.
    logging.getLogger("etl").addHandler(logging.NullHandler())
    found = check(alert=flags.alert)
    told = each_text([asdict(one) for one in found], lambda text: escaped(hidden(text)))
    report.write(as_json(told) if flags.json else page(told))
    return 1 if has_failed(found) else 0


def main() -> NoReturn:
    """Run what sys.argv asks for and exit."""
    arguments.main(Flags, "etl.check", _ABOUT, _run)
