"""Whatever went wrong in a run, as one line that is safe to show: a SyncError."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import SyncError

if TYPE_CHECKING:
    from etl.settings import Settings


def explained(error: BaseException, settings: Settings, before: str = "") -> SyncError:
    """Return the error as a SyncError (itself, if it is one); `before` heads its message."""
    if isinstance(error, SyncError):
        failure = error
    else:
        failure = SyncError(
            f"unexpected {type(error).__name__}: {error}; set ETL_DEBUG=1 for the traceback"
        )
    failure.args = (clean(f"{before}{failure}", settings),)
    return failure


def clean(message: str, settings: Settings) -> str:
    """One line of what any log and any database can hold, and no secret in it."""
    for secret in settings.secrets:
        message = message.replace(secret, "***")
    printable = message.replace("\0", "\\0").encode(errors="backslashreplace").decode()
    return " ".join(printable.split())
