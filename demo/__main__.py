"""`make demo`: two days of the syncs on a real Postgres, a real Valkey and a sample warehouse."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from demo import story
from demo.embedded import running
from etl.cli import report
from etl.errors import Cancelled, SyncError

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> NoReturn:
    """Run the demo; `--keep` leaves the servers up until Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with running(story.FOLDER) as servers:
            unset = servers.set_up(os.environ)
            story.tell(servers, unset)
            if "--keep" in sys.argv[1:]:
                _wait()
    except SyncError as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except Cancelled as stop:
        print(f"demo: stopped by {stop}; the servers are down", file=sys.stderr)  # noqa: T201
        sys.exit(stop.exit_code)
    sys.exit(0)


def _stop(number: int, _: object) -> NoReturn:
    raise Cancelled(signal.Signals(number))


def _wait() -> None:
    """Say how to look around, and return at Ctrl-C."""
    report.write(
        "\nThe servers are up until Ctrl-C. In another terminal, in this folder:\n\n"
        f"  . {story.FOLDER}/env                   # settings and programs, for that shell alone\n"
        "  psql                          # Postgres; try: \\d crm.*\n"
        "  python -m demo.redis_shell    # Redis; try: GET reco:user_000001\n"
        "  python -m etl.status          # and every other command"
    )
    with _own_terminal():
        try:
            while True:
                time.sleep(1)
        except Cancelled as stop:
            if stop.exit_code != 128 + signal.SIGINT:
                raise
    report.write("\nThe servers are down; their data stay.")


@contextmanager
def _own_terminal() -> Iterator[None]:
    """Have Ctrl-C sent to this process alone: make would call it an error."""
    if not sys.stdin.isatty():
        yield
        return
    terminal, before = sys.stdin.fileno(), os.getpgrp()
    handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or the second call would stop us
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, before)
        signal.signal(signal.SIGTTOU, handler)


if __name__ == "__main__":
    main()
