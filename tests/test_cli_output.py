"""What a command prints, and which code it ends with."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pytest
from commands import Touched, start
from conftest import ROOT, process, results, segments
from fixture_types import Etl, Mart
from pace import HANG

from etl import user_segments
from etl.syncs import SYNCS

# JSON


@pytest.mark.every_sync
@pytest.mark.parametrize("line", ["", "--dry-run"])
def test_json_is_one_object_per_sync_with_the_agreed_keys(line: str, etl: Etl, marts: None) -> None:
    ended = etl("--json", *line.split())

    told = ["unmapped_segments", "warnings", *(["outcomes"] if line else [])]
    assert ended.code == 0
    assert [list(one) for one in ended.objects[:3]] == [
        [*KEYS, "seconds"],
        [*KEYS, "cancelled", "suppressed", "held_back", "unmapped", "seconds", *told],
        [*KEYS, "written", "below_threshold", "seconds"],
    ]
    assert [one["sync"] for one in ended.objects] == list(SYNCS)
    assert {one["status"] for one in ended.objects} == {"ok"}
    counts = {name: ended.objects[2][name] for name in ("inserted", "unchanged", "written")}
    assert counts == (
        {"inserted": 2, "unchanged": 0, "written": None}
        if line
        else {"inserted": None, "unchanged": None, "written": 2}
    )


def test_json_of_failed_and_refused_runs_tells_what_is_known(etl: Etl, mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"), "DELETE FROM mart_user_segments")

    ended = etl("--json")

    assert ended.code == 1
    assert [(one["sync"], one["status"]) for one in ended.objects[:3]] == [
        ("user_segments", "refused"),
        ("email_triggers", "refused"),
        ("recommendations", "failed"),
    ]
    assert [list(one)[-2:] for one in ended.objects[:3]] == [["seconds", "error"]] * 3
    assert ended.objects[0]["extracted"] == 0
    assert ended.objects[1]["extracted"] is None
    assert "empty: the mart has no rows" in ended.objects[0]["error"]
    assert "mart_recommendations" in ended.objects[2]["error"]
    assert all("\n" not in one.get("error", "") for one in ended.objects)


# Several syncs


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("statements", "statuses", "code"),  # of the first three syncs
    [
        pytest.param((), ["ok", "ok", "ok"], 0, id="all well"),
        pytest.param(
            ("ALTER TABLE mart_user_segments DROP segment",),
            ["failed", "refused", "ok"],
            1,
            id="segments failed",
        ),
        pytest.param(
            ("DELETE FROM mart_user_segments",),
            ["refused", "refused", "ok"],
            3,
            id="segments refused",
        ),
        pytest.param(
            ("DELETE FROM mart_recommendations",),
            ["ok", "ok", "refused"],
            3,
            id="recommendations refused",
        ),
        pytest.param(
            ("DROP TABLE mart_recommendations",),
            ["ok", "ok", "failed"],
            1,
            id="recommendations failed",
        ),
        pytest.param(
            ("DELETE FROM mart_user_segments", "DROP TABLE mart_recommendations"),
            ["refused", "refused", "failed"],
            1,
            id="failed outranks refused",
        ),
    ],
)
def test_one_sync_that_fails_does_not_stop_the_others(
    *,
    statements: tuple[str, ...],
    statuses: list[str],
    code: int,
    etl: Etl,
    marts: None,
    mart: Mart,
    touched: Touched,
) -> None:
    mart(*statements)

    ended = etl("--json")

    assert [one["status"] for one in ended.objects[:3]] == statuses
    assert ended.code == code
    segments_written, mails, keys_written, _ = touched()
    assert segments_written == (3 if statuses[0] == "ok" else 0)
    assert mails == (1 if statuses[1] == "ok" else 0)
    assert keys_written == (2 if statuses[2] == "ok" else 0)


def test_settings_that_do_not_parse_end_with_2(
    etl: Etl, marts: None, monkeypatch: pytest.MonkeyPatch, touched: Touched
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setenv("REDIS_PORT", "abc")
        ended = etl("--json")

    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == "etl: settings: REDIS_PORT: 'abc' is not a whole number\n"
    assert touched() == (0, 0, 0, 0)


# The table, the log, and errors


def test_the_table_fits_80_columns(
    etl: Etl, marts: None, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    mart("ALTER TABLE mart_recommendations DROP recommendation_score")
    mart(*(f"ALTER TABLE mart_recommendations ADD another_long_name_{n} INT" for n in range(20)))

    for ended in (etl(), etl("--dry-run")):
        assert max(map(len, ended.stdout.splitlines())) <= 80
        assert ended.stdout.count("recommendation_score or score") == 1

    assert "Dry run: nothing was changed." in ended.stdout


def test_the_users_of_an_outcome_stand_side_by_side_and_whole(
    etl: Etl, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = [letter * 36 for letter in "vwxyz"]
    users = [
        *((f"user_{n}", "abandoned_search") for n in range(5)),
        *((u, "at_risk") for u in long),
    ]
    mart(segments(", ".join(f"('{user}', '{segment}', 1, 0, 0)" for user, segment in users)))

    lines = etl("--sync", "email_triggers", "--dry-run").stdout.splitlines()

    assert "    user_0, user_1, user_2, user_3, user_4" in lines
    named = [line for line in lines if line.startswith("    ") and long[0][0] <= line.strip()]
    assert named == [f"    {v}, {w}," for v, w in (long[:2], long[2:4])] + [f"    {long[4]}"]


@pytest.mark.every_sync
def test_a_table_tells_what_each_sync_did(etl: Etl, marts: None) -> None:
    rows = [line.split() for line in etl().stdout.splitlines()]

    assert rows[0] == ["sync", "status", "rows", "read", "what", "it", "did", "seconds"]
    assert [row[:-1] for row in rows[1:4]] == [
        ["user_segments", "ok", "3", "3", "inserted"],
        ["email_triggers", "ok", "3", "1", "inserted"],
        ["recommendations", "ok", "3", "2", "written"],
    ]


@pytest.mark.every_sync
def test_on_a_terminal_an_error_is_told_once(marts: None, mart: Mart) -> None:
    mart("DROP TABLE mart_recommendations")

    code, screen = _on_a_terminal("etl")

    lines = screen.splitlines()
    assert code == 1
    assert screen.count("mart_recommendations") == 1
    table = next(n for n, line in enumerate(lines) if line.startswith("sync "))
    error = lines[table + 2 + len(SYNCS)]
    assert error.startswith("etl: recommendations failed: mart_recommendations")
    assert max(map(len, lines[table:])) <= 80
    assert "Traceback" not in screen


def test_logs_that_are_not_for_a_terminal_are_json(etl: Etl, marts: None, mart: Mart) -> None:
    mart("DROP TABLE mart_recommendations")

    ended = etl("--json", "--sync", "recommendations")

    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert events[0]["event"] == "sync.started"
    assert events[-1]["error"] == ended.objects[0]["error"]
    assert {event["run_id"] for event in events} == {ended.objects[0]["run_id"]}


@pytest.mark.every_sync
def test_a_log_as_text_leaves_the_error_to_the_last_line(
    etl: Etl, marts: None, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "text")
    mart("DROP TABLE mart_recommendations")

    ended = etl()

    assert ended.stderr.count("mart_recommendations ") == 1
    assert ended.stderr.splitlines()[-1].startswith("etl: recommendations failed: mart_reco")
    assert "mart_recommendations" not in ended.stdout


def test_only_etl_debug_shows_a_traceback(
    etl: Etl, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = etl("--sync", "user_segments")
    monkeypatch.setenv("ETL_DEBUG", "1")
    debug = etl("--sync", "user_segments")

    assert (plain.code, debug.code) == (1, 1)
    assert "Traceback" not in plain.stderr + plain.stdout
    assert "Traceback (most recent call last)" in debug.stderr
    assert "Traceback" not in debug.stdout


def test_a_traceback_shows_no_secret(
    etl: Etl, marts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = os.environ["POSTGRES_PASSWORD"]

    def leaky(_: object) -> None:
        raise ValueError(f"cannot parse the address postgres://airflow:{password}@host")

    monkeypatch.setattr(user_segments, "load", leaky)
    monkeypatch.setenv("ETL_DEBUG", "1")

    ended = etl("--sync", "user_segments")

    assert "etl.plumbing.failure.Cause: ValueError\n" in ended.stderr
    assert password not in ended.stderr + ended.stdout


def test_a_defect_is_one_line_as_well(
    etl: Etl, marts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(user_segments, "load", broken)

    ended = etl("--sync", "user_segments", "--json")

    assert ended.code == 1
    assert re.fullmatch(
        r"unexpected ZeroDivisionError at etl/run/__init__.py:\d+;"
        " set ETL_DEBUG=1 for the traceback",
        ended.objects[0]["error"],
    )


@pytest.mark.every_sync
def test_a_reader_who_has_gone_does_not_stop_the_syncs(marts: None, touched: Touched) -> None:
    running = start("etl", "--json")
    assert running.stdout is not None
    running.stdout.close()

    assert running.wait(HANG) == 0
    assert touched() == (3, 1, 2, len(SYNCS))


@pytest.mark.parametrize("program", ["etl", "etl.check", "etl.status"])
def test_an_output_that_cannot_be_written_is_told(program: str) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", program, "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert ended.returncode == 1
    assert ended.stderr.startswith("etl: stdout: No space left on device; python -m etl.status")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("program", ["etl.user_segments", "etl.check", "etl.status"])
def test_a_page_that_cannot_be_written_is_told(program: str, mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert ended.returncode == 1
    assert "etl: stdout: No space left on device; " in ended.stderr.splitlines()[-1]


def test_what_an_encoding_does_not_have_is_escaped(mart: Mart) -> None:
    mart(segments("('a', 'régulier 日', 1, 0, 0)"))

    ended = process("etl.email_triggers", "--dry-run", "--json", PYTHONIOENCODING="ascii")

    assert ended.returncode == 0, ended.stderr
    assert results(ended)[0]["unmapped_segments"] == {"régulier 日": 1}
    assert "\\u65e5" in ended.stdout


# Helpers

KEYS = (
    *("sync", "run_id", "status", "dry_run"),
    *("extracted", "rejected", "inserted", "updated", "unchanged", "deleted"),
)


def _on_a_terminal(module: str) -> tuple[int, str]:
    """Run it on a terminal of 80 columns: exit code and what is on the screen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    running = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**clean, "TERM": "dumb"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        screen = _everything(terminal)
    return running.wait(HANG), screen.decode().replace("\r\n", "\n")


def _everything(terminal: IO[bytes]) -> bytes:
    read = b""
    while True:
        try:
            part = terminal.read(4096)
        except OSError:  # how Linux says that the other end is closed
            return read
        if not part:
            return read
        read += part
