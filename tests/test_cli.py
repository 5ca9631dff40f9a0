"""The command line: what a flag means, and what is wrong usage."""

from __future__ import annotations

import inspect
import json
import logging
import signal
from dataclasses import fields
from typing import Any

import pytest
from commands import Touched, count
from conftest import process, segments
from fixture_types import Etl, Mart, Select

from etl import __version__, email_triggers, recommendations, user_segments
from etl.cli.flags import Flags
from etl.errors import UsageError
from etl.syncs import SYNCS, that_take

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
    ("--delete-missing", "--delete-missing works with user_segments"),
    ("--delete-missing --sync recommendations", "alone; add --sync user_segments"),
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
    ("only", "line", "said"),
    [
        ("user_segments", "--sync all", "unknown flag '--sync'"),
        ("user_segments", "--sync=user_segments", "unknown flag '--sync'"),
        (
            "email_triggers",
            "--delete-missing",
            "email_triggers deletes no rows: --delete-missing works with "
            f"{' or '.join(that_take('delete_missing'))} alone",
        ),
        (
            "recommendations",
            "--decisions=x.csv",
            "recommendations decides on no mails: --decisions works with email_triggers alone",
        ),
        ("recommendations", "recommendations", "unknown word 'recommendations'"),
    ],
)
@pytest.mark.usefixtures("marts")
def test_a_single_sync_refuses_flags_of_others(
    only: str, line: str, said: str, etl: Etl, touched: Touched
) -> None:
    ended = etl(*line.split(), only=only)

    assert ended.stderr.startswith(f"etl: {said}")

    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert touched() == (0, 0, 0, 0)


def test_a_sync_that_is_not_on_the_list_is_told_where_the_list_is(etl: Etl) -> None:
    ended = etl("--dry-run", only="route_stats")

    assert ended.code == 2
    assert ended.stderr == "etl: route_stats is not on the list of syncs; add it to etl/syncs.py\n"


def test_a_word_with_a_line_break_is_told_on_one_line(etl: Etl) -> None:
    assert etl("a\nb").stderr == "etl: unknown word 'a\\nb'; --help lists the flags\n"


def test_wrong_usage_in_a_process_of_its_own(marts: None, touched: Touched) -> None:
    finished = process("etl", "--dry-run=flase")

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
    assert count(select, "crm.user_segments") == (0 if dry else 3)


def test_delete_missing_reaches_the_sync(etl: Etl, mart: Mart, select: Select) -> None:
    mart(segments(", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(20))))
    etl("--sync", "user_segments")
    mart(segments(", ".join(f"('u{n}', 'regular', 1, 0, 0)" for n in range(19))))

    kept = etl("--sync", "user_segments", "--json")
    removed = etl("--delete-missing", "--json", only="user_segments")

    assert [ended.objects[0]["deleted"] for ended in (kept, removed)] == [0, 1]
    assert count(select, "crm.user_segments") == 19


def test_shard_and_force_reach_the_sync(etl: Etl, marts: None, select: Select) -> None:
    ended = etl("--sync", "user_segments", "--shard", "2/3", "--force")

    assert ended.code == 0
    assert select("SELECT shard, shards, forced FROM etl.sync_runs") == [
        {"shard": 2, "shards": 3, "forced": True}
    ]


# Help


def test_help_explains_every_flag_in_80_columns_and_imports_nothing_heavy() -> None:
    finished = process("etl", "--help", PYTHONPROFILEIMPORTTIME="1", COLUMNS="200")

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


def test_the_version_is_told_and_nothing_is_run(etl: Etl) -> None:
    ended = etl("--version")

    assert (ended.code, ended.stdout) == (0, f"searchflow-etl {__version__}\n")
    assert etl("--version", "--dry-run").code == 2


def test_help_wins_over_everything_else(etl: Etl, marts: None, select: Select) -> None:
    ended = etl("--sync", "user_segments", "--help", "--bogus")

    assert (ended.code, ended.stdout[:6], ended.stderr) == (0, "usage:", "")
    assert count(select, "crm.user_segments") == 0


# Every way to start it


@pytest.mark.few(1)
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
    finished = process(module, "--json")

    assert finished.returncode == 0
    assert [json.loads(line)["sync"] for line in finished.stdout.splitlines()] == did


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

AIRFLOW_CONTEXT = """
    conf conn dag dag_run data_interval_end data_interval_start ds ds_nodash exception
    execution_date expanded_ti_count inlet_events inlets logical_date macros map_index_template
    next_ds next_execution_date outlet_events outlets params prev_data_interval_end_success
    prev_data_interval_start_success prev_ds prev_end_date_success prev_execution_date
    prev_start_date_success reason run_id start_date task task_instance task_instance_key_str
    task_reschedule_count templates_dict test_mode ti tomorrow_ds triggering_asset_events
    triggering_dataset_events try_number ts ts_nodash ts_nodash_with_tz var yesterday_ds
"""
