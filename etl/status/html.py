"""The page of `python -m etl.status --html FILE`: one file that needs nothing beside it."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.cli import report
from etl.errors import SyncError, UsageError
from etl.plumbing import files
from etl.status import charts
from etl.status.problems import ago

if TYPE_CHECKING:
    import jinja2


def check() -> None:
    """Say what is missing before anything is asked.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError:
        message = "--html needs Jinja2: pip install 'searchflow-etl[html]'"
        raise UsageError(message) from None


def write(known: dict[str, Any], hours: float, file: str) -> None:
    """Write what `status()` returned as a page; whoever reads the file sees all of it or none.

    Raises:
        SyncError: the file cannot be written.
    """
    page = render(known, hours)
    try:
        with files.replacing(file, 0o666) as new:
            new.write(page.encode(errors="backslashreplace"))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise SyncError(f"--html {file}: cannot write it ({reason}); give another file") from None


def render(known: dict[str, Any], hours: float) -> str:
    """Return the page; `hours` without an ok run make a sync overdue."""
    syncs = [
        {**sync, "about": _about(sync["sync"]), **charts.of(sync["trend"])}
        for sync in known["syncs"]
    ]
    template = _environment().get_template("page.html.j2")
    return template.render(
        **{**known, "syncs": syncs},
        hours=hours,
        templates=_by_template(known["queue"]),
        charts=charts,
    )


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ago=ago,
        count=lambda value: "" if value is None else f"{value:,}",
        took=lambda value: "" if value is None else f"{value:,.2f} s",
        moment=lambda value: f"{value:%Y-%m-%d %H:%M}",
        did=report.outcome_or_error,
    )
    return environment


def _by_template(queue: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return mails by template, and in each by status."""
    templates: dict[str, dict[str, Any]] = {}
    for status, row in queue.items():
        for template, mails in row["templates"].items():
            templates.setdefault(template, {})[status] = mails
    return dict(sorted(templates.items()))


def _about(sync: str) -> str:
    """What a sync carries where: the first line of its module, which is not run for that."""
    spec = importlib.util.find_spec(f"etl.{sync}")
    if spec is None or spec.origin is None:
        return ""
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return (
        docstring.partition("\n")[0]
        .partition(": ")[2]
        .replace("->", "\N{RIGHTWARDS ARROW}")
        .replace("`", "")
    )
