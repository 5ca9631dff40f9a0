"""The command line: flags in, syncs run, a table or JSON out, an exit code.

python-fire only parses. Nothing runs before every flag is understood, and nothing heavy is
imported before that either.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import signal
import sys
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from etl.errors import Stopped, SyncError, UsageError

if TYPE_CHECKING:
    from types import FrameType

    from etl.options import SyncResult

SYNCS = ("user_segments", "email_triggers", "recommendations")


@dataclass(frozen=True)
class Flags:
    """What was asked for on the command line, checked."""

    sync: str
    dry_run: bool
    force: bool
    delete_missing: bool
    wait: float
    shards: int
    json: bool


def main(only: str | None = None) -> NoReturn:
    """Run what sys.argv asks for and exit; `only` is the sync of `python -m etl.<sync>`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        flags = parse(sys.argv[1:], only)
        if flags is not None:
            sys.exit(_run(flags))
    except UsageError as error:
        print(f"etl: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except Stopped as stop:
        print(f"etl: stopped by {stop}", file=sys.stderr)  # noqa: T201
        sys.exit(stop.exit_code)
    sys.exit(0)


def init_db() -> NoReturn:
    """`python -m etl.init_db`: say what was made, or why not, and exit."""
    from etl.init_db import init_db as bring_up

    try:
        if sys.argv[1:]:
            raise UsageError("init_db takes no arguments; settings come from the environment")
        made = bring_up()
    except SyncError as error:
        print(f"etl: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    print("\n".join(f"made {name}" for name in made) or "nothing to do")  # noqa: T201
    sys.exit(0)


def parse(arguments: list[str], only: str | None = None) -> Flags | None:
    """Parse flags; None: the help page was asked for and printed.

    Raises:
        UsageError: a flag, a value or a word that means nothing here.
    """
    if {"-h", "--help"} & set(arguments):
        print(_fire(["--help"]))  # noqa: T201
        return None
    for word in arguments:
        if word in {"-", "--"} or re.match(r"-[^-]", word):
            raise UsageError(f"unknown flag {word}; --help lists the flags")
    flags = _fire(arguments)
    if not isinstance(flags, Flags):
        raise UsageError(f"cannot make sense of {' '.join(arguments)!r}; --help lists the flags")
    return _checked(flags, only)


def _page(
    *,
    sync: str = "all",
    dry_run: bool = False,
    force: bool = False,
    delete_missing: bool = False,
    wait: float = 0,
    shards: int = 1,
    json: bool = False,
) -> Flags:
    """Bring dbt's marts from DuckDB to Postgres and Redis; safe to run twice.

    Settings come from the environment (see .env.example): DUCKDB_PATH, POSTGRES_HOST,
    REDIS_HOST and the rest. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 stopped
    by a guard. ETL_DEBUG=1 adds tracebacks.

    Args:
        sync: all, user_segments, email_triggers or recommendations.
        dry_run: The real run without its effect. In Postgres all is done and rolled back,
            which takes the same locks and time; Redis is only read.
        force: Go past the guards; the ledger remembers it.
        delete_missing: With user_segments, also delete the users who left the mart.
        wait: Seconds to wait for another run of the same sync before giving up.
        shards: Walk each mart in this many parts, to bound memory.
        json: Print one JSON object per sync on stdout and nothing else there.
    """
    return Flags(sync, dry_run, force, delete_missing, wait, shards, json)


def _fire(arguments: list[str]) -> Any:
    """What python-fire makes of the arguments: Flags, the help page, or something odd."""
    import fire

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return fire.Fire(_page, command=arguments, name="etl", serialize=lambda _: None)
    except fire.core.FireExit as end:
        if end.code == 0:
            return said.getvalue().partition("\n\n")[2].rstrip()
        problem = end.trace.elements[-1].ErrorAsStr()
        if stray := re.match(r"Could not consume arg: (.*)", problem):
            problem = f"unknown {'flag' if stray[1].startswith('-') else 'word'} {stray[1]}"
        raise UsageError(f"{problem}; --help lists the flags") from None


def _checked(flags: Flags, only: str | None) -> Flags:
    flags = replace(
        flags,
        dry_run=_switch("--dry-run", flags.dry_run),
        force=_switch("--force", flags.force),
        delete_missing=_switch("--delete-missing", flags.delete_missing),
        json=_switch("--json", flags.json),
    )
    sync = flags.sync if only is None or flags.sync != "all" else only
    if sync not in (("all", *SYNCS) if only is None else (only,)):
        known = ", ".join(("all", *SYNCS)) if only is None else only
        raise UsageError(f"unknown sync {sync!r} after --sync; it can be: {known}")
    if flags.delete_missing and sync != "user_segments":
        raise UsageError(
            "--delete-missing works with user_segments alone; add --sync user_segments"
        )
    if isinstance(flags.wait, bool) or not isinstance(flags.wait, int | float) or flags.wait < 0:
        raise UsageError(f"--wait takes a number of seconds, not {flags.wait!r}")
    if isinstance(flags.shards, bool) or not isinstance(flags.shards, int) or flags.shards < 1:
        raise UsageError(f"--shards takes a whole number from 1 on, not {flags.shards!r}")
    return replace(flags, sync=sync)


def _switch(flag: str, value: object) -> bool:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise UsageError(f"{flag} is a switch: {flag}, {flag}=true or {flag}=false, not {value!r}")
    return value


def _run(flags: Flags) -> int:
    from etl import log, report

    log.configure()
    results: list[SyncResult] = []
    codes: list[int] = []
    for name in SYNCS if flags.sync == "all" else (flags.sync,):
        try:
            result, code = _run_one(name, flags, results)
        except Stopped as stop:
            if stop.result is not None:
                report.show([*results, stop.result], flags.json)
            raise
        results.append(result)
        codes.append(code)
        if flags.json:
            report.show([result], as_json=True)
    if not flags.json:
        report.show(results, as_json=False)
    return next((code for code in (1, 2, 3) if code in codes), 0)


def _run_one(name: str, flags: Flags, before: list[SyncResult]) -> tuple[SyncResult, int]:
    from etl.run import refused

    segments = [result for result in before if result["sync"] == "user_segments"]
    if name == "email_triggers" and segments and segments[0]["status"] != "ok":
        reason = f"user_segments {segments[0]['status']}, and nobody is mailed on such a mart"
        return refused(name, reason, dry_run=flags.dry_run), 3
    options = {key: getattr(flags, key) for key in ("dry_run", "force", "wait", "shards")}
    if flags.delete_missing:
        options["delete_missing"] = True
    try:
        return importlib.import_module(f"etl.{name}").sync(**options), 0
    except SyncError as error:
        if os.environ.get("ETL_DEBUG") == "1":
            traceback.print_exc()
        if error.result is None:  # the settings did not parse: nothing was begun
            raise UsageError(str(error)) from error
        return error.result, error.exit_code


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(signal.Signals(number))
