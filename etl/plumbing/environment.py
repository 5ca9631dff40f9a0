"""One setting of the environment or of a Docker secret: its text, and what that stands for."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECRETS = Path("/run/secrets")

# No secret is longer, and a device or a log in its place must not fill the memory.
_MOST_BYTES = 65_536


def text_of(name: str, environment: Mapping[str, str]) -> str:
    """Return a setting as it was given, "" where it was not.

    Raises:
        ValueError: its secret cannot be read.
    """
    if text := environment.get(name.upper()):
        return text
    path = SECRETS / name
    try:
        return _secret(path) if os.path.lexists(path) else ""
    except UnicodeError:  # whose text holds bytes of it
        raise ValueError(f"cannot read the secret {path}: save it as UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"cannot read the secret {path}: {error.strerror}") from None


def _secret(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would keep us waiting
        raise ValueError(f"the secret {path} is not a file; put the value in one")
    with path.open("rb") as file:
        read = file.read(_MOST_BYTES + 1)
    if len(read) > _MOST_BYTES:
        raise ValueError(f"the secret {path} is longer than {_MOST_BYTES:,} bytes")
    text = read.decode("utf-8-sig").rstrip("\r\n")
    if not text.strip():
        raise ValueError(f"the secret {path} is empty; write the value in it, or remove it")
    return text


def value_of(text: str, kind: str, low: float | None, high: float | None) -> Any:
    """Return the value of a setting.

    Args:
        text: as it was given.
        kind: str, int, float or bool.
        low: it may not be less.
        high: it may not be more.

    Raises:
        ValueError: the text is no such value, or out of range.
    """
    value = _PARSERS[kind](text)
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{text!r} is out of range, give a number {allowed}")
    return value


def _string(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    return text


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        # Kubernetes sets REDIS_PORT=tcp://10.0.0.7:6379 wherever a service is named redis.
        kubernetes = text.startswith("tcp://")
        hint = "; set it, or enableServiceLinks: false in the pod" if kubernetes else ""
        raise ValueError(f"{text!r} is not a whole number{hint}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def _switch(text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError(f"{text!r} is not a switch, give true or false")
    return text.lower() in {"true", "1", "yes"}


_PARSERS: dict[str, Callable[[str], Any]] = {
    "str": _string,
    "int": _integer,
    "float": _number,
    "bool": _switch,
}
