"""The command line: syncs run, a table or JSON out, an exit code.

Nothing runs before every flag is understood, and nothing heavy is imported before that either.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import NoReturn

from etl import __version__
from etl.cli import alerts, exits, flags, progress, report
from etl.cli.flags import Flags
from etl.errors import Cancelled, SyncError
from etl.plumbing import log, signals
from etl.result import SyncResult
from etl.syncs import BY_NAME, SYNCS


def main(only: str | None = None) -> NoReturn:
    """Run what sys.argv asks for and exit; `only` is the sync of `python -m etl.<sync>`."""

    def work() -> int:
        if sys.argv[1:] == ["--version"]:
            report.write(f"searchflow-etl {__version__}")
            return 0
        wanted = flags.parse(sys.argv[1:], only)
        if wanted is not None:
            return _run(wanted)
        report.write(flags.help_page(only))
        return 0

    exits.exit_with(work)


def _run(wanted: Flags) -> int:
    log_style = log.configure()
    alerts.check()
    results: list[SyncResult] = []
    codes: list[int] = []

    def add(result: SyncResult, code: int) -> None:
        results.append(result)
        codes.append(code)
        if wanted.json:
            report.show([result], as_json=True)

    try:
        with progress.shown(json=wanted.json):
            for name in SYNCS if wanted.sync == "all" else (wanted.sync,):
                add(*_run_one(name, wanted, results))
                signals.check()
    except Cancelled as stop:
        if stop.result is not None:
            add(stop.result, stop.exit_code)
        raise
    finally:
        unwritten = _show(results, wanted, log_style)
        if log_style == "text":
            report.print_reasons(results)
    signals.ignore_all()  # what is done is done; a message takes a moment
    alerts.send(results)
    if unwritten:
        raise unwritten
    return next((code for code in (1, 2, 3) if code in codes), 0)


def _show(results: list[SyncResult], wanted: Flags, log_style: str) -> SyncError | None:
    """Print a page of what was done; what stdout does not take is told after the alerts."""
    try:
        if results and not wanted.json:
            report.show(results, as_json=False, reasons=log_style == "json")
    except SyncError as error:
        return error
    return None


def _run_one(name: str, wanted: Flags, before: list[SyncResult]) -> tuple[SyncResult, int]:
    """The result of one sync and the exit code it asks for."""
    from etl.run import record_skipped

    module = importlib.import_module(f"etl.{name}")
    signals.install_raising()
    signals.check()  # one that came while the sync was imported
    for result in before:
        if result["sync"] == BY_NAME[name].after and result["status"] != "ok":
            return record_skipped(name, _not_run(result), dry_run=wanted.dry_run), 3
    # Users are named to whoever asked at this command line.
    given = {**vars(wanted), "shard": flags.shard_of(wanted), "name_users": True}
    taken = ("dry_run", "force", "wait", "shard", *BY_NAME[name].flags)
    options = {flag: given[flag] for flag in taken}
    try:
        return module.sync(**options), 0
    except SyncError as error:
        if error.result is None:  # the settings did not parse: nothing was begun
            if not wanted.dry_run:
                alerts.send_error(error)
            raise
        exits.debug(error)
        return error.result, error.exit_code


def _not_run(before: SyncResult) -> str:
    """Why a sync is not run after one that did not go through."""
    verb = "was refused" if before["status"] == "refused" else before["status"]
    # What is wrong, without the advice that its own line gives.
    problem = re.split(r"; |\. ", before.get("error", "no reason is known"))[0]
    return f"not run, because {before['sync']} {verb}: {problem}"
