"""A run's temporary folder; the next run removes one that a killed process left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "etl-run-"

# A folder this young may be one whose maker has not locked it yet.
_SECONDS = 60


@contextmanager
def temporary() -> Iterator[Path]:
    """Make a folder of mode 0700 in TMPDIR for the length of a block."""
    _remove_abandoned()
    # The lock tells the next run that this process lives: the kernel frees it with the process.
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name,
        _locked(Path(name)),
    ):
        yield Path(name)


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(path):  # another user's, or one in use
            if time.time() - path.stat().st_mtime > _SECONDS:
                shutil.rmtree(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        OSError: another process holds it, or the folder is not ours to open.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
