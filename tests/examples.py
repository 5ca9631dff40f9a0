"""How many examples of a rule a test tries."""

from __future__ import annotations

import os

QUICK = bool(os.environ.get("ETL_QUICK"))


def examples(few: int, every: int) -> int:
    """Return the first figure in `make test`, which sets ETL_QUICK, and the second elsewhere."""
    return few if QUICK else every
