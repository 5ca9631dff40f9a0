"""The flags of `python -m etl` and of `python -m etl.<sync>`. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from etl.cli import arguments
from etl.cli.arguments import flag
from etl.errors import UsageError
from etl.options import Options
from etl.syncs import BY_NAME, SYNCS, that_take

# Flags that some syncs take, and what the others do not do.
_SOME = {
    "delete_missing": "deletes no rows",
    "show": "shows no changes",
    "decisions": "decides on no mails",
}

_ABOUT = (
    "Bring dbt's marts from DuckDB to Postgres and Redis; safe to run twice.",
    "Settings come from the environment (see .env.example): DUCKDB_PATH, POSTGRES_HOST,"
    " REDIS_HOST and the rest. LOG_FORMAT=text or json says how the log on stderr looks,"
    " ETL_DEBUG=1 adds tracebacks.",
    "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 stopped by a guard.",
)


@dataclass(frozen=True)
class Flags:
    """What was asked for on the command line."""

    sync: str = flag("all", "NAME", f"{', '.join(SYNCS)}, or all of them in turn (all)")
    dry_run: bool = flag(
        False,
        "",
        "the real run without its effect: in Postgres all is done and rolled back, which takes"
        " the same locks and time; Redis is only read",
    )
    force: bool = flag(False, "", "go past the guards; the ledger remembers it")
    delete_missing: bool = flag(
        False,
        "",
        f"with {' or '.join(that_take('delete_missing'))}: also delete the rows whose key left the"
        " mart",
    )
    wait: float = flag(
        0, "SECONDS", "how long to wait for another run of the same sync before giving up (0)"
    )
    shard: str | None = flag(
        None,
        "I/N",
        "load shard I of N alone, from 0/N on, for schedulers",
    )
    show: int = flag(
        0, "N", "with user_segments and --dry-run: show N users who would change, old -> new"
    )
    decisions: str | None = flag(
        None,
        "FILE",
        "with email_triggers and --dry-run: write what would become of each mail to FILE, a .csv"
        " or .parquet",
    )
    json: bool = flag(False, "", "print one JSON object per sync on stdout and nothing else there")


def parse(words: list[str], only: str | None = None) -> Flags | None:
    """Parse the command line; None: it asks for the help page.

    Args:
        words: what follows the program's name.
        only: the sync of `python -m etl.<sync>`, None for `python -m etl`.

    Raises:
        UsageError: a flag, a value or a word that means nothing here.
    """
    if only is not None and only not in BY_NAME:
        raise UsageError(f"{only} is not on the list of syncs; add it to etl/syncs.py")
    if any(word.partition("=")[0] == "--shards" for word in words):
        raise UsageError(
            "--shards is gone: a sync of any size runs in the same memory; leave it out"
            " (--shard I/N loads one shard, for schedulers)"
        )
    for name, does_not in _SOME.items() if only else ():
        written = {word.partition("=")[0].replace("_", "-") for word in words}
        if only not in that_take(name) and arguments.dashed(name) in written:
            raise UsageError(f"{only} {does_not}: {_works_with(name)}")
    flags = arguments.parse(Flags, words, _hidden(only))
    if flags is None:
        return None
    flags = flags if only is None else replace(flags, sync=only)
    if flags.sync not in ("all", *SYNCS):
        raise UsageError(f"unknown sync {flags.sync!r}; it can be all, {', '.join(SYNCS)}")
    for name in _SOME:
        able = that_take(name)
        if getattr(flags, name) and flags.sync not in able:
            raise UsageError(f"{_works_with(name)}; add --sync {able[0]}")
    # It checks them.
    Options(
        flags.dry_run,
        wait=flags.wait,
        shard=shard_of(flags),
        show=flags.show,
        decisions=flags.decisions,
    )
    return flags


def _works_with(flag: str) -> str:
    return f"{arguments.dashed(flag)} works with {' or '.join(that_take(flag))} alone"


def shard_of(flags: Flags) -> tuple[int, int] | None:
    """Return the shard to load; None: the whole mart.

    Raises:
        UsageError: it is not two whole numbers.
    """
    if flags.shard is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(flags.shard))
    if found is None:
        raise UsageError(f"--shard takes I/N, as 0/16 for the first of 16, not {flags.shard!r}")
    return int(found[1]), int(found[2])


def help_page(only: str | None = None) -> str:
    """Every flag with its meaning, in at most 80 columns."""
    program = f"etl.{only}" if only else "etl"
    return arguments.help_page(Flags, program, _ABOUT, _hidden(only))


def _hidden(only: str | None) -> set[str]:
    """The flags that `python -m etl.<only>` does not take."""
    if only is None:
        return set()
    return {"sync", *(name for name in _SOME if name not in BY_NAME[only].flags)}
