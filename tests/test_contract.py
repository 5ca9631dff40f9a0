"""The contracts: bad rows are set aside with their reasons, good ones arrive exactly."""

from __future__ import annotations

import datetime as dt
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pytest
from conftest import command, results
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import email_triggers, recommendations, user_segments, warehouse
from etl.email_triggers import EmailCandidate
from etl.recommendations import Recommendation
from etl.run import contract
from etl.run.contract import Rejects
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    import dataframely as dy
    import redis

Mart = Callable[..., None]
Select = Callable[..., list[dict[str, Any]]]

# Texts that a layer between DuckDB and Postgres or Redis could mistake for something else.
TEXTS = [
    *(
        "josé",
        "用户",
        "пользователь",
        "🧳🇵🇹👩‍👩‍👧",
        "e\u0301",
        "\u202eabc",
        "\ufeffbom",
        "\ud7ff\uffff",
    ),
    *("it's", '"quoted"', "back\\slash", "\\N", "\\.", "tab\there", "line\nbreak", "cr\r\nlf"),
    *(
        " leading",
        "trailing ",
        " ",
        "NULL",
        "null",
        "NaN",
        "{a,b}",
        "$1",
        "%s",
        "a,b;c",
        "\x01\x7f",
    ),
    *("x" * 255, "0", "-1", "1e5", "2026-01-01", "Case", "case"),
]


# Set aside, while the good ones go through


def test_bad_users_are_kept_with_their_reasons(mart: Mart, select: Select) -> None:
    mart(
        users(
            "('good', 'regular', 1::DOUBLE, 1::DOUBLE, 1::DOUBLE)",
            "(NULL, 'regular', 1, 1, 1)",
            "('', 'regular', 1, 1, 1)",
            "(repeat('x', 256), 'regular', 1, 1, 1)",
            "('a' || chr(0) || 'b', 'regular', 1, 1, 1)",
            "('no segment', NULL, 1, 1, 1)",
            "('empty segment', '', 1, 1, 1)",
            "('nul segment', chr(0), 1, 1, 1)",
            "('several', NULL, NULL, -1, 'nan')",
        )
    )

    result = user_segments.sync(force=True)

    assert (result["extracted"], result["rejected"], result["inserted"]) == (9, 8, 1)
    assert kept_reasons(select) == {
        None: ["user_id:null"],
        "": ["user_id:empty"],
        "x" * 256: ["user_id:too_long"],
        "a\\u0000b": ["user_id:nul"],
        "no segment": ["segment:null"],
        "empty segment": ["segment:empty"],
        "nul segment": ["segment:nul"],
        "several": [
            *("lifetime_value:unfit", "segment:null"),
            *("total_conversions:too_small", "total_searches:null"),
        ],
    }


def test_a_key_may_have_255_characters_however_many_bytes() -> None:
    good, rejects = accepted(
        UserSegment,
        users("(repeat('🧳', 255), 'regular', 1, 1, 1)", "(repeat('🧳', 256), 'regular', 1, 1, 1)"),
    )

    assert good["user_id"].to_list() == ["🧳" * 255]
    assert rejects.reasons == {"user_id:too_long": 1}


def test_a_kept_row_shows_every_value_as_the_mart_had_it(mart: Mart, select: Select) -> None:
    mart(users("('a' || chr(0), 'x' || chr(0), 'nan'::DOUBLE, 1e30, '-inf'::DOUBLE)"))

    user_segments.sync(force=True)

    (kept,) = select("SELECT sync, key, row::text AS row FROM etl.rejected_rows")
    assert (kept["sync"], kept["key"]) == ("user_segments", "a\\u0000")
    assert json.loads(kept["row"]) == {
        "user_id": "a\\u0000",
        "segment": "x\\u0000",
        "total_searches": "nan",
        "total_conversions": "1e+30",
        "lifetime_value": "-inf",
        "built_at": None,
    }


