"""How a command ends: an exit code, and a line on stderr where it did not go well."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from etl import IS_PROGRAM
from etl.cli import report
from etl.errors import Cancelled, SyncError
from etl.plumbing import failure, signals
from etl.plumbing.redact import one_line
from etl.settings import env_secrets


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Exit with the code that `work` returns; an error or a signal becomes one line on stderr."""
    signals.install_exiting()
    report.escape_unencodable()
    try:
        code = work()
    except SyncError as error:
        debug(error)
        code = _print_error(str(error), error.exit_code)
    except Cancelled as stop:
        code = _print_error(f"stopped by {stop}", stop.exit_code)
    except Exception as error:
        debug(error)
        code = _print_error(failure.unexpected(error), 1)
    signals.ignore_all()
    if IS_PROGRAM:
        _end(code)
    sys.exit(code)


def _end(code: int) -> NoReturn:
    """End on the spot: nothing is left to undo, and to take the libraries apart takes 50 ms.

    Nor does it wait for a thread that a server keeps waiting. What others want done at the end, as
    a tracer around the program does, is done.
    """
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # it is closed, or nobody reads it: that was told before
            stream.flush()
    os._exit(code)


def _print_error(message: str, code: int) -> int:
    print(f"etl: {one_line(message, env_secrets(os.environ))}", file=sys.stderr)  # noqa: T201
    return code


def debug(error: Exception) -> None:
    """With ETL_DEBUG=1 show the traceback of an error, without secrets and values."""
    if os.environ.get("ETL_DEBUG") == "1":
        sys.stderr.write(failure.trace(error))
