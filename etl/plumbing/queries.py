"""Where the SQL is: files under sql/, shipped inside the package as etl/sql."""

from __future__ import annotations

from pathlib import Path

from etl.errors import SyncError

_PACKAGE = Path(__file__).parent.parent
_INSTALLED = _PACKAGE / "sql"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "sql"


def load(*parts: str) -> str:
    """Return the text of one file: `load("postgres", "user_segments")`.

    Raises:
        SyncError: there is no such file.
    """
    path = ROOT.joinpath(*parts[:-1], f"{parts[-1]}.sql")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SyncError(f"sql/{'/'.join(parts)}.sql is not there; write it") from None
