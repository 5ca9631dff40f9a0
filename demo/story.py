"""What the demo tells: a sentence, the command that does it, and what that prints."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

from demo import days
from demo.embedded import Servers
from etl import cache, postgres, syncs
from etl.cli import report
from etl.errors import SyncError
from etl.init_db import init_db
from etl.plumbing import queries
from etl.settings import Settings

FOLDER = Path(".demo")
USERS = 10_000
WIDTH = 80

# How long the sample's visits stay where they are: running the demo again shows everything
# unchanged, and running it next week tells the story from the beginning.
_EPOCH_HOURS = 12

_REASONS = "SELECT key, reasons FROM etl.rejected_rows WHERE sync ~ 'user'"
_steps = itertools.count(1)
_BOLD, _PLAIN = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


def settings_file(servers: Servers, unset: list[str]) -> Path:
    """Write .demo/env, which a shell reads to use the demo's servers; return its path."""
    path = FOLDER / "env"
    settings = {**servers.environment, **_libpq(servers), "DUCKDB_PATH": _path("warehouse.duckdb")}
    folders = [str(Path(sys.executable).parent), str(Path(shlex.split(servers.psql)[0]).parent)]
    lines = [
        *(f"unset {name}" for name in unset),
        *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
        f"export PATH={shlex.quote(os.pathsep.join(folders))}:$PATH",
    ]
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text("\n".join([*lines, ""]))
    return path


def tell(servers: Servers, unset: list[str]) -> None:
    """Tell the whole story, or where it has been told, that everything is unchanged.

    Raises:
        SyncError: a command did not end as it should, with what it said.
    """
    settings_file(servers, unset)
    env = _environment(servers)
    report.write(f"Two days of a sample warehouse with {USERS:,} users; all of it is in {FOLDER}/.")
    if epoch := _epoch():
        days.build(FOLDER, USERS, epoch, _now())
        _again(env)
    else:
        epoch = _now()
        _empty()
        days.build(FOLDER, USERS, epoch, epoch)
        _first_days(env)
        (FOLDER / "told").write_text(epoch.isoformat())
    _end(env)


def _first_days(env: Mapping[str, str]) -> None:
    days.switch(FOLDER, "day1")
    _step("Day 1: dbt has built the marts; one command loads all of it", env, "python -m etl")
    days.switch(FOLDER, "day2")
    _step(
        "Day 2: dbt ran again. What would change in the CRM? Three of the users",
        env,
        "python -m etl.user_segments --dry-run --show 6 | grep -e '->'",
    )
    _step(
        "Whom would we welcome by mail, after yesterday? A dry run names five",
        env,
        "python -m etl.email_triggers --dry-run | grep -A 1 'welcome.*queued'",
    )
    _step("Load it: what differs is written, three bad rows are set aside", env, "python -m etl")
    _run(f'psql -Atc "{_REASONS}"', env)


def _again(env: Mapping[str, str]) -> None:
    days.switch(FOLDER, "day2")
    _step(
        "The marts of day 2 again: everything is unchanged",
        env,
        "python -m etl --dry-run | head -n 5",
    )
    _step("So nothing is written but the TTL of the keys", env, "python -m etl")


def _end(env: Mapping[str, str]) -> None:
    days.switch(FOLDER, "lost")
    _step(
        "A source came in half: the run is refused, and nothing happened",
        env,
        "python -m etl.user_segments",
        code=3,
    )
    _run("psql -Atc 'SELECT count(*) FROM crm.user_segments'", env)
    days.switch(FOLDER, "day2")
    _step(
        "dbt is mended. Which mail does one of the users get, and until when?",
        env,
        "python -m etl.explain user_006786 | grep -A 6 ^Mails",
    )
    _step(
        "The status: what to do about the refusal",
        env,
        "python -m etl.status --check | grep -o 'next: [^)]*'",
    )
    page = FOLDER / "status.html"
    _step("The same as a page for a browser", env, f"python -m etl.status --html {page}")
    report.write(f"Open {page}. Again: make demo. To look around: make demo-shell.")


def _step(sentence: str, env: Mapping[str, str], line: str, *, code: int = 0) -> None:
    heading = f"── {next(_steps)}. {sentence} "
    report.write(f"{_BOLD}{heading:─<{WIDTH}}{_PLAIN}")
    _run(line, env, code=code)


def _run(line: str, env: Mapping[str, str], *, code: int = 0) -> None:
    """Print a line of shell, what it prints, and why, where it does not end with 0."""
    report.write(f"{_BOLD}$ {line}{_PLAIN}")
    shell = ["/bin/sh", "-c", line]
    ran = subprocess.run(shell, env=dict(env), capture_output=True, text=True, check=False)
    if ran.returncode != code:
        raise SyncError(f"{line}: exit code {ran.returncode} instead of {code}: {ran.stderr}")
    reasons = [line for line in ran.stderr.splitlines() if line.startswith("etl: ")]  # no log
    for text in filter(str.strip, [*ran.stdout.splitlines(), *reasons]):
        long = len(text.rstrip()) > WIDTH
        lines = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        report.write("\n".join(lines) if long else text.rstrip())


def _environment(servers: Servers) -> dict[str, str]:
    """Everything that the story's commands take from outside, for them alone."""
    forced = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "LINES")
    clean = {name: value for name, value in os.environ.items() if name not in forced}
    folders = [Path(sys.executable).parent, Path(shlex.split(servers.psql)[0]).parent]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    ours = {"COLUMNS": str(WIDTH), "LOG_FORMAT": "text", "PATH": path}
    return {**clean, **_libpq(servers), "DUCKDB_PATH": _path("warehouse.duckdb"), **ours}


def _libpq(servers: Servers) -> dict[str, str]:
    """For psql, and for programs that are handed a URL, of which these say the rest."""
    names = {"PGHOST": "HOST", "PGPORT": "PORT", "PGDATABASE": "DB"}
    names |= {"PGUSER": "USER", "PGPASSWORD": "PASSWORD"}
    told = {name: servers.environment[f"POSTGRES_{ours}"] for name, ours in names.items()}
    return {**told, "DATABASE_URL": "postgresql://"}


def _path(name: str) -> str:
    return str((FOLDER / name).resolve())


def _empty() -> None:
    """Forget what an earlier story left in both servers."""
    settings = Settings.from_environment()
    with postgres.session(settings, "etl.demo") as connection:
        postgres.execute(connection, "DROP SCHEMA IF EXISTS crm, etl CASCADE")
        connection.commit()
    with cache.connect(settings) as client:
        client.flushall()
    init_db()


def _epoch() -> dt.datetime | None:
    """The moment up to which the sample's users have visited, where a story told of it lately.

    Not where the SQL or the list of syncs is newer: the tables and marts may be others.
    """
    told = FOLDER / "told"
    files = [*queries.ROOT.rglob("*.sql"), Path(syncs.__file__)]
    oldest = max(time.time() - _EPOCH_HOURS * 3600, *(file.stat().st_mtime for file in files))
    if told.exists() and told.stat().st_mtime > oldest:
        return dt.datetime.fromisoformat(told.read_text())
    return None


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