def test_bad_recommendations_are_kept_with_their_reasons(
    mart: Mart, select: Select, keys: redis.Redis
) -> None:
    mart(
        scores(
            "('good', 'Rome', 0.9::DOUBLE, 1::DOUBLE)",
            "(NULL, 'Rome', 0.9, 1)",
            "('', 'Rome', 0.9, 1)",
            "(repeat('x', 256), 'Rome', 0.9, 1)",
            "('a' || chr(0), 'Rome', 0.9, 1)",
            "('no place', NULL, 0.9, 1)",
            "('empty place', '', 0.9, 1)",
            "('no score', 'Rome', NULL, 1)",
            "('nan', 'Rome', 'nan', 1)",
            "('inf', 'Rome', 'inf', 1)",
            "('below', 'Rome', -0.001, 1)",
            "('above', 'Rome', 1.001, 1)",
            "('rank 0', 'Rome', 0.9, 0)",
            "('rank 1.5', 'Rome', 0.9, 1.5)",
            "('rank nan', 'Rome', 0.9, 'nan')",
            "('no rank', 'Rome', 0.9, NULL)",
        )
    )

    result = recommendations.sync(force=True)

    assert (result["extracted"], result["rejected"], result["written"]) == (16, 14, 2)
    assert sorted(keys.keys("*")) == [b"reco:good", b"reco:no rank"]
    assert kept_reasons(select) == {
        None: ["user_id:null"],
        "": ["user_id:empty"],
        "x" * 256: ["user_id:too_long"],
        "a\\u0000": ["user_id:nul"],
        "no place": ["destination:null"],
        "empty place": ["destination:empty"],
        "no score": ["score:null"],
        "nan": ["score:not_finite"],
        "inf": ["score:not_finite"],
        "below": ["score:too_small"],
        "above": ["score:too_large"],
        "rank 0": ["rank:too_small"],
        "rank 1.5": ["rank:unfit"],
        "rank nan": ["rank:unfit"],
    }


def test_too_many_bad_rows_stop_the_run_and_are_kept_all_the_same(
    mart: Mart, select: Select
) -> None:
    mart(users("('good', 'regular', 1, 1, 1)", "('bad', NULL, 1, 1, 1)"))

    seen = command("etl.user_segments", "--json")

    assert seen.returncode == 3
    assert "rejects: 1 of 2 rows break the contract" in results(seen)[0]["error"]
    assert select("SELECT * FROM crm.user_segments") == []
    assert kept_reasons(select) == {"bad": ["segment:null"]}


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("value", "reason", "shown"),
    [
        ("NULL::DOUBLE", "null", None),
        ("'nan'::DOUBLE", "unfit", "nan"),
        ("'nan'::FLOAT", "unfit", "nan"),
        ("'inf'::DOUBLE", "unfit", "inf"),
        ("'-inf'::DOUBLE", "unfit", "-inf"),
        ("1e30::DOUBLE", "unfit", "1e+30"),
        ("-1::INTEGER", "too_small", -1),
        ("-1::DOUBLE", "too_small", -1),
        ("-1::DECIMAL(38, 10)", "too_small", -1),
        ("99999999999999999999::HUGEINT", "unfit", "99999999999999999999"),
        ("-99999999999999999999::HUGEINT", "unfit", "-99999999999999999999"),
        (f"{2**128 - 1}::UHUGEINT", "unfit", str(2**128 - 1)),
    ],
)
def test_a_bad_figure_is_shown_as_it_was(value: str, reason: str, shown: object) -> None:
    mart = user_with(lifetime_searches=value, lifetime_conversions=value, lifetime_value=value)

    good, rejects = accepted(UserSegment, mart)

    assert good["user_id"].to_list() == ["good"]
    figures = ("total_searches", "total_conversions", "lifetime_value")
    assert rejects.reasons == {f"{name}:{reason}": 1 for name in figures}
    kept = json.loads(rejects.rows["row"].item())
    for name in figures:
        assert kept[name] == shown or Decimal(kept[name]) == shown


@pytest.mark.parametrize(
    "value",
    [
        *("1.5::DOUBLE", "0.5::FLOAT", "0.5::DECIMAL(3,1)", "99999999.5::DECIMAL(38,30)"),
        *("9223372036854775808::UBIGINT", "9223372036854775808::DOUBLE"),
    ],
)
def test_a_count_is_never_rounded_nor_cut(value: str) -> None:
    mart = user_with(lifetime_searches=value, lifetime_conversions=value)

    good, rejects = accepted(UserSegment, mart)

    assert good["user_id"].to_list() == ["good"]
    assert rejects.reasons == {"total_searches:unfit": 1, "total_conversions:unfit": 1}


@pytest.mark.parametrize(
    "value",
    ["1000000000000::DECIMAL(38, 2)", "999999999999.995::DECIMAL(38, 3)", "1e12::DOUBLE"],
)
def test_money_beyond_its_column_is_set_aside(value: str) -> None:
    good, rejects = accepted(UserSegment, user_with(lifetime_value=value))

    assert good["user_id"].to_list() == ["good"]
    assert rejects.reasons == {"lifetime_value:unfit": 1}


