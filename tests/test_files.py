"""A file that people ask for is there once it is complete, and takes nothing else away."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from etl.plumbing import files

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_text("old")

    with files.replacing(str(path), 0o600) as file:
        file.write(b"new")
        assert path.read_text() == "old"

    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert os.listdir(tmp_path) == ["page"]


def test_a_file_that_is_not_completed_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_text("old")

    with pytest.raises(ZeroDivisionError), files.replacing(str(path), 0o600):
        _ = 1 / 0

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    link, path = tmp_path / "link", tmp_path / "page"
    link.symlink_to(path)

    with files.replacing(str(link), 0o600) as file:
        file.write(b"new")

    assert link.is_symlink()
    assert path.read_text() == "new"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a link to somebody else")
def test_a_strangers_link_is_not_followed(tmp_path: Path) -> None:
    link, path = tmp_path / "link", tmp_path / "page"
    path.write_text("old")
    link.symlink_to(path)
    os.chown(link, 65534, 65534, follow_symlinks=False)

    with pytest.raises(PermissionError), files.replacing(str(link), 0o600) as file:
        file.write(b"new")

    assert path.read_text() == "old"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()

    with files.replacing(str(path), 0o600) as file:
        file.write(b"new")
    reader.join(30)

    assert read == ["new"]
    assert stat.S_ISFIFO(path.stat().st_mode)
