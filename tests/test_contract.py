"""The contracts: bad rows are set aside with their reasons."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import command, results
from examples import examples
from fixture_types import Mart, Select
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import recommendations, user_segments, warehouse
from etl.email_triggers import EmailCandidate
from etl.recommendations import Recommendation
from etl.run import contract
from etl.settings import Settings
from etl.user_segments import UserSegment

if TYPE_CHECKING:
    import redis


from marts import accepted, kept_reasons, scores, user_with, users

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


@settings(max_examples=examples(40, 100), deadline=None)
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
