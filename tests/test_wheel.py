"""The wheel and the sdist: what is in them, and that the wheel works far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT, segments
from fixture_types import Mart, Select


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, made as `make build` makes them: the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new venv with the wheel; it sees our dependencies, not our checkout."""
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", venv], cwd=dist)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    _run([*pip, "install", "--quiet", "--no-deps", _only(dist, "*.whl")], cwd=dist)
    # A folder that a .pth file names is searched, but its own .pth files, where the editable
    # install lives, are not read. Written last: pip must not find our install through it.
    (site_packages,) = venv.glob("lib/python*/site-packages")
    ours = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    site_packages.joinpath("dependencies.pth").write_text("\n".join(ours))
    return venv / "bin"


def test_the_wheel_holds_the_package_with_its_sql_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(_only(dist, "*.whl")) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        entry_points = wheel.read(_named(names, "entry_points.txt")).decode()

    files = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert files == _files("etl") | {f"etl/{name}" for name in _files("sql")}
    assert {"etl/py.typed", "etl/sql/postgres/schema.sql"} <= files
    assert _named(names, "licenses/LICENSE")
    assert "searchflow-etl = etl.cli:main" in entry_points


def test_the_sdist_holds_what_it_takes_to_build_the_wheel(dist: Path) -> None:
    with tarfile.open(_only(dist, "*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    beside = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == _files("etl") | _files("sql") | beside


@pytest.mark.slow
def test_the_installed_command_runs_a_sync_from_any_folder(
    installed: Path,
    mart: Mart,
    select: Select,
    tmp_path: Path,
) -> None:
    mart(segments("('a', 'new_user', 3, 0, 0), ('b', 'high_value', 90, 12, 1234.56)"))
    folder = tmp_path / "empty"
    folder.mkdir()
    python = installed / "python"

    origin = _run([python, "-c", "import etl; print(etl.__file__)"], cwd=folder)
    output = _run([installed / "searchflow-etl", "--sync", "user_segments", "--json"], cwd=folder)

    assert Path(origin.strip()).is_relative_to(installed.parent)
    result = json.loads(output)
    assert (result["status"], result["extracted"], result["inserted"]) == ("ok", 2, 2)
    assert select("SELECT user_id, segment FROM crm.user_segments ORDER BY user_id") == [
        {"user_id": "a", "segment": "new_user"},
        {"user_id": "b", "segment": "high_value"},
    ]
    assert _run([python, "-m", "etl.init_db"], cwd=folder) == "nothing to do\n"
    assert list(folder.iterdir()) == []


def _run(command: Sequence[str | Path], *, cwd: Path) -> str:
    """Stdout of a command that knows neither the checkout nor a package index."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def _files(folder: str) -> set[str]:
    """The files under a folder of the checkout, by their path from its root."""
    paths = {path for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def _named(names: set[str], ending: str) -> str:
    (found,) = [name for name in names if name.endswith(ending)]
    return found
