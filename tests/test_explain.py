"""`python -m etl.explain USER_ID`: what is known of a user, and what a run now would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import command, segments
from destinations import digest, dump, execute
from fixture_types import Mart, Select

from etl import postgres, recommendations, user_segments
from etl.errors import UsageError
from etl.explain import decisions, explain, page
from etl.postgres import Connection

BEFORE = segments(
    "('left', 'regular', 1, 0, 0), ('moves', 'at_risk', 4, 0, 12.5), ('same', 'new_user', 1, 1, 1),"
    " ('bad', 'regular', 1, 0, 0), ('twice', 'regular', 1, 0, 0)"
)
AFTER = segments(
    "('moves', 'regular', 1004, 0, 12.5), ('same', 'new_user', 1, 1, 1), ('bad', NULL, 1, 0, -1),"
    " ('twice', 'regular', 1, 0, 0), ('twice', 'at_risk', 2, 0, 0), ('new', 'regular', 3, 0, 0.1)"
)
DESTINATIONS = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT user_id, destination, score, now() AS generated_at
    FROM (VALUES ('same', 'Rome', 0.9), ('same', 'Oslo', 0.5), ('moves', 'Rome', {moves}),
        ('new', 'Bern', 0.2), ('bad', 'Bonn', 7)) AS v(user_id, destination, score)
"""
# Everybody that the marts and the CRM know, and one more.
USERS = ("left", "moves", "same", "bad", "twice", "new", "unheard")
SENTENCES = {
    "moves": "A run now would change segment at_risk -> regular, total searches 4 -> 1,004.",
    "left": "one with --delete-missing would delete it.",
    "bad": "Rejected, hence not used: segment has no value (segment:null); lifetime value is too",
    "twice": "several rows have this id, and nobody knows which is right (duplicate)",
    "same": "Oslo 0.50, not above 0.5: not recommended",
    "new": "There is no key reco:new.",
}


@pytest.fixture
def marts(mart: Mart, keys: redis.Redis) -> None:
    """Yesterday's marts are synced, today's are not."""
    mart(BEFORE, DESTINATIONS.format(moves=0.8))
    user_segments.sync()
    recommendations.sync(force=True)
    mart(AFTER, DESTINATIONS.format(moves=0.7))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("user", "change", "columns"),
    [
        ("new", "insert", {"segment", "total_searches", "total_conversions", "lifetime_value"}),
        ("moves", "update", {"segment", "total_searches"}),
        ("same", "unchanged", set()),
        ("left", "delete", {"segment", "total_searches", "total_conversions", "lifetime_value"}),
        ("bad", "none", set()),
        ("twice", "none", set()),
        ("unheard", "none", set()),
    ],
)
def test_what_a_run_would_do_to_the_crm_is_told(
    user: str, change: str, columns: set[str], marts: None
) -> None:
    crm = explain(user)["crm"]

    assert crm["next_run"]["change"] == change
    assert crm["next_run"]["columns"].keys() == columns
    assert (crm["row"] is not None) == (user not in ("new", "unheard"))


def test_changed_columns_have_old_and_new_values(marts: None) -> None:
    assert explain("moves")["crm"]["next_run"]["columns"] == {
        "segment": {"old": "at_risk", "new": "regular"},
        "total_searches": {"old": 4, "new": 1004},
    }


