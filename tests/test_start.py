"""Whose signals they are: etl answers them for its own modules, as Python starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import etl

# At the end of a process: how many threads may numpy and Polars have, and does SIGTERM do what it
# does by default?
PROBE = """
import atexit, os, signal
asked = [f"{name}_THREADS" for name in ("OPENBLAS_NUM", "POLARS_MAX")]
atexit.register(lambda: print(*map(os.environ.get, asked)))
atexit.register(lambda: print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL))
"""

# etl.settings does nothing when it is run, so that what __init__ did shows.
OURS = [
    "-m etl.settings",
    "-um etl.settings",
    "-sBm etl.settings",
    "-metl.settings",
    "-uBmetl.settings",
    "-W ignore -m etl.settings",
    "-Wignore -X utf8 -m etl.settings",
    "--check-hash-based-pycs default -m etl.settings",
    "-m etl.settings -m pytest",
]
OTHERS = [
    "-m etl_jobs",
    "-metl_jobs",
    "-m etl_jobs.nightly",
    "-m jobs.etl",
    "-m jobs",
    "-m jobs -m etl",
    "-m jobs -metl",
    "-W ignore -m jobs --name etl",
    "-mjobs_metl",
    "-m etlx",
    "script.py",
    "script.py -m etl",
    "-c import\tetl.cli -m etl",
]


@pytest.mark.parametrize("words", OURS)
def test_a_module_of_ours_answers_signals(words: str, folder: Path) -> None:
    assert default_at_the_end(words, folder) is False


@pytest.mark.parametrize("words", OTHERS)
def test_any_other_program_keeps_its_signals(words: str, folder: Path) -> None:
    assert default_at_the_end(words, folder) is True


@pytest.mark.parametrize(
    ("words", "given", "threads"),
    [
        ("-m etl.settings", {}, "1 1"),
        ("-m etl.settings", {"POLARS_MAX_THREADS": "4"}, "1 4"),
        ("-m jobs", {}, "None None"),
    ],
)
def test_only_a_module_of_ours_limits_the_threads_of_libraries(
    words: str, given: dict[str, str], threads: str, folder: Path
) -> None:
    """A batch is too small to be shared out; a notebook's frames may not be."""
    assert at_the_end(words, folder, given)[-1] == threads


def test_a_program_of_ours_ends_also_where_a_library_waits_for_something(folder: Path) -> None:
    """What a tracer around the program does at the end is done."""
    waits = "import threading, time; threading.Thread(target=time.sleep, args=[600]).start()"
    traces = "import atexit; atexit.register(lambda: print('traced'))"
    (folder / "sitecustomize.py").write_text(f"{waits}\n{traces}\n")

    printed = at_the_end("-m etl --version", folder, {})

    assert printed == [f"searchflow-etl {etl.__version__}", "traced"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Programs that import etl while Python looks for them, and when they run."""
    uses_etl = "import etl.cli, etl.plumbing.signals\n"
    for package in ("etl_jobs", "jobs", "jobs_metl", "etlx"):
        (tmp_path / package).mkdir()
        for module in ("__init__", "__main__", "etl", "nightly"):
            (tmp_path / package / f"{module}.py").write_text(uses_etl)
    (tmp_path / "script.py").write_text(uses_etl)
    (tmp_path / "sitecustomize.py").write_text(PROBE)
    return tmp_path


def default_at_the_end(words: str, folder: Path) -> bool:
    return at_the_end(words, folder, {})[-2] == "True"


def at_the_end(words: str, folder: Path, given: dict[str, str]) -> list[str]:
    """What PROBE prints."""
    others = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    finished = subprocess.run(
        [sys.executable, *words.split(" ")],
        cwd=folder,
        env={**others, **given, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return finished.stdout.splitlines()
