"""No order to a terminal in any output, whoever wrote the text; JSON keeps its value."""

from __future__ import annotations

import json
import unicodedata

import pytest
from conftest import command, results, segments
from destinations import execute
from fixture_types import Mart, Select

from etl.plumbing.redact import as_json, escaped, quote_value

# C0, C1, bidirectional marks, line and paragraph separators, zero-width characters, a byte order
# mark, a tag, a variation selector, fillers that look like nothing.
ORDERS = [
    *("\x07", "\x1b[2J", "\x1b]0;x\x07", "\x7f", "\x85", "\x9b31m", "\x9d0;x\x9c"),
    *("\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069", "\u2028", "\u2029"),
    *("\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff", "\U000e0041", "\ufe01", "\U000e0100"),
    *("\u034f", "\u115f", "\u3164", "\u2800", "\ufff9", "\ue000"),
]
# A name of many scripts, which anybody may read as it is.
READABLE = "kävijä_1 用户 かな 사용자 Ελλ עברית عربي हिन्दी 😀 ❤️"
HOSTILE = "a" + "".join(ORDERS) + "z"


def shows(text: str) -> list[str]:
    """The characters of a text that a terminal would obey or a reader would not see."""
    unseen = {c for order in ORDERS for c in order if not c.isascii()}
    return [c for c in text if c in unseen or (unicodedata.category(c) == "Cc" and c != "\n")]


@pytest.mark.parametrize("order", ORDERS, ids=ascii)
def test_what_is_escaped_is_read_back_by_a_json_parser(order: str) -> None:
    assert not shows(escaped(order))
    assert not shows(as_json({order: [order]}))
    assert json.loads(as_json({order: [order]})) == {order: [order]}
    assert json.loads(quote_value(order)) == order


def test_letters_of_all_scripts_and_emoji_stay_as_they_are() -> None:
    assert escaped(READABLE) == READABLE
    assert READABLE in as_json([READABLE])


def test_a_name_that_is_not_utf8_is_told_all_the_same() -> None:
    assert json.loads(as_json(["\udce4"])) == ["\udce4"]
    assert escaped("\udce4") == "\\udce4"


@pytest.mark.few(1)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_ids_of_a_mart_give_no_orders(
    log_format: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    good = [HOSTILE, *(f"u{order}" for order in ORDERS)]
    rows = [f"({_sql(user_id)}, 'at_risk', 1, 0, 0)" for user_id in good]
    rejected = f"({_sql('r' + HOSTILE)}, 'at_risk', -1, 0, 0)"
    unmapped = f"('s', {_sql('s' + HOSTILE)}, 1, 0, 0)"
    mart(segments(", ".join([*rows, rejected, unmapped])))

    page = command("etl.email_triggers", "--dry-run", LOG_FORMAT=log_format)
    told = command("etl.email_triggers", "--dry-run", "--json", LOG_FORMAT=log_format)
    wet = command("etl.email_triggers", LOG_FORMAT=log_format)

    assert (page.returncode, told.returncode, wet.returncode) == (0, 0, 0)
    assert not shows("".join(one.stdout + one.stderr for one in (page, told, wet)))
    assert results(told)[0]["outcomes"][0]["users"] == sorted(good)[:5]
    assert "\\u0007" in page.stdout


@pytest.mark.few(1)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_rows_of_the_ledger_give_no_orders(log_format: str, mart: Mart, select: Select) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    command("etl.user_segments")
    hostile = _sql(HOSTILE)
    execute(
        f"UPDATE etl.sync_runs SET status = 'failed', error = {hostile}, version = {hostile},"
        f" host = {hostile}, started_by = {hostile}",
        "INSERT INTO etl.rejected_rows (run_id, sync, key, reasons, row)"
        f" SELECT run_id, sync, {hostile}, ARRAY[{hostile}], '{{}}' FROM etl.sync_runs",
        "UPDATE etl.sync_runs SET rejected = 1",
    )
    page = command("etl.status", "--history", "3")
    told = command("etl.status", "--history", "3", "--json")
    execute("UPDATE etl.sync_runs SET status = 'running', error = NULL, finished_at = NULL")
    abandoned = command("etl.user_segments", LOG_FORMAT=log_format)

    assert not shows("".join(one.stdout + one.stderr for one in (page, told, abandoned)))
    (last, *_) = [sync["last"] for sync in json.loads(told.stdout)["syncs"]]
    fields = ("error", "version", "host", "started_by")
    assert {name: last[name] for name in fields} == dict.fromkeys(fields, HOSTILE)
    assert json.loads(told.stdout)["syncs"][0]["rejects"] == {HOSTILE: 1}
    assert "\\u202e" in page.stdout
    assert "run.abandoned" in abandoned.stderr


# A setting, by which the environment or a file's name gets into a message.
SETTINGS: list[dict[str, str]] = [
    {"DUCKDB_PATH": f"/{HOSTILE}"},
    {"MART_SCHEMA": HOSTILE},
    {"ETL_SQL_DIR": HOSTILE},
    {"POSTGRES_HOST": HOSTILE, "REDIS_HOST": HOSTILE},
    {"POSTGRES_DB": HOSTILE, "REDIS_USERNAME": HOSTILE},
    {"PGSSLMODE": HOSTILE},
    {"REDIS_PORT": HOSTILE},
    {"LOG_FORMAT": HOSTILE},
    {"AIRFLOW_CTX_DAG_RUN_ID": HOSTILE, "PGAPPNAME": HOSTILE},
]


@pytest.mark.few(2)
@pytest.mark.parametrize("given", SETTINGS, ids="+".join)
def test_settings_and_names_of_files_give_no_orders(given: dict[str, str], mart: Mart) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))

    for log_format in ("text", "json"):
        finished = command("etl", **{"LOG_FORMAT": log_format, "ETL_DEBUG": "1", **given})

        assert finished.returncode
        assert not shows(finished.stdout + finished.stderr)


@pytest.mark.parametrize("words", [["--bogus" + HOSTILE], ["--sync", HOSTILE], [HOSTILE]])
def test_words_of_the_command_line_give_no_orders(words: list[str]) -> None:
    for module in ("etl", "etl.status", "etl.init_db"):
        finished = command(module, *words, ETL_DEBUG="1")

        assert finished.returncode == 2
        assert not shows(finished.stdout + finished.stderr)


@pytest.mark.few(2)
def test_what_a_server_says_gives_no_orders(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    execute(
        "CREATE FUNCTION crm.odd() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION USING MESSAGE = {_sql(HOSTILE)}; END $$",
        "CREATE TRIGGER odd BEFORE INSERT ON crm.user_segments"
        " FOR EACH ROW EXECUTE FUNCTION crm.odd()",
    )

    runs = [
        command("etl.user_segments", *flags, LOG_FORMAT=log_format, ETL_DEBUG="1")
        for log_format in ("text", "json")
        for flags in ([], ["--json"])
    ]
    page = command("etl.status")

    assert [run.returncode for run in runs] == [1, 1, 1, 1]
    assert not shows("".join(one.stdout + one.stderr for one in (*runs, page)))
    errors = select("SELECT error FROM etl.sync_runs WHERE sync = 'user_segments'")
    assert not shows("".join(row["error"] for row in errors))


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
