"""Numbers with their nouns, for people."""

from __future__ import annotations


def counted(number: float, one: str, many: str = "") -> str:
    """Return `1 row` or `2,000 rows`.

    Args:
        number: an int, or whole hours as a float.
        one: what follows the number 1: `row`, `row is`.
        many: what follows other numbers; `one` with an s unless given.
    """
    return f"{number:,} ".replace(".0 ", " ") + (one if number == 1 else many or f"{one}s")
