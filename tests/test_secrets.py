"""No secret shows in anything that the program prints, logs, records or is listed with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import pytest
import redis
from conftest import ROOT, segments
from destinations import stuck
from examples import examples
from fixture_types import Mart, Select

from etl import postgres, user_segments
from etl.plumbing.redact import hide
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers

Given = dict[str, str]
Run = tuple[list[str], Given, int]

# Two marks around every character that some way of writing it down changes: where a mark shows,
# the secret showed, whole or in part, and however it was encoded.
MARKS = ("q7Zxk2", "Kp9wT4")
SECRET = f"{MARKS[0]}'\"\\ %41 @:/?#&=$`{{x}} é☃😀\tä{MARKS[1]}"
TWO_LINES = SECRET.replace("\t", "\n")
PASSWORDS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD")
URL = f"postgresql://airflow:{quote(SECRET, safe='')}@127.0.0.1/searchflow"

# What can be provoked from outside, the secret also standing where it does not belong: the words,
# the settings and the exit code.
RUNS: dict[str, Run] = {
    "well": (["etl", "--json"], {"LOG_FORMAT": "text"}, 0),
    "table": (["etl", "--dry-run"], {"LOG_FORMAT": "json"}, 0),
    "refused": (["etl"], {"GUARD_MAX_REJECTED": "0"}, 3),
    "wrong passwords": (["etl"], dict.fromkeys(PASSWORDS, f"{SECRET}!"), 1),
    "two lines": (["etl"], dict.fromkeys(PASSWORDS, TWO_LINES), 1),
    "wrong hosts": (["etl"], dict.fromkeys(("POSTGRES_HOST", "REDIS_HOST"), "no.invalid"), 1),
    "URLs": (["etl"], {"POSTGRES_HOST": URL, "REDIS_HOST": f"redis://:{quote_plus(SECRET)}@x"}, 1),
    "URLs, tried again": (
        ["etl"],
        {"POSTGRES_HOST": URL, "REDIS_HOST": f"redis://:{quote(SECRET)}@x", "RETRY_SECONDS": "0.1"},
        1,
    ),
    "servers away": (["etl"], dict.fromkeys(("POSTGRES_PORT", "REDIS_PORT"), "1"), 1),
    "wrong databases": (["etl"], {"POSTGRES_DB": SECRET, "REDIS_DB": "99"}, 1),
    "wrong users": (["etl"], {"POSTGRES_USER": SECRET, "REDIS_USERNAME": SECRET}, 1),
    "no tables": (["etl"], {"POSTGRES_DB": "postgres"}, 1),
    "unfit for libpq": (["etl"], {"PGSSLMODE": SECRET}, 1),
    "unfit, two lines": (
        ["etl.user_segments"],
        {"POSTGRES_PASSWORD": TWO_LINES, "PGSSLMODE": TWO_LINES},
        1,
    ),
    "no warehouse": (["etl"], {"DUCKDB_PATH": f"/{SECRET}"}, 1),
    "no such schema": (["etl"], {"MART_SCHEMA": SECRET}, 1),
    "no such folder": (["etl"], {"ETL_SQL_DIR": SECRET}, 2),
    "unfit settings": (["etl"], {"REDIS_PORT": SECRET, "POSTGRES_PORT": quote(SECRET)}, 2),
    "unfit log": (["etl"], {"LOG_FORMAT": SECRET}, 2),
    "unknown flag": (["etl", f"--password={SECRET}"], {}, 2),
    "unknown word": (["etl", SECRET], {}, 2),
    "unknown sync": (["etl", "--sync", SECRET], {}, 2),
    "init_db": (["etl.init_db"], {"POSTGRES_HOST": URL}, 1),
    "init_db with a word": (["etl.init_db", SECRET], {}, 2),
    "status": (["etl.status"], {"POSTGRES_HOST": URL}, 1),
    "status of a secret": (["etl.status", "--sync", SECRET], {}, 2),
    "prune": (["etl.prune", "--days", "9"], {"PGSSLMODE": SECRET}, 1),
    "prune a secret": (["etl.prune", "--days", SECRET], {}, 2),
}

# `python -m` for each of the runs in turn: to import everything anew takes most of the time. The
# folder for Docker's secrets is the first argument.
_IN_TURN = """
import json, os, pathlib, runpy, sys
from etl.plumbing import environment
environment.SECRETS = pathlib.Path(sys.argv[1])
given, codes = dict(os.environ), {}
for name, (words, own, _) in json.load(sys.stdin).items():
    os.environ.clear()
    os.environ.update(given | own)
    sys.argv[1:] = words[1:]
    print(f"run {name}", flush=True)
    print(f"run {name}", file=sys.stderr, flush=True)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        codes[name] = end.code
