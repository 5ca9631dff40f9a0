"""Whatever went wrong, as an error that is safe to show: one line, and causes without values."""

from __future__ import annotations

import os
import traceback
from contextlib import ContextDecorator
from pathlib import Path
from types import TracebackType

from etl.errors import SyncError
from etl.plumbing.redact import escaped, one_line
from etl.settings import Settings, env_secrets, hidden

_ROOT = f"{Path(__file__).parent.parent.parent}/"
_PACKAGE = f"{_ROOT}etl/"

# More causes than any error of ours has; a chain that bites its tail ends as well.
_MOST_CAUSES = 20


class Cause(Exception):  # noqa: N818  (it stands for an error)
    """An error of a library: its type, SQLSTATE and frames, and none of its words or values."""


def to_sync_error(error: BaseException, settings: Settings, before: str = "") -> SyncError:
    """Return the error as a SyncError (itself, if it is one); `before` heads its message."""
    failure = error if isinstance(error, SyncError) else SyncError(unexpected(error))
    secrets = {*settings.secrets, *env_secrets(os.environ)}
    failure.args = (one_line(f"{before}{failure}", secrets),)
    return failure


def unexpected(error: BaseException) -> str:
    """Name an error that nobody foresaw by type and place: its words may quote a row."""
    reason = ""
    if isinstance(error, OSError) and error.errno:
        reason = f" ({os.strerror(error.errno)})"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_PACKAGE)]
    place = "".join(
        f" at {frame.filename.removeprefix(_ROOT)}:{frame.lineno}"
        for frame in (ours or frames)[-1:]
    )
    return f"unexpected {type(error).__name__}{reason}{place}; set ETL_DEBUG=1 for the traceback"


class sanitised(ContextDecorator):  # noqa: N801  (a context manager)
    """Let no error leave a block with causes that tell what a row, a server or a setting held.

    Whoever calls us logs an error with all its causes; an Airflow task does so by itself.
    """

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        """Put stand-ins in the places of the causes; our own message becomes one safe line."""
        if isinstance(error, SyncError):
            _stand_in(error, _MOST_CAUSES)
        elif error is not None:
            _replace_causes(error, error, _MOST_CAUSES)


def trace(error: BaseException) -> str:
    """Return the traceback of an error with those of its causes: frames, types, our messages."""
    text = hidden("".join(traceback.format_exception(_stand_in(error, _MOST_CAUSES))))
    return "\n".join(escaped(line) for line in text.split("\n"))


def _stand_in(error: BaseException, depth: int) -> BaseException:
    """What may be shown of an error: itself, if its words are ours."""
    if isinstance(error, SyncError | Cause):
        shown: BaseException = error
        shown.args = (one_line(str(error), env_secrets(os.environ)),)
    else:
        shown = Cause(_label(error)).with_traceback(error.__traceback__)
    _replace_causes(shown, error, depth)
    return shown


def _replace_causes(shown: BaseException, error: BaseException, depth: int) -> None:
    """Give `shown` the causes of `error`, and forget the variables in their frames."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    shown.__cause__ = _stand_in(cause, depth - 1) if cause is not None and depth else None
    shown.__context__ = None
    traceback.clear_frames(shown.__traceback__)


def _label(error: BaseException) -> str:
    kind, sqlstate = type(error), getattr(error, "sqlstate", None)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}{f', SQLSTATE {sqlstate}' if sqlstate else ''}"