def test_every_user_is_told_as_a_dry_run_tells_them_without_changing_anything(
    marts: None, select: Select, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    dry = user_segments.sync(dry_run=True, force=True, delete_missing=True, show=99)
    before = (digest(select), dump(keys), select("SELECT * FROM etl.sync_runs"))

    told = {user: explain(user) for user in USERS}

    assert (digest(select), dump(keys), select("SELECT * FROM etl.sync_runs")) == before
    runs = {user: one["crm"]["next_run"] for user, one in told.items()}
    assert {one["user_id"]: (one["change"], one["columns"]) for one in dry["changes"]} == {
        user: (run["change"], run["columns"]) for user, run in runs.items() if run["columns"]
    }
    pages = {user: page.page(one) for user, one in told.items()}
    assert max(len(line) for one in pages.values() for line in one.splitlines()) < 80
    for user, sentence in SENTENCES.items():
        assert sentence in " ".join(pages[user].split())


def test_rejected_rows_are_shown_with_their_reasons(marts: None) -> None:
    bad, twice = (explain(user)["mart"] for user in ("bad", "twice"))

    assert [row["reasons"] for row in bad["rejected"]] == [
        ["segment:null", "lifetime_value:too_small"]
    ]
    assert [row["reasons"] for row in twice["rejected"]] == [["duplicate"], ["duplicate"]]
    assert {row["row"]["segment"] for row in twice["rejected"]} == {"regular", "at_risk"}
    assert (bad["accepted"], twice["accepted"]) == ([], [])
    assert explain("same")["mart"]["accepted"][0]["total_searches"] == 1


def test_the_key_its_time_and_what_a_run_would_write_are_told(
    marts: None, keys: redis.Redis
) -> None:
    same, moves, new, bad = (
        explain(user)["recommendations"] for user in ("same", "moves", "new", "bad")
    )

    assert same["value"] == {"destinations": ["Rome"], "score": 0.9}
    assert 86_000 < same["seconds_left"] <= 86_400
    assert same["next_run"] == {"change": "unchanged", "value": same["value"]}
    assert moves["next_run"]["change"] == "update"
    assert moves["next_run"]["value"] == {"destinations": ["Rome"], "score": 0.7}
    assert (new["value"], new["next_run"]) == (None, {"change": "none", "value": None})
    assert bad["mart"]["rejected"][0]["reasons"] == ["score:too_large"]
    keys.delete("reco:same")
    assert explain("same")["recommendations"]["next_run"]["change"] == "insert"


def test_of_a_key_that_never_expires_it_is_not_told_that_it_does(
    marts: None, keys: redis.Redis
) -> None:
    keys.set("reco:new", "{}")

    told = command("etl.explain", "new").stdout

    assert "key reco:new, which never expires:" in told
    assert "expires by itself" not in " ".join(told.split())


def test_the_last_rejections_and_runs_are_told(marts: None) -> None:
    with pytest.raises(Exception, match="rejects"):
        user_segments.sync()

    told = explain("twice")

    (rejected,) = told["rejections"]["last"]
    assert (rejected["reasons"], rejected["rows"]) == (["duplicate"], 2)
    assert "But the last run did not go through (refused, see below)" in page.page(told)
    runs = {one["sync"]: one["status"] for one in told["runs"]["last"]}
    assert runs == {"user_segments": "refused", "recommendations": "ok"}


# The command line


def test_json_has_the_facts_of_the_page(marts: None) -> None:
    told = command("etl.explain", "moves", "--json")

    facts = json.loads(told.stdout)
    assert told.returncode == 0, told.stderr
    assert facts.keys() == explain("moves").keys()
    assert facts["crm"]["next_run"] == explain("moves")["crm"]["next_run"]


def test_a_user_whom_nobody_knows_is_one_line_and_exit_code_1(marts: None) -> None:
    told = command("etl.explain", "unheard")

    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (1, "", 1)
    assert told.stderr.startswith("etl: nobody knows the user unheard: not the marts, the CRM,")


@pytest.mark.few(2)
@pytest.mark.parametrize("user", ["123", "1e5", "None", "-5", "[1]", "a b", "ä😀", "'; --"])
def test_ids_are_text_whatever_they_look_like(user: str, mart: Mart) -> None:
    quoted = user.replace("'", "''")
    mart(segments(f"('{quoted}', 'regular', 1, 0, 0)"))

    told = command("etl.explain", "--json", "--", user)

    assert json.loads(told.stdout)["mart"]["accepted"][0]["user_id"] == user


@pytest.mark.parametrize("user", ["", "x" * 256, "a\0b", "\udc80"])
def test_an_id_that_no_contract_accepts_is_wrong_usage(user: str, environment: Path) -> None:
    with pytest.raises(UsageError, match="1 to 255 characters of UTF-8"):
        explain(user)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one user id, not 0"),
        (("a", "b"), "give one user id, not 2"),
        (("a", "--bogus"), "unknown flag '--bogus'"),
        (("",), "1 to 255 characters"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words: tuple[str, ...], said: str) -> None:
    told = command("etl.explain", *words)

    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (2, "", 1)
    assert said in told.stderr


def test_no_order_reaches_the_terminal(mart: Mart) -> None:
    user = "a\x1b[31m\u202e"
    mart(segments(f"('{user}', 'x' || chr(27) || '[2J', 1, 0, 0)"))

    told, nobody = command("etl.explain", user), command("etl.explain", f"{user}b")

    assert "User a\\u001b[31m\\u202e, " in told.stdout
    for line in (told.stdout + nobody.stdout + nobody.stderr).splitlines():
        assert line.isprintable(), line


# What is away

AWAY: dict[str, tuple[dict[str, str], str, str]] = {
    "mart": ({"DUCKDB_PATH": "/nowhere/w.duckdb"}, "mart", "no such file"),
    "Postgres": ({"POSTGRES_PORT": "1"}, "crm", "Postgres ("),
    "Redis": ({"REDIS_PORT": "1"}, "recommendations", "Redis ("),
}


@pytest.mark.parametrize("server", AWAY)
def test_what_is_away_is_told_in_one_line_and_the_rest_is_shown(server: str, marts: None) -> None:
    settings, section, said = AWAY[server]

    told = command("etl.explain", "same", COLUMNS="80", **settings)
    facts = json.loads(command("etl.explain", "same", "--json", **settings).stdout)

    assert (told.returncode, told.stderr) == (1, "")
    assert said in facts[section]["error"]
    assert told.stdout.count("cannot be told: ") == 1
    rest = {"mart", "crm", "mails", "recommendations", "rejections", "runs"} - {section}
    away = {"mails", "rejections", "runs"} if server == "Postgres" else set()
    assert {name for name in rest if "error" in facts[name]} == away
    assert ("crm.user_segments" in told.stdout or "new_user" in told.stdout) is True


def test_a_table_that_cannot_be_read_leaves_the_other_sections(marts: None) -> None:
    execute("DROP TABLE etl.rejected_rows")

    told = explain("same")

    assert "rejected_rows" in told["rejections"]["error"]
    assert told["crm"]["next_run"]["change"] == "unchanged"
    assert "last" in told["runs"]


def test_its_transactions_can_write_nothing(
    marts: None, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: object, connection: Connection) -> dict[str, Any]:
        postgres.execute(connection, "DELETE FROM crm.user_segments")
        return {}

    monkeypatch.setattr(decisions, "mails", write)

    told = explain("same")

    assert "read-only" in told["mails"]["next_run"]["error"]
    assert (told["mails"]["mails"], told["rejections"]) == ([], {"last": []})
    assert select("SELECT FROM crm.user_segments")
