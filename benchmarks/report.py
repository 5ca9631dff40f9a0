"""The bench's table: medians, ratios within the run, and what is to be reached."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from contenders import HERE, ROOT

if TYPE_CHECKING:
    from case import Case
    from targets import Database, Keys

MILLION = 1_000_000

# The run whose table and pictures are in README.md: the table is all that stands below a heading.
SHOWN, TABLE = "million", "## The table\n"

OURS = "adbc-driver-postgresql dataframely duckdb hiredis orjson polars pyarrow redis"

# At a million users: case, contender, and how many times its time is the most and the goal; None
# for the contender: seconds.
BARS = [
    ("user_segments, first load", "duckdb-diff", 1.0, None),
    ("user_segments, first load", "dlt", 1.0, None),
    ("user_segments, first load", "the limit", 2.6, 2.0),
    ("user_segments, nothing changed", "duckdb-diff", 1.0, 0.8),
    ("user_segments, nothing changed", "dlt", 0.4, None),
    ("user_segments, 1 % changed", "duckdb-diff", 1.0, 0.8),
    ("user_segments, 1 % changed", "dlt", 0.4, None),
    ("user_segments, all changed", "duckdb-diff", 1.0, None),
    ("user_segments, all changed", "dlt with a key", 1.0, None),
    ("user_segments, all changed", "dlt", None, 1.0),
    ("email_triggers, first load", "the limit", 7.0, 5.0),
    ("email_triggers, nothing changed", "the limit", 2.8, 2.0),
    ("recommendations, first load", "the limit", 1.25, 1.1),
    ("recommendations, first load", "by hand", 0.28, None),
    ("user_segments, 10 rows", None, 1.0, None),
    ("python -m etl --help", None, 0.25, None),
]


def facts(database: Database, keys: Keys, others: dict[str, str]) -> dict[str, str]:
    """Machine and versions, as a reader needs them to repeat the run."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    info = keys.client.info("server")
    commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return {
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores,"
        f" {memory:.0f} GB, load {os.getloadavg()[2]:.1f} over the last 15 minutes",
        "searchflow": subprocess.run(
            commit, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "with": ", ".join(f"{name} {version(name)}" for name in OURS.split()),
        "servers": f"Postgres {database.run('SHOW server_version')},"
        f" Valkey {info.get('valkey_version', info['redis_version'])}",
        "python": platform.python_version(),
        **others,
    }


def write(
    cases: Sequence[Case], facts: dict[str, str], arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], int, Path]:
    """Print the table and write it as results/<name>.md and .json.

    Returns:
        Its rows, the users of the first mart, and the path without its ending.
    """
    rows = [_row(case, cases) for case in cases]
    table = _table(rows, facts, arguments)
    print(f"\n{table}")
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / (arguments.name or f"{datetime.now(UTC):%Y-%m-%d}-{arguments.users}")
    path.with_suffix(".md").write_text(table)
    raw: dict[str, Any] = {
        "users": arguments.users,
        "rounds": arguments.rounds,
        "facts": facts,
        "cases": rows,
    }
    path.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    if path.stem == SHOWN:
        readme = HERE / "README.md"
        above, heading, _ = readme.read_text().partition(TABLE)
        readme.write_text(f"{above}{heading}\n{table}")
    return rows, arguments.users, path


def _row(case: Case, cases: Sequence[Case]) -> dict[str, Any]:
    seconds = _median("seconds", case, cases)
    limit, ours = _limit(case, cases), _find(cases, case.name, "searchflow")
    return {
        "case": case.name,
        "contender": case.contender,
        "seconds": seconds,
        "times_the_limit": seconds / _median("seconds", limit, cases) if limit else None,
        "times_searchflow": seconds / _median("seconds", ours, cases) if ours else None,
        "users": case.rows * case.share,
        "rows_per_second": case.rows * case.share / seconds if case.rows else None,
        "cpu": _median("cpu", case, cases),
        "megabytes": max(run["megabytes"] for run in case.runs),
        "share": case.share,
        "runs": case.runs,
    }