print(json.dumps(codes))
"""


@pytest.fixture
def planted(
    servers: Servers, mart: Mart, keys: redis.Redis, select: Select, tmp_path: Path
) -> Iterator[Given]:
    """The secret is the password of both servers; the settings that go with it."""
    mart(segments("('a', 'regular', 1, 0, 0), ('bad', NULL, 1, 0, 0)"), RECOMMENDED)
    _password_of_airflow(servers, SECRET)
    keys.acl_setuser(
        "odd", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], categories=["+@all"]
    )
    yield {
        **dict.fromkeys(PASSWORDS, SECRET),
        "REDIS_USERNAME": "odd",
        "GUARD_MAX_REJECTED": "1",
        "ETL_DEBUG": "1",
    }
    keys.acl_deluser("odd")
    _password_of_airflow(servers, servers.environment["POSTGRES_PASSWORD"])


def test_no_run_however_it_ends_tells_a_secret(
    planted: Given, tmp_path: Path, select: Select
) -> None:
    runs = dict(list(RUNS.items())[:: examples(2, 1)])
    codes, told = _run(runs, planted, tmp_path)

    assert codes == {name: code for name, (*_, code) in runs.items()}
    assert [line for line in told if _shows(line)] == []
    assert "Traceback (most recent call last):" in told
    assert not _shows(str(select(RECORDED)))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["PGPASSWORD", "PGPASSFILE", "/run/secrets"])
def test_no_secret_is_told_wherever_it_came_from(
    source: str, planted: Given, tmp_path: Path, select: Select
) -> None:
    given = {**planted, "POSTGRES_PASSWORD": ""}
    if source == "PGPASSWORD":
        given["PGPASSWORD"] = SECRET
    elif source == "PGPASSFILE":
        given["PGPASSFILE"] = str(_passfile(tmp_path / "passfile"))
    else:
        given["REDIS_PASSWORD"] = ""
        for name in PASSWORDS:
            (tmp_path / name.lower()).write_text(f"{SECRET}\n")
    # What only libpq reads, out of a file, nobody else can know.
    misplaced = "x" if source == "PGPASSFILE" else SECRET
    alone = {"REDIS_PASSWORD": ""}
    runs: dict[str, Run] = {
        "well": (["etl", "--json"], {}, 0),
        "ill": (["etl"], alone | {"MART_SCHEMA": misplaced}, 1),
        "refused": (["etl.user_segments"], {"GUARD_MAX_REJECTED": "0"}, 3),
        "unfit": (["etl"], alone | {"POSTGRES_PORT": misplaced}, 2),
    }

    codes, told = _run(runs, given, tmp_path)

    assert codes == {name: code for name, (*_, code) in runs.items()}, told
    assert [line for line in told if _shows(line)] == []
    assert not _shows(str(select(RECORDED)))


def test_a_stopped_run_tells_no_secret_nor_is_listed_with_one(
    planted: Given, mart: Mart, select: Select, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        for name, value in planted.items():
            environment.setenv(name, value)
        user_segments.sync()
        mart(segments("('a', 'at_risk', 1, 0, 0)"))
        with stuck(select, "a") as process:
            listed = Path(f"/proc/{process.pid}/cmdline").read_text()
            sessions = select("SELECT to_jsonb(a) AS row FROM pg_stat_activity AS a")
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)

    assert process.returncode == 143
    assert not _shows(out + err + listed + str(sessions) + str(select(RECORDED)))


# How a secret is recognised

FORMS = {
    "as it is": SECRET,
    "repr": repr(SECRET)[1:-1],
    "JSON": json.dumps(SECRET)[1:-1],
    "JSON with Unicode": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "in a URL": quote(SECRET, safe=""),
    "in a path": quote(SECRET),
    "in a form": quote_plus(SECRET),
    "in a conninfo": SECRET.replace("\\", "\\\\").replace("'", "\\'"),
    "in ASCII": SECRET.encode("ascii", "backslashreplace").decode(),
    "on one line": " ".join(SECRET.split()),
    "JSON of a repr": json.dumps(repr(SECRET))[2:-2],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_known_however_it_is_written(form: str) -> None:
    assert hide(f"before {FORMS[form]} after", [SECRET]) == "before *** after"
    assert hide(f"before{FORMS[form]}after", [SECRET]) == "before***after"


def test_each_line_of_a_secret_is_known() -> None:
    assert hide("the first line", ["correct horse\nbattery staple"]) == "the first line"
    assert hide("at 'battery staple'", ["correct horse\nbattery staple"]) == "at '***'"


def test_a_short_secret_is_blanked_as_a_word_and_not_in_the_middle_of_others() -> None:
    said = "cannot connect to g1_etl@data:5432/a: password of g1 failed"

    assert hide(said, ["g1"]) == said.replace(" g1 ", " *** ")
    assert hide(said, [" ", "", "\n"]) == said


# Helpers

RECOMMENDED = """
    CREATE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS destination, 1.0 AS score, now() AS generated_at
"""
RECORDED = """
    SELECT to_jsonb(r)::text AS row FROM etl.sync_runs AS r
    UNION ALL SELECT to_jsonb(r)::text FROM etl.rejected_rows AS r
"""


def _run(runs: dict[str, Run], given: Given, folder: Path) -> tuple[dict[str, int], list[str]]:
    """The exit code of each run, and every line that was told."""
    finished = subprocess.run(
        [sys.executable, "-c", _IN_TURN, str(folder)],
        cwd=ROOT,
        env={**os.environ, **given},
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *out, codes = finished.stdout.splitlines()
    return json.loads(codes), out + finished.stderr.splitlines()


def _shows(text: str) -> bool:
    return any(mark in text for mark in MARKS)


def _passfile(path: Path) -> Path:
    path.touch(mode=0o600)
    escaped = SECRET.replace("\\", "\\\\").replace(":", "\\:")
    path.write_text(f"*:*:*:*:{escaped}\n")
    return path


def _password_of_airflow(servers: Servers, password: str) -> None:
    environment = {**servers.environment, "POSTGRES_USER": "postgres"}
    with postgres.session(Settings.from_environment(environment), "tests") as connection:
        (row,) = postgres.select(connection, "SELECT quote_literal($1::text) AS text", password)
        postgres.execute(connection, f"ALTER ROLE airflow PASSWORD {row['text']}")
        connection.commit()