@pytest.mark.parametrize(
    "moment",
    [
        *("TIMESTAMP 'infinity'", "TIMESTAMPTZ '-infinity'", "DATE 'infinity'"),
        *("TIMESTAMP '0044-03-15 (BC)'", "TIMESTAMPTZ '0044-03-15 (BC)'"),
        *("TIMESTAMP '20000-01-01'", "DATE '5000000-01-01'", "TIMESTAMP_S '200000-01-01'"),
    ],
)
def test_a_moment_no_calendar_holds_is_set_aside(moment: str) -> None:
    mart = user_with(first_seen_at=moment, last_seen_at=moment, segmented_at=moment)

    good, rejects = accepted(EmailCandidate, mart, sync="email_triggers")

    assert good["user_id"].to_list() == ["good"]
    moments = ("built_at", "first_seen_at", "last_seen_at")
    assert rejects.reasons == {f"{name}:unfit": 1 for name in moments}
    kept = json.loads(rejects.rows["row"].item())
    assert all(kept[name].startswith(moment.split("'")[1]) for name in moments)


def test_a_mart_built_at_no_moment_at_all_still_reads(mart: Mart, tmp_path: Path) -> None:
    mart(user_with(segmented_at="TIMESTAMPTZ 'infinity'"))

    now = dt.datetime.now(dt.UTC)
    settings, shard = Settings.from_environment(), (0, 2)
    with warehouse.open_mart(
        "user_segments", UserSegment, settings, shard, spill=tmp_path, now=now
    ) as read:
        assert read.stats == warehouse.Stats(rows=2, built_at=None)


def test_a_duplicated_user_is_set_aside_whole(mart: Mart, select: Select) -> None:
    mart(
        users(
            "('twice', 'regular', 1, 1, 1)",
            "('once', 'regular', 1, 1, 1)",
            "('twice', 'vip', 2, 2, 2)",
            "('half bad', 'vip', 2, 2, 2)",
            "('half bad', NULL, 2, 2, 2)",
            "(NULL, 'vip', 1, 1, 1)",
            "(NULL, 'vip', 1, 1, 1)",
        )
    )

    user_segments.sync(force=True)

    kept = select("SELECT key, reasons FROM etl.rejected_rows ORDER BY id")
    assert select("SELECT user_id FROM crm.user_segments") == [{"user_id": "once"}]
    assert [(row["key"], sorted(row["reasons"])) for row in kept] == [
        ("half bad", ["duplicate"]),
        ("half bad", ["duplicate", "segment:null"]),
        ("twice", ["duplicate"]),
        ("twice", ["duplicate"]),
        (None, ["user_id:null"]),
        (None, ["user_id:null"]),
    ]


def test_a_destination_may_come_once_a_user() -> None:
    good, rejects = accepted(
        Recommendation,
        scores(
            "('a', 'Rome', 0.9, 1)",
            "('a', 'Rome', 0.8, 2)",
            "('a', 'Oslo', 0.7, 3)",
            "('b', 'Rome', 0.9, 1)",
            "('b', NULL, 0.9, 1)",
            "('b', NULL, 0.9, 1)",
        ),
        sync="recommendations",
    )

    assert good.select("user_id", "destination").rows() == [("a", "Oslo"), ("b", "Rome")]
    assert rejects.reasons == {"duplicate": 2, "destination:null": 2}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abü"), st.sampled_from("xyz")), min_size=1))
def test_exactly_the_keys_that_come_once_are_good(pairs: list[tuple[str, str]]) -> None:
    once = [pair for pair, times in Counter(pairs).items() if times == 1]
    table = pl.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "destination": [place for _, place in pairs],
            "score": 0.5,
            "rank": None,
            "built_at": None,
        },
        schema=Recommendation.create_empty().schema,
        strict=False,
    )

    keys: list[pl.DataFrame] = []
    now = dt.datetime.now(dt.UTC)
    validator = contract.Validator(Recommendation, 2, now, add_rejected=keys.append)
    good, rejects = validator.valid_rows(table), validator.rejects()

    assert sorted(good.select("user_id", "destination").rows()) == sorted(once)
    assert rejects.total == len(pairs) - len(once)
    assert len(rejects.rows) == min(rejects.total, 2)
    assert sorted(key for frame in keys for key in frame.rows()) == sorted(set(pairs) - set(once))


# Exactly as in the mart


