"""Files that people ask for, which are there once they are complete."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


@contextmanager
def replacing(name: str, mode: int) -> Iterator[BinaryIO]:
    """Hand out a file to write, which takes the place of `name` when the block ends well.

    A link of ours stays one. A device or a pipe is written to itself: to replace it would take it
    away.

    Args:
        name: of the file.
        mode: its rights, less the umask.

    Raises:
        OSError: it cannot be written, or is a link that belongs to another user.
    """
    path = Path(name)
    if path.is_symlink():
        # In a folder for all, such as /tmp, it may be there to have us write somewhere else.
        if path.lstat().st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EACCES, "a link that belongs to another user")
        path = path.resolve()
    is_new = path.is_file() or not path.exists()
    partial = path.with_name(f".{path.name}.{os.getpid()}") if is_new else path
    flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if is_new else 0)
    try:
        with open(os.open(partial, flags, mode), "wb") as file:
            yield file
        if is_new:
            partial.replace(path)
    finally:
        if is_new:
            with suppress(OSError):
                partial.unlink()