def _median(figure: str, case: Case, cases: Sequence[Case]) -> float:
    """For all rows, also where the case did a share of them: what it takes to start counts once."""
    taken = median(run[figure] for run in case.runs)
    start = _find(cases, "user_segments, 10 rows", case.contender)
    if case.share == 1 or start is None:
        return taken
    begun = median(run[figure] for run in start.runs)
    return begun + case.share * max(0, taken - begun)


def _limit(case: Case, cases: Sequence[Case]) -> Case | None:
    """The limit of this very case, else of the first of its sync: one copy serves all steps."""
    sync = case.name.partition(",")[0]
    limits = [each for each in cases if each.contender == "the limit"]
    same_sync = [each for each in limits if each.name.partition(",")[0] == sync]
    comparable = [each for each in same_sync if each.rows == case.rows * case.share]
    return _find(comparable, case.name, "the limit") or next(iter(comparable), None)


def _find(cases: Sequence[Case], name: str, contender: str) -> Case | None:
    return next((c for c in cases if (c.name, c.contender) == (name, contender)), None)


def _table(rows: list[dict[str, Any]], facts: dict[str, str], arguments: argparse.Namespace) -> str:
    lines = [
        f"{arguments.users:,} users, median of {arguments.rounds}"
        f" ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC);"
        f" in one round only: {', '.join(arguments.once) or 'none'}",
        "",
        "| case | by | seconds | spread | x the limit | x searchflow | rows/s | CPU s | peak MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        scaled = f" (from 1 row in {row['share']})" if row["share"] > 1 else ""
        taken = [run["seconds"] for run in row["runs"]]
        figures = [
            f"{row['seconds']:.2f}",
            f"{(max(taken) - min(taken)) / median(taken):.0%}",
            *(_figure(row[name], ".2f") for name in ("times_the_limit", "times_searchflow")),
            _figure(row["rows_per_second"], ",.0f"),
            f"{row['cpu']:.2f}",
            f"{row['megabytes']:.0f}",
        ]
        lines.append(f"| {row['case']} | {row['contender']}{scaled} | {' | '.join(figures)} |")
    lines += [
        "",
        *_bars(rows, arguments.users),
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
    ]
    return "\n".join(lines) + "\n"


def _bars(rows: list[dict[str, Any]], users: int) -> list[str]:
    lines = [
        "| to reach, at 1,000,000 users | at most | goal | is |  |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, value, most, goal in _reached(rows, users):
        verdict = "goal" if goal and value <= goal else "ok" if most and value <= most else ""
        missed = "**missed**" if most and value > most else ""
        shown = (_figure(most, ".3g"), _figure(goal, ".3g"), f"{value:.3g}")
        lines.append(
            f"| {name} | {' | '.join(shown)} | {(verdict or missed) if users >= MILLION else ''} |"
        )
    return lines


def _reached(
    rows: list[dict[str, Any]], users: int
) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Yield the name of each bar, what was reached, what is asked for at most, and the goal."""
    found = {(row["case"], row["contender"]): row for row in rows}
    ours = {row["case"]: row for row in rows if row["contender"] == "searchflow"}
    for case, other, most, goal in BARS:
        # One copy is the limit of every step, and of mails, which are rows of Postgres as well.
        same = (case, f"{case.split(',')[0]}, first load", "user_segments, first load")
        theirs = next((found[name, other] for name in same if (name, other) in found), None)
        if other and theirs:
            ratio = ours[case]["seconds"] / theirs["seconds"]
            yield f"{case}, times {other}", ratio, most, goal
        elif not other:
            yield f"{case}, seconds", ours[case]["seconds"], most, goal
    for case, row in ours.items():
        if row["users"] >= MILLION and "changed" not in case.replace("nothing changed", ""):
            yield (
                f"{case}, peak memory, MB",
                row["megabytes"],
                400 + 50 * (users < row["users"]),
                350,
            )
        before = ours.get(case.replace(f" of {row['users']:,}", ""))
        if row["users"] > users and before:
            per_row = row["seconds"] / row["users"] / (before["seconds"] / users)
            yield f"{case}, a row against {users:,}", per_row, 1.25, 1.1


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
