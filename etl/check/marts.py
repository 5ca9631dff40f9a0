"""The warehouse file, and each sync's mart: what a run would find, by the code of a run."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dataframely as dy

from etl import warehouse
from etl.check.findings import FAIL, OK, WARN, Finding, failed
from etl.check.look import Enough, Look, Unsure
from etl.errors import Refused, SyncError
from etl.options import Options
from etl.plumbing.counted import counted
from etl.run import Attempt, Job
from etl.run.guards import fired
from etl.status.problems import ago

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from etl.postgres import Connection
    from etl.settings import Settings

_WOULD_WRITE = "25006"  # the SQLSTATE


def file(settings: Settings, folder: Path) -> Finding:
    """Look at the warehouse file."""
    path = Path(settings.duckdb_path)
    try:
        found = warehouse.survey(settings, folder)
    except SyncError as error:
        return failed("warehouse", error)
    state = path.stat()
    age = ago(dt.timedelta(seconds=time.time() - state.st_mtime))
    size = f"{state.st_size / 1e6:,.1f} MB"
    words = (
        f"{path}: {size}, written {age}, DuckDB {found.storage}, {counted(found.tables, 'table')}"
    )
    if found.warning:
        advice = "let dbt finish, or remove one that is not its own"
        return Finding("warehouse", WARN, found.warning, advice)
    return Finding("warehouse", OK, words)


def look(
    sync: str, settings: Settings, folder: Path, connection: Connection | None, *, cache: bool
) -> tuple[Look, list[Finding]]:
    """Let a sync read its mart, and say what a run would make of it.

    Args:
        sync: its name.
        settings: of the run.
        folder: an empty one.
        connection: to Postgres, None where that has failed.
        cache: whether Redis answers.
    """
    job = Job(sync, settings, Options(dry_run=True))
    run = Look(Attempt(job, session=connection), folder, cache_answers=cache)
    try:
        errors = _look(run)
    except Unsure:
        run = replace(run, attempt=Attempt(job, session=connection), ordered=False)
        errors = _look(run)
    findings = [_failed(sync, error, settings, folder) for error in errors.values()]
    if run.tally.rejects is None:
        return run, findings
    return run, [_mart(run), *findings, *_guards(run)]


def _look(run: Look) -> dict[str, SyncError]:
    module = importlib.import_module(f"etl.{run.job.sync}")
    errors = _errors(partial(_load, run, module.load))
    if run.tally.rejects is None:  # Postgres was asked for something first
        errors |= _errors(partial(_read_alone, run, vars(module)))
    return errors


def _errors(work: Callable[[], object]) -> dict[str, SyncError]:
    """Return the error that ends the work, if it is one of a run, by its line."""
    try:
        with contextlib.suppress(Enough):
            work()
    except SyncError as error:
        return {} if error.sqlstate == _WOULD_WRITE else {str(error): error}
    return {}


def _load(run: Look, load: Callable[[Any], None]) -> None:
    if run.attempt.session is not None:
        run.begin()
    load(run)


def _read_alone(run: Look, module: Mapping[str, Any]) -> None:
    """Read the mart by the contract that the sync's module declares."""
    for contract in module.values():
        is_schema = isinstance(contract, type) and issubclass(contract, dy.Schema)
        if is_schema and contract.__module__ == module["__name__"]:
            run.read(contract, lambda rows: rows)


def _failed(sync: str, error: SyncError, settings: Settings, folder: Path) -> Finding:
    if isinstance(error, Refused):
        return _refused(sync, error)
    if not isinstance(error, warehouse.NotFoundError):
        return failed(sync, error)
    alike, names = bool(error.alike), error.alike
    if error.tables or error.columns:
        try:
            found, more = warehouse.lookalikes(settings, folder, error.tables, error.columns)
        except SyncError:
            return failed(sync, error)
        alike, names = found or alike, [*names, *(more if found or not alike else [])]
    elif not names:
        return failed(sync, error)
    seen = "what looks like it" if alike else "nothing looks like it"
    seen += f"{'' if alike else '; tables'}: {', '.join(names)}" if names else ""
    return failed(sync, error, f"{seen}; name it in {_where(sync, settings)}")


def _where(sync: str, settings: Settings) -> str:
    """The file that a sync reads, and where another one would come first."""
    own = f"{settings.etl_sql_dir}/{sync}.sql" if settings.etl_sql_dir else "ETL_SQL_DIR"
    if settings.etl_sql_dir and Path(own).is_file():
        return own
    return f"sql/warehouse/{sync}.sql or a file of yours ({own})"


def _refused(sync: str, error: Refused) -> Finding:
    found, _, advice = str(error).partition(". ")
    return Finding(sync, FAIL, found, advice)


def _mart(run: Look) -> Finding:
    rejects, metrics, source = run.mart.rejects, run.tally.metrics, run.mart.source
    built = "not said when built"
    if metrics.built_at:
        built = f"built {ago(metrics.now - metrics.built_at)}"
    names = [f"{name} is {column}" for name, column in source.mapped.items() if name != column]
    found = (
        f"{' and '.join(_plain(source.tables))}: {counted(metrics.mart_rows or 0, 'row')}, {built}"
    )
    found += f"; {', '.join(names)}" if names else ""
    if absent := sorted(set(run.contract) - source.columns):
        found += f"; no {', '.join(absent)}"
    if not rejects.total:
        return Finding(run.job.sync, OK, f"{found}; none to be rejected")
    reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in rejects.reasons.items())
    advice = "mend the mart's model; a run sets these rows aside (etl.rejected_rows)"
    return Finding(
        run.job.sync, WARN, f"{found}; {rejects.total:,} to be rejected: {reasons}", advice
    )


def _plain(names: list[str]) -> Iterator[str]:
    """`"warehouse"."main"."mart"` as schema and table."""
    for name in names:
        yield ".".join(name.replace('"', "").split(".")[-2:])


def _guards(run: Look) -> Iterator[Finding]:
    """The guards that the mart and the ledger are enough for."""
    for message, step in fired(run.tally.metrics, run.settings).items():
        yield Finding(run.job.sync, FAIL, message, step)
