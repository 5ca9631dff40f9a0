"""The contracts: good rows arrive exactly as they are in the mart."""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from conftest import process
from examples import examples
from fixture_types import Mart, Select
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import email_triggers, recommendations, user_segments
from etl.email_triggers import EmailCandidate
from etl.recommendations import Recommendation
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    import redis


from marts import accepted, scores, user_with, users

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


@settings(max_examples=examples(6, 15), deadline=None)
@given(
    st.lists(st.floats(-1.0, 2e12) | st.floats(0, 1000) | st.floats(), min_size=1, max_size=40),
    st.sampled_from(["DOUBLE", "FLOAT"]),
)
def test_any_float_rounds_as_duckdb_casts(values: list[float], width: str) -> None:
    arrived, due, rejected = money_of([repr(value) for value in values], width)

    assert arrived == due
    assert rejected == len(values) - len(due)


@settings(max_examples=examples(6, 15), deadline=None)
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

    run = process("etl.email_triggers", TZ="America/New_York", PGTZ="Asia/Tokyo")

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


# Helpers


EPSILON = Decimal(2) ** -52


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
