"""Where the SQL is: files under sql/, shipped inside the package as etl/sql."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_INSTALLED = _PACKAGE / "sql"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "sql"


def load(*parts: str) -> str:
    """Return the text of one file: `load("postgres", "user_segments")`."""
    return ROOT.joinpath(*parts[:-1], f"{parts[-1]}.sql").read_text(encoding="utf-8")
