"""Events with stable names and fields, on the standard logger `etl`.

Library code only emits; how lines look is the command line's business (`configure`), so that
Airflow and notebooks keep their own handlers. No user data: counts, and at most one key.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from etl.errors import UsageError
from etl.plumbing.redact import as_json, each_text, escaped, quote_value
from etl.settings import hidden

_LOGGER = logging.getLogger("etl")
_context: ContextVar[dict[str, Any] | None] = ContextVar("etl_log_context", default=None)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event, such as `event("mart.read", rows=10_000, seconds=0.21)`."""
    if _LOGGER.isEnabledFor(level):
        every = {**(_context.get() or {}), **each_text(fields, hidden)}
        text = " ".join([name, *(f"{key}={quote_value(value)}" for key, value in every.items())])
        _LOGGER.log(level, text, extra={"etl_event": name, "etl_fields": every})


def warning(name: str, **fields: Any) -> None:
    """Log an event that somebody should look at."""
    event(name, logging.WARNING, **fields)


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Put fields (sync, run_id) on every event inside the block."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def configure() -> str:
    """Send events to stderr: readable on a terminal, JSON lines otherwise; LOG_FORMAT overrides.

    Returns:
        text or json. As text, for people, an event leaves out its `error`, which the command
        line tells once, at the end, and a `reason` that was told before.
    """
    style = chosen_style()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Text() if style == "text" else _Json())
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    return style


def chosen_style() -> str:
    """Return text or json, as LOG_FORMAT or the terminal asks for.

    Raises:
        UsageError: LOG_FORMAT is neither.
    """
    style = os.environ.get("LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json")
    if style not in ("text", "json"):
        raise UsageError(f"settings: LOG_FORMAT: {style!r} is neither text nor json")
    return style


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._told: set[Any] = set()

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created).astimezone()
        fields = dict(getattr(record, "etl_fields", {}))
        run_id = str(fields.pop("run_id", ""))[:8]
        self._told.add(fields.pop("error", None))
        if (reason := fields.get("reason")) in self._told:
            fields.pop("reason", None)
        self._told.add(reason)
        parts = [f"{moment:%H:%M:%S}", run_id, _event(record)]
        if record.levelno > logging.INFO:
            parts.insert(1, record.levelname.lower())
        parts += [f"{key}={_readable(value)}" for key, value in fields.items()]
        return " ".join(part for part in parts if part)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {
            "at": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": _event(record),
            **getattr(record, "etl_fields", {}),
        }
        return as_json(line)


def _event(record: logging.LogRecord) -> str:
    return getattr(record, "etl_event", "") or escaped(hidden(record.getMessage()))


def _readable(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return quote_value(value)
