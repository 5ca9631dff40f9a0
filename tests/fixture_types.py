"""What the fixtures hand out that are functions: their arguments and results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from commands import Ended

    from etl.errors import SyncError


class Mart(Protocol):
    """Run SQL statements that make the marts."""

    def __call__(self, *statements: str) -> None: ...


class Select(Protocol):
    """Read rows of Postgres, as committed now; parameters are $1, $2, ..."""

    def __call__(self, sql: str, *parameters: Any) -> list[dict[str, Any]]: ...


class Meanwhile(Protocol):
    """Do something in mid-run, before the batch of keys with this number goes to the writer."""

    def __call__(self, number: int, do: Callable[[], object]) -> None: ...


class Failing(Protocol):
    """Spoil a mart step by step, sync, and return the error; a step is SQL or done to the file."""

    def __call__(self, *spoil: str | Callable[[Path], object]) -> SyncError: ...


class OwnQuery(Protocol):
    """Write sql/warehouse/user_segments.sql of a team's own; return its path."""

    def __call__(self, sql: str) -> Path: ...


class Etl(Protocol):
    """Run `python -m etl <arguments>`, or `python -m etl.<only>`, in this process."""

    def __call__(self, *arguments: str, only: str | None = None) -> Ended: ...


class Sync(Protocol):
    """The function `sync` of any sync."""

    def __call__(self, *args: Any, **options: Any) -> Any: ...
