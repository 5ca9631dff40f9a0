"""Words of a command line -> a dataclass of flags, checked, and the help page.

python-fire turns words into values. Left alone it would also run what it can before it meets a
word that it cannot place: so here it makes the dataclass, and only of words that are flags.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Set
from dataclasses import Field, field, fields
from typing import Any, NoReturn, TypeVar

from etl.cli import report
from etl.cli.exits import exit_with
from etl.errors import UsageError
from etl.settings import hidden

_T = TypeVar("_T")

_SEE_HELP = "; --help lists the flags"


def flag(default: Any, value: str, meaning: str) -> Any:
    """One flag: what stands for its value in the help page ("" for a switch), and its meaning."""
    return field(default=default, metadata={"value": value, "meaning": meaning})


def main(
    flags: type[_T], program: str, about: tuple[str, ...], run: Callable[[_T], int]
) -> NoReturn:
    """Run what sys.argv asks for, and exit with what it returns or with an error's code."""

    def work() -> int:
        asked = parse(flags, sys.argv[1:])
        if asked is not None:
            return run(asked)
        report.write(help_page(flags, program, about))
        return 0

    exit_with(work)


def parse(flags: type[_T], arguments: list[str], hidden: Set[str] = frozenset()) -> _T | None:
    """Parse the words after the program's name; None: they ask for the help page.

    Args:
        flags: a dataclass whose fields are made by `flag`.
        arguments: the words.
        hidden: fields that this program does not take; they keep their defaults.

    Raises:
        UsageError: a flag, a value or a word that means nothing here.
    """
    if {"-h", "--help"} & set(arguments):
        return None
    _check_names(arguments, _known(flags, hidden))
    values = vars(_fire(flags, arguments))
    switches = {name for name, one in _known(flags).items() if not one.metadata["value"]}
    return flags(
        **{name: _switch(name, v) if name in switches else v for name, v in values.items()}
    )


def help_page(
    flags: type[Any], program: str, about: tuple[str, ...], hidden: Set[str] = frozenset()
) -> str:
    """Every flag, with dashes, in at most 80 columns; the first of `about` stands above them."""
    width = max(40, min(shutil.get_terminal_size().columns, 80) - 1)
    known = _known(flags, hidden)
    names = [f"  {dashed(n)} {one.metadata['value']}".rstrip() for n, one in known.items()]
    margin = max(map(len, names)) + 2
    told = [
        textwrap.fill(
            one.metadata["meaning"],
            width,
            initial_indent=name.ljust(margin),
            subsequent_indent=" " * margin,
        )
        for name, one in zip(names, known.values(), strict=True)
    ]
    first, *rest = (textwrap.fill(text, width) for text in about)
    return "\n\n".join([f"usage: python -m {program} [flags]", first, "\n".join(told), *rest])


def dashed(name: str) -> str:
    """The flag of a field: max_age is --max-age."""
    return f"--{name.replace('_', '-')}"


def _known(flags: type[Any], hidden: Set[str] = frozenset()) -> dict[str, Field[Any]]:
    return {one.name: one for one in fields(flags) if one.name not in hidden}


def _check_names(arguments: list[str], known: dict[str, Field[Any]]) -> None:
    """Every word is a flag, or the value of the one before it."""
    names: list[str] = []
    is_value = False
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if is_value:
            is_value = False
            continue
        if not word.startswith("-"):
            raise UsageError(f"unknown word {word!r}{_SEE_HELP}")
        given, equals, _ = word.partition("=")
        name = given.removeprefix("--").replace("-", "_")
        if name not in known or not given.startswith("--"):
            told = hidden(word).partition("=")[0]  # a secret may hold a `=`
            raise UsageError(f"unknown flag {told!r}{_guess(name, known)}{_SEE_HELP}")
        names.append(name)
        is_value = not equals and not following.startswith("-")
        if known[name].metadata["value"] and not equals and not is_value:
            raise UsageError(f"{dashed(name)} needs a value{_SEE_HELP}")
    if twice := sorted({dashed(name) for name in names if names.count(name) > 1}):
        raise UsageError(f"given twice: {', '.join(twice)}")


def _guess(name: str, known: dict[str, Field[Any]]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {dashed(close[0])}?)" if close else ""


def _fire(flags: type[_T], arguments: list[str]) -> _T:
    import fire

    made = None
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(fire.core.FireExit):
        made = fire.Fire(flags, command=arguments, name="etl", serialize=lambda _: None)
    if not isinstance(made, flags):
        raise UsageError(f"cannot make sense of {' '.join(arguments)!r}{_SEE_HELP}")
    return made


def _switch(name: str, value: object) -> bool:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        one = dashed(name)
        raise UsageError(f"{one} is a switch: {one}, {one}=true or {one}=false, not {value!r}")
    return value
