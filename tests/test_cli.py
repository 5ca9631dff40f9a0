"""The command line: what a flag means, what is printed where, and which code it ends with."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import pytest
import redis
from conftest import ROOT, command, other_marts, segments
from pace import HANG, soon

from etl import cli, email_triggers, postgres, recommendations, user_segments
from etl.cli.flags import SYNCS, Flags
from etl.errors import Cancelled, UsageError

Mart = Callable[..., None]
Select = Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


Etl = Callable[..., Ended]
Touched = Callable[[], tuple[int, int, int, int]]


@pytest.fixture
def etl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Etl]:
    """`python -m etl <arguments>`, or `python -m etl.<only>`, without a process of its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logger = logging.getLogger("etl")
    before = (logger.handlers, logger.level, logger.propagate)

    def run(*arguments: str, only: str | None = None) -> Ended:
        monkeypatch.setattr(sys, "argv", ["etl", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(only)
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    yield run
    logger.handlers, logger.level, logger.propagate = before
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def marts(mart: Mart, tmp_path: Path) -> None:
    """Every mart: three users, of whom two have recommendations."""
    mart(THREE_USERS, RECOMMENDED, *other_marts(tmp_path))


@pytest.fixture
def touched(select: Select, keys: redis.Redis) -> Touched:
    """Count the rows of the segments and of the queue, the keys, and the rows of the ledger."""

    def count() -> tuple[int, int, int, int]:
        tables = ("crm.user_segments", "crm.email_queue", "etl.sync_runs")
        segment_rows, mails, runs = (_count(select, table) for table in tables)
        return segment_rows, mails, int(keys.dbsize()), runs

    return count


# Wrong usage: exit 2, one line, and nothing has been run

WRONG = [
    ("--bogus", "unknown flag '--bogus'"),
    ("--dry-rum", "did you mean --dry-run?"),
    ("--no-dry-run", "unknown flag '--no-dry-run'"),
    ("--nodry_run", "unknown flag '--nodry_run'"),
    ("--sync user_segment", "unknown sync 'user_segment'"),
    ("--sync all,user_segments", "it can be all, user_segments, email_triggers, recommend"),
    ("--sync=", "unknown sync ''"),
    ("--sync=None", "unknown sync None"),
    ("--sync", "--sync needs a value"),
    ("--sync --dry-run", "--sync needs a value"),
    ("--sync user_segments --sync recommendations", "given twice: --sync"),
    ("--dry-run=flase", "--dry-run is a switch"),
    ("--dry-run flase", "--dry-run is a switch"),
    ("--dry_run=1", "--dry-run is a switch"),
    ("--dry-run=", "--dry-run is a switch"),
    ("--force=no", "--force is a switch"),
    ("--json=yes", "--json is a switch"),
    ("user_segments", "unknown word 'user_segments'"),
    ("sync", "unknown word 'sync'"),
    ("dry_run", "unknown word 'dry_run'"),
    ("__class__", "unknown word '__class__'"),
    ("--sync user_segments json", "unknown word 'json'"),
    ("--dry-run=true shards", "unknown word 'shards'"),
    ("--", "unknown flag '--'"),
    ("-- --interactive", "unknown flag '--'"),
    ("-- --trace", "unknown flag '--'"),
    ("-", "unknown flag '-'"),
    ("-d", "unknown flag '-d'"),
    ("-d --sync user_segments", "unknown flag '-d'"),
    ("--wait=abc", "wait must be a number of seconds, not 'abc'"),
    ("--wait", "--wait needs a value"),
    ("--wait=-1", "wait must be a number of seconds, not -1"),
    ("--wait=1e999", "wait must be a number of seconds, not inf"),
    ("--wait=True", "wait must be a number of seconds, not True"),
    ("--shards=4", "--shards is gone: a sync of any size runs in the same memory"),
    ("--shards 4", "--shards is gone"),
    ("--shard=3", "--shard takes I/N, as 0/16 for the first of 16, not 3"),
    ("--shard=1/2/3", "--shard takes I/N, as 0/16 for the first of 16, not '1/2/3'"),
    ("--shard=2/2", "shard must be (i, n) with 0 <= i < n, not (2, 2)"),
    ("--shard=0/0", "shard must be (i, n) with 0 <= i < n, not (0, 0)"),
    ("--shard=-1/2", "--shard takes I/N"),
    ("--shard", "--shard needs a value"),
    ("--delete-missing", "works with user_segments alone; add --sync user_segments"),
    ("--delete-missing --sync recommendations", "works with user_segments alone"),
    ("--dry-run --show 3", "--show works with user_segments alone; add --sync user_segments"),
    ("--sync user_segments --show 3", "show works with a dry run alone; add --dry-run"),
    ("--sync user_segments --dry-run --show x", "show must be a whole number from 0 to 10,000"),
    ("--sync user_segments --dry-run --show=-1", "show must be a whole number from 0 to 10,000"),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_wrong_usage_is_one_line_and_exit_code_2(line: str, said: str, etl: Etl) -> None:
    ended = etl(*line.split(" "))

    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("etl: ")
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr


def test_wrong_usage_runs_nothing(etl: Etl, marts: None, touched: Touched) -> None:
    codes = {etl(*line.split(" ")).code for line, _ in WRONG}

    assert codes == {2}
    assert touched() == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("only", "line"),
    [
        ("user_segments", "--sync all"),
        ("user_segments", "--sync=user_segments"),
        ("email_triggers", "--delete-missing"),
        ("recommendations", "recommendations"),
    ],
)
def test_a_single_sync_refuses_flags_of_others(
    only: str, line: str, etl: Etl, marts: None, touched: Touched
) -> None:
    ended = etl(*line.split(), only=only)

    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert touched() == (0, 0, 0, 0)


def test_a_word_with_a_line_break_is_told_on_one_line(etl: Etl) -> None:
    assert etl("a\nb").stderr == "etl: unknown word 'a\\nb'; --help lists the flags\n"


def test_wrong_usage_in_a_process_of_its_own(marts: None, touched: Touched) -> None:
    finished = command("etl", "--dry-run=flase")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == (
        "etl: --dry-run is a switch: --dry-run, --dry-run=true or --dry-run=false, not 'flase'\n"
    )
    assert touched() == (0, 0, 0, 0)


def test_an_unknown_log_format_is_wrong_usage(
    etl: Etl, marts: None, monkeypatch: pytest.MonkeyPatch, touched: Touched
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "xml")

    ended = etl()

    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == "etl: settings: LOG_FORMAT: 'xml' is neither text nor json\n"
    assert touched() == (0, 0, 0, 0)


# Flags mean what they say


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("line", "dry"),
    [
        ("--dry-run", True),
        ("--dry_run", True),
        ("--dry-run=true", True),
        ("--dry-run=True", True),
        ("--dry_run true", True),
        ("--dry-run=false", False),
        ("--dry_run=False", False),
        ("--dry-run false", False),
        ("", False),
    ],
)
def test_a_switch_means_what_it_says(
    line: str, dry: bool, etl: Etl, marts: None, select: Select
) -> None:
    ended = etl("--sync=user_segments", "--json", *line.split())

    assert (ended.code, ended.objects[0]["dry_run"]) == (0, dry)
    assert ended.objects[0]["inserted"] == 3
    assert _count(select, "crm.user_segments") == (0 if dry else 3)


def test_delete_missing_reaches_the_sync(etl: Etl, mart: Mart, select: Select) -> None:
    mart(segments(", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(20))))
    etl("--sync", "user_segments")
    mart(segments(", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(19))))

    kept = etl("--sync", "user_segments", "--json")
    removed = etl("--delete-missing", "--json", only="user_segments")

    assert [ended.objects[0]["deleted"] for ended in (kept, removed)] == [0, 1]
    assert _count(select, "crm.user_segments") == 19


def test_shard_and_force_reach_the_sync(etl: Etl, marts: None, select: Select) -> None:
    ended = etl("--sync", "user_segments", "--shard", "2/3", "--force")

    assert ended.code == 0
    assert select("SELECT shard, shards, forced FROM etl.sync_runs") == [
        {"shard": 2, "shards": 3, "forced": True}
    ]


# Help


def test_help_explains_every_flag_in_80_columns_and_imports_nothing_heavy() -> None:
    finished = command("etl", "--help", PYTHONPROFILEIMPORTTIME="1", COLUMNS="200")

    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert finished.returncode == 0
    assert max(map(len, finished.stdout.splitlines())) < 80
    for flag in fields(Flags):
        assert f"\n  --{flag.name.replace('_', '-')} " in finished.stdout
    assert {"duckdb", "polars", "pyarrow", "redis", "rich", "dataframely"}.isdisjoint(imported)
    assert "etl.cli.flags" in imported


def test_help_of_one_sync_leaves_out_what_it_does_not_take(etl: Etl) -> None:
    page = etl("--help", only="recommendations").stdout

    assert page.startswith("usage: python -m etl.recommendations [flags]\n")
    assert "--dry-run" in page
    assert "--sync" not in page
    assert "--delete-missing" not in page
    assert "--delete-missing" in etl("-h", only="user_segments").stdout


def test_help_wins_over_everything_else(etl: Etl, marts: None, select: Select) -> None:
    ended = etl("--sync", "user_segments", "--help", "--bogus")

    assert (ended.code, ended.stdout[:6], ended.stderr) == (0, "usage:", "")
    assert _count(select, "crm.user_segments") == 0


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
    process = _start("etl", "--json")
    assert process.stdout is not None
    process.stdout.close()

    assert process.wait(HANG) == 0
    assert touched() == (3, 1, 2, len(SYNCS))


# Every way to start it


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("module", "did"),
    [
        ("etl.user_segments", ["user_segments"]),
        ("etl.email_triggers", ["email_triggers"]),
        ("etl.recommendations", ["recommendations"]),
        pytest.param("etl", list(SYNCS), marks=pytest.mark.every_sync),
    ],
)
def test_every_module_is_a_command(module: str, did: list[str], marts: None) -> None:
    finished = command(module, "--json")

    assert finished.returncode == 0
    assert [json.loads(line)["sync"] for line in finished.stdout.splitlines()] == did


# Signals


@pytest.mark.few(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_rolls_back_and_is_recorded(
    number: signal.Signals, code: int, marts: None, database: postgres.Connection, touched: Touched
) -> None:
    postgres.execute(database, "LOCK TABLE crm.user_segments IN ACCESS EXCLUSIVE MODE")
    process = _start("etl", "--json", LOG_FORMAT="text")
    _wait_for_lock(database)

    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=HANG)
    database.rollback()
    (row,) = postgres.select(database, "SELECT run_id, sync, status, error FROM etl.sync_runs")

    assert process.returncode == code
    assert stderr.splitlines()[-1] == f"etl: stopped by {number.name}"
    assert stderr.count("stopped by") == 1
    assert "Traceback" not in stderr
    (printed,) = map(json.loads, stdout.splitlines())
    assert (printed["status"], printed["error"]) == ("cancelled", f"cancelled by {number.name}")
    assert row == {name: printed[name] for name in ("run_id", "sync", "status", "error")}
    assert touched() == (0, 0, 0, 1)


@pytest.mark.parametrize("module", ["etl", "etl.user_segments"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_the_imports_is_one_line_too(
    module: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    slow = "import time\nprint('importing', flush=True)\ntry: time.sleep(99)\nexcept BaseException:"
    (tmp_path / "dataframely.py").write_text(f"{slow} raise ImportError('swallowed') from None\n")
    process = _start(module, PYTHONPATH=str(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"

    process.send_signal(number)
    _, stderr = process.communicate(timeout=HANG)

    assert (process.returncode, stderr) == (code, f"etl: stopped by {number.name}\n")


@pytest.mark.parametrize("lost", [RuntimeError("Query interrupted"), None], ids=str)
def test_a_signal_whose_exception_got_lost_still_stops_the_command(
    lost: Exception | None,
    etl: Etl,
    marts: None,
    monkeypatch: pytest.MonkeyPatch,
    touched: Touched,
) -> None:
    def deaf(_: object) -> None:
        with contextlib.suppress(Cancelled):
            signal.raise_signal(signal.SIGTERM)
        if lost:
            raise lost

    monkeypatch.setattr(user_segments, "load", deaf)

    ended = etl("--json", "--force")

    assert (ended.code, len(ended.objects)) == (143, 1)
    assert ended.stderr.splitlines()[-1] == "etl: stopped by SIGTERM"
    assert touched()[:3] == (0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_work_changes_nothing(number: signal.Signals) -> None:
    # What runs at exit runs while Python winds up; a class outlives the handlers.
    code = (
        "import os, sys\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, {int(number)})\n"
        "sys.late = Late()\n"
        "from etl import cli\n"
        "cli.exit_with(lambda: 0)\n"
    )

    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (finished.returncode, finished.stderr) == (0, "")


def test_importing_the_package_sets_no_signal_handler() -> None:
    code = (
        "import signal, etl.cli, etl.user_segments; print(signal.getsignal(15) == signal.SIG_DFL)"
    )

    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert finished.stdout == "True\n"


# sync() from Python


@pytest.mark.parametrize("module", [user_segments, email_triggers, recommendations])
def test_sync_takes_keywords_that_airflow_does_not_fill_in(module: Any) -> None:
    parameters = inspect.signature(module.sync).parameters

    assert {one.kind for one in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(one.default is not inspect.Parameter.empty for one in parameters.values())
    assert set(AIRFLOW_CONTEXT.split()).isdisjoint(parameters)


@pytest.mark.parametrize("module", [user_segments, email_triggers, recommendations])
@pytest.mark.parametrize("switch", ["dry_run", "force"])
@pytest.mark.parametrize("value", ["False", "", 0, 1, None])
def test_sync_refuses_a_switch_that_is_no_bool(module: Any, switch: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"{switch} must be True or False, not {value!r}"):
        module.sync(**{switch: value})


def test_delete_missing_must_be_a_bool() -> None:
    with pytest.raises(UsageError, match="delete_missing must be True or False, not 'False'"):
        user_segments.sync(delete_missing="False")  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [user_segments, email_triggers, recommendations])
def test_sync_returns_a_plain_dict(module: Any, marts: None) -> None:
    for result in (module.sync(), module.sync(dry_run=True)):
        assert type(result) is dict
        assert json.loads(json.dumps(result)) == result


def test_sync_leaves_logging_and_signals_to_its_host(marts: None) -> None:
    logger, root = logging.getLogger("etl"), logging.getLogger()
    before = [*logger.handlers], logger.level, logger.propagate, [*root.handlers], root.level
    handler = signal.getsignal(signal.SIGTERM)

    user_segments.sync()

    after = [*logger.handlers], logger.level, logger.propagate, [*root.handlers], root.level
    assert after == before
    assert signal.getsignal(signal.SIGTERM) is handler


# Helpers

KEYS = (
    *("sync", "run_id", "status", "dry_run"),
    *("extracted", "rejected", "inserted", "updated", "unchanged", "deleted"),
)

THREE_USERS = segments(
    "('a', 'regular', 3, 0, 0), ('b', 'abandoned_search', 9, 1, 5), ('c', 'regular', 1, 0, 0)"
)

RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT
        user_id, recommended_destination, recommendation_score::DOUBLE AS recommendation_score,
        2::BIGINT AS supporting_users, rank::BIGINT AS rank, now() AS generated_at
    FROM (VALUES ('a', 'Miami', 1.0, 1), ('a', 'Cancun', 0.7, 2), ('b', 'Lisbon', 0.9, 1))
        AS v(user_id, recommended_destination, recommendation_score, rank)
"""

AIRFLOW_CONTEXT = """
    conf conn dag dag_run data_interval_end data_interval_start ds ds_nodash exception
    execution_date expanded_ti_count inlet_events inlets logical_date macros map_index_template
    next_ds next_execution_date outlet_events outlets params prev_data_interval_end_success
    prev_data_interval_start_success prev_ds prev_end_date_success prev_execution_date
    prev_start_date_success reason run_id start_date task task_instance task_instance_key_str
    task_reschedule_count templates_dict test_mode ti tomorrow_ds triggering_asset_events
    triggering_dataset_events try_number ts ts_nodash ts_nodash_with_tz var yesterday_ds
"""


def _count(select: Select, table: str) -> int:
    count: int = select(f"SELECT count(*) AS n FROM {table}")[0]["n"]
    return count


def _start(module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_lock(database: postgres.Connection) -> None:
    """Return when a sync waits for a lock that this connection holds."""
    waiting = "SELECT 1 AS one FROM pg_locks WHERE NOT granted"
    assert soon(lambda: bool(postgres.select(database, waiting)), HANG)


def _on_a_terminal(module: str) -> tuple[int, str]:
    """Run it on a terminal of 80 columns: exit code and what is on the screen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**clean, "TERM": "dumb"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        screen = _everything(terminal)
    return process.wait(HANG), screen.decode().replace("\r\n", "\n")


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
