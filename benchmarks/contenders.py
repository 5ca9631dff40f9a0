"""Who is measured, how each is started for a mart, and what must be there before it starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
RIVALS = ROOT / ".venv-bench" / "bin"  # made by `make bench-setup`
DUCKDB = ROOT / ".venv-bench-duckdb" / "bin"  # its Postgres extension is of an older release

DRT_SHARE = 10  # drt sends row by row: it gets the first tenth of the mart

# Where each of the others is installed, and the packages that it needs there.
PACKAGES = {
    "duckdb": (DUCKDB, ["duckdb", "duckdb-extension-postgres-scanner"]),
    "by hand": (RIVALS, ["psycopg", "redis"]),
    "dlt": (RIVALS, ["dlt"]),
    "drt": (RIVALS, ["drt-core"]),
}


class WrongError(Exception):
    """A process failed, or left something else in its target than it should have."""


@dataclass(frozen=True)
class Contender:
    """One way to bring a mart into a table of its own."""

    name: str
    table: str
    command: Callable[[Path], list[str]]  # for the file of a mart
    folder: Path = ROOT
    share: int = 1  # it does one row in so many
    steps: Collection[str] = ()  # those that it can do; all of them when empty


def installed(without: Collection[str]) -> dict[str, str]:
    """The others that can be measured here, with their versions; say who is left out."""
    present = {}
    for name, (folder, packages) in PACKAGES.items():
        versions = _versions(folder)
        if name in without:
            print(f"left out: {name}, as asked")
        elif not versions.keys() >= set(packages):
            print(f"left out: {name}, not installed; `make bench-setup` does that")
        else:
            present[name] = ", ".join(f"{package} {versions[package]}" for package in packages)
    return present


def _versions(folder: Path) -> dict[str, str]:
    """The packages of a venv."""
    code = "from importlib.metadata import *; [print(d.name, d.version) for d in distributions()]"
    found = output([str(folder / "python"), "-c", code], {}) if folder.exists() else ""
    return dict(line.replace("_", "-").split() for line in found.splitlines())


def searchflow(sync: str, *flags: str) -> list[str]:
    """This project's command line; the mart is in DUCKDB_PATH."""
    return [sys.executable, "-m", f"etl.{sync}", "--json", *flags]


def postgres(folder: Path, uri: str, users: int, others: Collection[str]) -> list[Contender]:
    """Everybody who can load user_segments, this project first."""

    def script(name: str, *flags: str, venv: Path = RIVALS) -> Callable[[Path], list[str]]:
        return lambda mart: [str(venv / "python"), str(HERE / name), uri, str(mart), *flags]

    def drt(mart: Path) -> list[str]:
        rows = json.dumps({"rows": users // DRT_SHARE})
        return [str(RIVALS / "drt"), "run", "--quiet", "--profile", mart.stem, "--vars", rows]

    known = [
        Contender("searchflow", "crm.user_segments", lambda _: searchflow("user_segments")),
        Contender(
            "duckdb-diff",
            "bench.duckdb_diff",
            script("duckdb_postgres.py", "bench.duckdb_diff", venv=DUCKDB),
        ),
        Contender(
            "duckdb-insert",
            "bench.duckdb_insert",
            script("duckdb_postgres.py", "bench.duckdb_insert", "--insert", venv=DUCKDB),
            steps=("first load", "10 rows"),
        ),
        Contender("by hand", "bench.by_hand", script("by_hand_postgres.py")),
        Contender("dlt", "dlt.user_segments", script("dlt_postgres.py", "dlt"), folder),
        Contender(
            "dlt skip_unchanged_rows",
            "dlt_skip.user_segments",
            script("dlt_postgres.py", "dlt_skip", "--skip-unchanged"),
            folder,
        ),
        Contender(
            "dlt with a key",
            "dlt_key.user_segments",
            script("dlt_postgres.py", "dlt_key", "--key"),
            folder,
        ),
        Contender("drt", "bench.drt", drt, folder / "drt", DRT_SHARE),
    ]
    return [each for each in known if each.name.startswith(("searchflow", *others))]


def set_up_drt(folder: Path, marts: dict[str, Path]) -> None:
    """Copy its project, for it keeps its state there, and name the marts in its profiles."""
    shutil.copytree(HERE / "drt", folder / "drt")
    (folder / ".drt").mkdir()
    profiles = {name: {"type": "duckdb", "database": str(mart)} for name, mart in marts.items()}
    (folder / ".drt" / "profiles.yml").write_text(json.dumps(profiles))  # JSON is YAML


def environment(folder: Path, uri: str, service: dict[str, str]) -> dict[str, str]:
    """The same for everybody: nothing of the caller's settings, no telemetry in the seconds."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "BENCH_POSTGRES": uri,
        "DO_NOT_TRACK": "1",
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        **service,
    }


def output(command: list[str], environment: dict[str, str], folder: Path = ROOT) -> str:
    """Run a process to its end and return what it printed."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WrongError(f"exit {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
