"""What a text may not show: secrets, and characters that a terminal or a reader would obey."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

# So many characters of a secret stand nowhere by chance.
_MIN_SUBSTRING = 8

# One word, a short number or a mark: messages of ours and of servers hold such ones by chance, and
# a gap in a known message (`FATAL: *** authentication failed`) tells what the secret is.
_ORDINARY = re.compile(
    r"[a-z_]{1,15}|[A-Z][a-z]{0,14}|[A-Z_]{1,15}|[0-9]{1,7}|\W{1,2}"
    # Longer ones: settings, tables and functions that messages name, SQLSTATEs, flags.
    r"|(?:POSTGRES|REDIS|GUARD|EMAIL|WAREHOUSE)_[A-Z_]+|(?:crm|etl)\.[a-z_]+"
    r"|(?:client|default|idle|ignore|mart|max|maxmemory|pg|query|searchflow|server|statement)_[a-z_]+"
    r"|hashtextextended|DuckDB|UTF-?8|[0-9][0-9A-FP][0-9P][0-9]{2}|(?:P0|XX)[0-9]{3}"
    r"|(?:--|dry-|init-|read-|row-)[a-z-]+"
)

# Where a text itself says that a password follows.
_LABEL = r"((?i:pass\w*|pwd)(?:\s*=\s*['\"]?|['\"]:\s*['\"]))"

_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")

# Python calls these printable, and no screen shows them: fillers and variation selectors, less
# the one (U+FE0F) that many emoji end in.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0e\uffa0"
    "\U000e0100-\U000e01ef]"
)


def hide(text: str, secrets: Iterable[str]) -> str:
    """Blank out secrets, however they are written, and the password of any URL.

    A short secret is blanked out where it is a word of its own; one that is an ordinary word only
    after `password=` or in a URL, since elsewhere the gap would tell it.
    """
    forms = {form for secret in secrets for form in _encodings(secret) if form.strip()}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(_pattern(form), lambda found: f"{found[1] or ''}***", text)
    return _URL_PASSWORD.sub(r"\1***", text)


def escaped(text: str) -> str:
    r"""Write control, format and other invisible characters as \uXXXX, as JSON does.

    That goes for U+200D as well, so that an emoji made of several comes apart.
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(
        c if c.isprintable() and not _INVISIBLE.match(c) else json.dumps(c)[1:-1] for c in text
    )


def as_json(value: Any) -> str:
    """Return JSON that parses to the value and shows as it is."""
    import orjson

    try:
        text = orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:  # half a character, as in a file name that is not UTF-8
        text = json.dumps(value, default=str)
    return escaped(text)


def one_line(text: str, secrets: Iterable[str]) -> str:
    """Return a message as one line that any log, terminal and database can hold."""
    return escaped(" ".join(hide(text, secrets).replace("\0", "\\u0000").split()))


def quote_value(value: Any) -> str:
    """Return a value as it is or, where it would break the word or a terminal, in quotes."""
    text = str(value)
    plain = escaped(text) == text and not {" ", '"'} & set(text)
    return text if plain else escaped(json.dumps(text, ensure_ascii=False))


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return a structure of dicts and lists with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {each_text(key, change): each_text(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [each_text(one, change) for one in value]
    return value


def _pattern(form: str) -> str:
    literal = re.escape(form)
    if _ORDINARY.fullmatch(form):
        return rf"{_LABEL}{literal}(?!\w)|()(?<=:){literal}(?=@)"
    # To blank out a password such as `a1` in the middle of words would tell it.
    return f"(){literal}" if len(form) >= _MIN_SUBSTRING else rf"()(?<!\w){literal}(?!\w)"


def _encodings(secret: str) -> Iterator[str]:
    """A secret in the ways that libraries, logs and URLs write it, and each of its lines."""
    in_json = [json.dumps(secret), json.dumps(secret, ensure_ascii=False)]
    quoted = [repr(secret), *in_json, json.dumps(repr(secret)[1:-1])]
    yield from (text[1:-1] for text in quoted)
    yield from (quote_plus(secret, safe, errors="replace") for safe in ("", "/"))
    yield from (quote(secret, safe, errors="replace") for safe in ("", "/"))
    yield secret.replace("\\", "\\\\").replace("'", "\\'")  # as in a conninfo
    yield secret.encode("ascii", "backslashreplace").decode()
    yield " ".join(secret.split())
    yield from [secret, *secret.splitlines()]
