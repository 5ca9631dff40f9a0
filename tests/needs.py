"""Programs of the machine that a test needs, beside the servers that come as wheels.

Where one is missing its tests are skipped; with ETL_TESTS_MUST_RUN=1, as in .ci/run, they fail.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

# Read once: within a test the environment has none of the shell's settings.
MUST_RUN = bool(os.environ.get("ETL_TESTS_MUST_RUN"))

# Before PATH: Debian's Postgres, the newest first, which can do TLS.
_POSTGRES = sorted(
    Path("/usr/lib/postgresql").glob("*/bin"),
    key=lambda path: float(path.parent.name),
    reverse=True,
)
_FOLDERS = (Path(sys.executable).parent, Path("/usr/sbin"), *_POSTGRES)


def needs(name: str, how: str = "") -> Path:
    """Find a program such as `redis-server` or `initdb`, or skip the test that asks for it.

    Args:
        name: the program.
        how: to install it; unset: the Debian package of that name.
    """
    path = os.pathsep.join([*map(str, _FOLDERS), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        skip(f"{name} is not installed: {how or f'apt-get install {name}'}")
    return Path(found)


def skip(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run, or fail it where every test must run."""
    if MUST_RUN:
        pytest.fail(reason)
    pytest.skip(reason)
