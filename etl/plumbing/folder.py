"""A run's temporary folder; the next run removes one that a killed process left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etl.errors import SyncError

_PREFIX, _NEW = "etl-run-", "etl-new-"

# A folder that is not locked after so long never will be.
_SECONDS = 60


@contextmanager
def temporary() -> Iterator[Path]:
    """Make a folder of mode 0700 in TMPDIR for the length of a block.

    Raises:
        SyncError: no folder can be made there.
    """
    try:
        _remove_abandoned()
        new = Path(tempfile.mkdtemp(prefix=_NEW))
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}; let TMPDIR be a folder that can be written to"
        raise SyncError(f"temporary folder: {reason}") from error
    # The lock tells the next run that this process lives, because the kernel frees it with the
    # process. The folder gets its name when it is locked.
    with _locked(new):
        folder = new.rename(new.with_name(new.name.replace(_NEW, _PREFIX)))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    parent = Path(tempfile.gettempdir())
    long_ago = time.time() - _SECONDS
    for path in [*parent.glob(f"{_PREFIX}*"), *parent.glob(f"{_NEW}*")]:
        with contextlib.suppress(OSError):  # another user's, or one in use
            # Of a new one not even the lock is tried, because its maker is about to take it.
            if path.name.startswith(_PREFIX) or path.stat().st_mtime < long_ago:
                with _locked(path):
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