def test_any_text_arrives_exactly_in_postgres(mart: Mart, select: Select) -> None:
    mart(users(*(f"({literal(text)}, {literal(text)}, 1, 1, 1)" for text in TEXTS)))

    result = user_segments.sync()

    assert result["inserted"] == len(TEXTS)
    rows = select("SELECT user_id, segment FROM crm.user_segments")
    assert {row["user_id"]: row["segment"] for row in rows} == {text: text for text in TEXTS}
    assert user_segments.sync()["unchanged"] == len(TEXTS)


def test_any_text_arrives_exactly_in_redis(mart: Mart, keys: redis.Redis) -> None:
    mart(scores(*(f"({literal(text)}, {literal(text)}, 0.9, 1)" for text in TEXTS)))

    recommendations.sync()

    written = {key: json.loads(keys.get(key) or "") for key in keys.keys("*")}
    assert written == {
        f"reco:{text}".encode(): {"destinations": [text], "score": 0.9} for text in TEXTS
    }


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("value", "cents"),
    [
        ("1234567.89::DECIMAL(38, 2)", "1234567.89"),
        ("999999999999.99::DECIMAL(38, 2)", "999999999999.99"),
        ("1.005::DECIMAL(38, 10)", "1.01"),
        ("0.125::DOUBLE", "0.13"),
        ("1.005::DOUBLE", "1.00"),  # the double is a little less
        ("99999999999.99::DOUBLE", "99999999999.99"),
        ("19.99::FLOAT", "19.99"),
        ("7::BIGINT", "7.00"),
        ("7::HUGEINT", "7.00"),
        ("7::UTINYINT", "7.00"),
    ],
)
def test_money_rounds_as_duckdb_casts(mart: Mart, select: Select, value: str, cents: str) -> None:
    mart(user_with(lifetime_value=value))

    user_segments.sync()

    assert select("SELECT lifetime_value FROM crm.user_segments WHERE user_id = 'bad'") == [
        {"lifetime_value": cents}
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(-1.0, 2e12) | st.floats(0, 1000) | st.floats(), min_size=1, max_size=40),
    st.sampled_from(["DOUBLE", "FLOAT"]),
)
def test_any_float_rounds_as_duckdb_casts(values: list[float], width: str) -> None:
    arrived, due, rejected = money_of([repr(value) for value in values], width)

    assert arrived == due
    assert rejected == len(values) - len(due)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.decimals(-1, 2 * 10**12, places=4) | st.decimals(0, 1000, places=6),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["DECIMAL(38, 2)", "DECIMAL(38, 6)", "DECIMAL(18, 4)"]),
)
def test_any_decimal_rounds_as_duckdb_casts(values: list[Decimal], width: str) -> None:
    arrived, due, rejected = money_of([str(value) for value in values], width)

    assert arrived == due
    assert rejected == len(values) - len(due)


