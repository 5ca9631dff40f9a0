"""`python -m etl.explain USER_ID`: what is known of a user, and what a run now would do and why.

It only reads. What a run would do is found by the functions and the SQL of the syncs themselves,
over the rows of this user alone; the temporary tables for that go with the transaction.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from etl.cli import arguments
from etl.cli.exits import exit_with
from etl.errors import UsageError
from etl.plumbing import failure, folder
from etl.plumbing.redact import as_json, each_text, escaped, quote_value
from etl.settings import Settings, hidden, hiding

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM = "etl.explain USER_ID"
_ABOUT = (
    "Everything about one user: mart, CRM, mails, recommendations, rejected rows; what a run now"
    " would do, and why. It only reads.",
    "A USER_ID that begins with a dash comes after --. Settings come from the environment (see"
    " .env.example). Exit codes: 0 told, 1 nobody knows the user, or a mart or server cannot be"
    " read (the rest is told), 2 wrong usage or settings.",
)

# For somebody who waits at a terminal: a server or a file that is away is told, not waited for.
_SECONDS = 20.0


@dataclass(frozen=True)
class Flags:
    """What was asked for beside the user."""

    json: bool = arguments.flag(False, "", "print one JSON object on stdout and nothing else there")


@failure.sanitised()
def explain(user_id: str, settings: Settings | None = None) -> dict[str, Any]:
    """Tell everything about a user.

    Returns:
        `user_id`, `at`, `known` (somewhere), and the sections `mart`, `crm`, `mails`,
        `recommendations`, `rejections` and `runs`, as the functions of `etl.explain.sections`
        return them; a section, or its `next_run`, that cannot be read is {"error": the reason}.

    Raises:
        UsageError: no user can have this id.
    """
    from etl.explain import sections

    sections.check(user_id)
    settings = replace(
        settings or Settings.from_environment(),
        retry_seconds=0,
        warehouse_wait=0,
        postgres_statement_timeout=_SECONDS,
    )
    with hiding(settings.secrets), folder.temporary() as spill:
        told = sections.tell(user_id, settings, spill)
    return {"user_id": user_id, "at": dt.datetime.now(dt.UTC), **told}


def main() -> NoReturn:
    """Run what sys.argv asks for and exit."""
    exit_with(lambda: _run(sys.argv[1:]))


def _run(words: Sequence[str]) -> int:
    from etl.cli import report
    from etl.explain import page

    users, flags = _parse(words)
    if flags is None:
        report.write(arguments.help_page(Flags, _PROGRAM, _ABOUT))
        return 0
    if len(users) != 1:
        raise UsageError(f"give one user id, not {len(users)}; --help says more")
    logging.getLogger("etl").addHandler(logging.NullHandler())  # the page tells it
    told = explain(users[0])
    errors = _errors(told)
    if not told["known"] and not errors:
        print(f"etl: {_nobody(users[0])}", file=sys.stderr)  # noqa: T201
        return 1
    told = each_text(told, hidden)
    report.write(as_json(told) if flags.json else page.page(each_text(told, escaped)))
    return 1 if errors else 0


def _parse(words: Sequence[str]) -> tuple[list[str], Flags | None]:
    """Return the words that are no flags, and the flags; None: they ask for the help page.

    User ids stay text here: python-fire would take `123` for a number.
    """
    before = list(words[: words.index("--")]) if "--" in words else list(words)
    after = list(words[len(before) + 1 :])
    given = [word for word in before if word.startswith("-")]
    return [word for word in before if not word.startswith("-")] + after, arguments.parse(
        Flags, given
    )


def _errors(told: Any) -> list[str]:
    """Return why sections could not be told."""
    if not isinstance(told, dict):
        return []
    own = [told["error"]] if isinstance(told.get("error"), str) else []
    return own + [text for name, one in told.items() if name != "runs" for text in _errors(one)]


def _nobody(user_id: str) -> str:
    return (
        f"nobody knows the user {quote_value(hidden(user_id))}: not the marts, the CRM, the mail"
        " queue, Redis or the rejected rows; is the id right? Capitals and spaces count"
    )
