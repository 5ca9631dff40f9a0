"""Whatever went wrong in a run, as one line that is safe to show: a SyncError."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from etl.errors import SyncError
from etl.settings import hide, secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.settings import Settings


def explained(error: BaseException, settings: Settings, before: str = "") -> SyncError:
    """Return the error as a SyncError (itself, if it is one); `before` heads its message."""
    if isinstance(error, SyncError):
        failure = error
    else:
        failure = SyncError(
            f"unexpected {type(error).__name__}: {error}; set ETL_DEBUG=1 for the traceback"
        )
    secrets = {*settings.secrets, *secrets_of(os.environ)}
    failure.args = (clean(f"{before}{failure}", secrets),)
    return failure


def clean(message: str, secrets: Iterable[str]) -> str:
    """One line of what any log, terminal and database can hold, and no secret in it."""
    words = " ".join(hide(message, secrets).replace("\0", "\\0").split())
    # Not even of a name that somebody made up should a terminal take orders.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