def money_of(values: list[str], width: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What arrives of them, half a cent away at most, what is due, and how many are rejected.

    Due is what DuckDB casts to, where that fits and is not negative.
    """
    rows = ", ".join(f"({n}, '{value}'::{width})" for n, value in enumerate(values))
    with duckdb.connect() as connection:
        asked = connection.execute(
            f"SELECT n::VARCHAR, x, TRY_CAST(x AS DECIMAL(14, 2)) FROM (VALUES {rows}) AS v(n, x)"
        ).fetchall()
    expected = {n: cents for n, _, cents in asked if cents is not None and cents >= 0}

    good, rejects = accepted(
        UserSegment,
        "CREATE TABLE mart_user_segments AS SELECT n::VARCHAR AS user_id, 'x' AS segment,"
        f" 1 AS total_searches, 1 AS total_conversions, x AS lifetime_value"
        f" FROM (VALUES {rows}) AS v(n, x)",
    )

    arrived = dict(good.select("user_id", "lifetime_value").rows())
    for n, x, _ in asked:
        if n in arrived:
            assert abs(Decimal(x) - arrived[n]) <= Decimal("0.005") + abs(Decimal(x)) * EPSILON
    return arrived, expected, rejects.total


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("width", "value"),
    [
        ("TINYINT", 127),
        ("SMALLINT", 2**15 - 1),
        ("INTEGER", 2**31 - 1),
        ("BIGINT", 2**63 - 1),
        ("HUGEINT", 2**63 - 1),
        ("UTINYINT", 255),
        ("USMALLINT", 2**16 - 1),
        ("UINTEGER", 2**32 - 1),
        ("UBIGINT", 2**63 - 1),
        ("UHUGEINT", 2**63 - 1),
        ("DECIMAL(38, 0)", 2**63 - 1),
        ("DECIMAL(38, 10)", 2**63 - 1),
        ("DECIMAL(38, 30)", 99_999_999),
        ("DECIMAL(4, 2)", 99),
        ("FLOAT", 2**24),
        ("DOUBLE", 2**53),
        ("DOUBLE", 2**63 - 1024),
    ],
)
def test_a_count_of_any_width_arrives_exactly(width: str, value: int) -> None:
    good, rejects = accepted(
        UserSegment,
        user_with(lifetime_searches=f"'{value}'::{width}"),
    )

    assert rejects.total == 0
    assert good["total_searches"].to_list() == [value, 3]


@pytest.mark.parametrize(
    ("width", "score"),
    [
        ("DOUBLE", 0.8512345678901234),
        ("DECIMAL(3, 2)", 0.85),
        ("DECIMAL(18, 16)", 0.8512345678901234),
        ("DECIMAL(38, 37)", 0.85),
        ("FLOAT", 0.8500000238418579),
        ("INTEGER", 1.0),
    ],
)
def test_a_score_of_any_width_is_the_nearest_double(width: str, score: float) -> None:
    good, rejects = accepted(
        Recommendation,
        f"CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Rome' AS destination,"
        f" {score!r}::{width} AS score",
        sync="recommendations",
    )

    assert rejects.total == 0
    assert math.isclose(good["score"].item(), score, rel_tol=1e-15)


@pytest.mark.parametrize("width", ["BIGINT", "INTEGER", "HUGEINT", "UTINYINT", "DOUBLE"])
def test_a_rank_may_have_any_width(width: str) -> None:
    good, rejects = accepted(
        Recommendation,
        f"CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Rome' AS destination,"
        f" 0.9 AS score, 7::{width} AS rank",
        sync="recommendations",
    )

    assert (good["rank"].to_list(), rejects.total) == ([7], 0)


@pytest.mark.parametrize(
    "names",
    [
        ("total_searches", "total_conversions", "lifetime_value"),
        ("lifetime_searches", "lifetime_conversions", "lifetime_revenue"),
        ("lifetime_searches", "total_conversions", "lifetime_value"),
    ],
)
def test_the_required_columns_are_enough_under_either_name(
    mart: Mart, select: Select, names: tuple[str, str, str]
) -> None:
    searches, conversions, value = names
    mart(
        "CREATE TABLE mart_user_segments AS SELECT 'a' AS user_id, 'new_user' AS segment,"
        f" 5 AS {searches}, 2 AS {conversions}, 9.5 AS {value}"
    )

    user_segments.sync()
    email_triggers.sync()

    assert select(
        "SELECT total_searches, total_conversions, lifetime_value FROM crm.user_segments"
    ) == [{"total_searches": 5, "total_conversions": 2, "lifetime_value": "9.50"}]
    assert select("SELECT template FROM crm.email_queue") == [{"template": "welcome"}]


@pytest.mark.parametrize(
    "names", [("recommended_destination", "recommendation_score"), ("destination", "score")]
)
def test_the_required_columns_of_recommendations_are_enough(
    mart: Mart, keys: redis.Redis, names: tuple[str, str]
) -> None:
    destination, score = names
    mart(
        f"CREATE TABLE mart_recommendations AS SELECT * FROM (VALUES ('a', 'Oslo', 0.6),"
        f" ('a', 'Rome', 0.8)) AS v(user_id, {destination}, {score})"
    )

    recommendations.sync()

    assert keys.get("reco:a") == b'{"destinations":["Rome","Oslo"],"score":0.7}'


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("moment", "utc"),
    [
        ("TIMESTAMP '2026-07-01 12:34:56.789012'", "2026-07-01 12:34:56.789012"),
        ("TIMESTAMP_S '2026-07-01 12:34:56'", "2026-07-01 12:34:56"),
        ("TIMESTAMP_MS '2026-07-01 12:34:56.789'", "2026-07-01 12:34:56.789"),
        ("TIMESTAMP_NS '2026-07-01 12:34:56.789012'", "2026-07-01 12:34:56.789012"),
        ("DATE '2026-07-01'", "2026-07-01"),
        ("TIMESTAMP '2026-03-08 02:30:00'", "2026-03-08 02:30"),  # no such hour in New York
        ("TIMESTAMPTZ '2026-07-01 12:34:56+02'", "2026-07-01 10:34:56"),
        ("TIMESTAMP '0001-01-01'", "0001-01-01"),
        ("TIMESTAMP '9999-12-31 23:59:59.999999'", "9999-12-31 23:59:59.999999"),
        ("TIMESTAMPTZ '9999-12-31 23:59:59.999999+00'", "9999-12-31 23:59:59.999999"),
    ],
)
@pytest.mark.usefixtures("new_york")
def test_a_moment_without_a_zone_is_utc_wherever_the_machine_is(moment: str, utc: str) -> None:
    good, rejects = accepted(EmailCandidate, user_with(last_seen_at=moment), sync="email_triggers")

    assert rejects.total == 0
    assert good["last_seen_at"][0] == dt.datetime.fromisoformat(utc).replace(tzinfo=dt.UTC)


def test_a_mail_knows_the_moment_in_utc(mart: Mart, select: Select) -> None:
    seen = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=1)
    mart(
        "CREATE TABLE mart_user_segments AS SELECT 'a' AS user_id, 'abandoned_search' AS segment,"
        " 1 AS total_searches, 0 AS total_conversions, 0 AS lifetime_value,"
        f" TIMESTAMP '{seen:%Y-%m-%d %H:%M:%S}' AS last_seen_at"
    )

    run = command("etl.email_triggers", TZ="America/New_York", PGTZ="Asia/Tokyo")

    assert run.returncode == 0
    assert select("SELECT episode_at FROM crm.email_queue") == [{"episode_at": seen}]


@pytest.mark.parametrize(
    ("what", "reading"),
    [
        ("uuid()", "user_id"),
        ("'a'::ENUM ('a', 'b')", "user_id"),
        ("'a'::VARCHAR COLLATE NOCASE", "segment"),
        ("'[1]'::JSON", "segment"),
    ],
)
def test_a_text_may_be_of_any_type_that_reads_as_text(what: str, reading: str) -> None:
    good, rejects = accepted(
        UserSegment,
        "CREATE TABLE mart_user_segments AS SELECT * REPLACE"
        f" ({what} AS {reading}) FROM (SELECT 'u' AS user_id, 's' AS segment,"
        " 1 AS total_searches, 1 AS total_conversions, 1 AS lifetime_value)",
    )

    assert (len(good), rejects.total) == (1, 0)


# Builders


EPSILON = Decimal(2) ** -52

NAMES = "user_id, segment, lifetime_searches, lifetime_conversions, lifetime_value"


def users(*rows: str) -> str:
    """SQL for a mart of VALUES rows in the order of NAMES."""
    return f"CREATE TABLE mart_user_segments AS FROM (VALUES {', '.join(rows)}) AS v({NAMES})"


def user_with(**values: str) -> str:
    """SQL for a mart of two users: `bad` has these values, of whatever type; `good` is good."""
    good = {
        "user_id": "'good'",
        "segment": "'regular'",
        "lifetime_searches": "3",
        "lifetime_conversions": "1",
        "lifetime_value": "1",
    }
    bad = {**good, "user_id": "'bad'", **values}
    columns = ", ".join(f"{value} AS {name}" for name, value in bad.items())
    return (
        f"CREATE TABLE mart_user_segments AS SELECT {columns};"
        f" INSERT INTO mart_user_segments ({', '.join(good)}) SELECT {', '.join(good.values())}"
    )


def scores(*rows: str) -> str:
    """SQL for mart_recommendations of VALUES rows: user, destination, score, rank."""
    names = "user_id, destination, score, rank"
    return f"CREATE TABLE mart_recommendations AS FROM (VALUES {', '.join(rows)}) AS v({names})"


def accepted(
    schema: type[dy.Schema], mart: str, sync: str = "user_segments"
) -> tuple[pl.DataFrame, Rejects]:
    """Read a mart made by this SQL and apply the contract, without any server."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "warehouse.duckdb")
        with duckdb.connect(path) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(mart)
        frame = warehouse.read(sync, schema, Settings(duckdb_path=str(path)))
    validator = contract.Validator(schema, 100, dt.datetime.now(dt.UTC))
    return validator.valid_rows(frame), validator.rejects()


def kept_reasons(select: Select) -> dict[str | None, list[str]]:
    """What etl.rejected_rows holds: key -> reasons, sorted."""
    rows = select("SELECT key, reasons FROM etl.rejected_rows")
    return {row["key"]: sorted(row["reasons"]) for row in rows}


def literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
