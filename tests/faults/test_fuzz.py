"""Whatever a mart holds: what arrives equals a recomputation in plain Python, the rest is rejected.

ETL_FUZZ_EXAMPLES=n tries n new marts a sync instead of the same few.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from duckdb_files import written
from fixture_types import Select
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenes import run, times

from etl import postgres

if TYPE_CHECKING:
    from etl.postgres import Connection

Row = dict[str, Any]
Table = tuple[dict[str, str], list[Row]]  # the type of each column, and the rows

_OWN = int(os.environ.get("ETL_FUZZ_EXAMPLES", "0"))

fuzzed = settings(
    max_examples=_OWN or times(6, 150),
    derandomize=not _OWN,
    deadline=None,
    suppress_health_check=list(HealthCheck),  # the fixtures are emptied by each example
)

BUILT = dt.datetime.now(dt.UTC).replace(microsecond=0)

# DuckDB's types of numbers, each with the values it can hold.
_INTEGERS = {
    **{name: (-(2**bits), 2**bits - 1) for name, bits in [("TINYINT", 7), ("SMALLINT", 15)]},
    **{name: (-(2**bits), 2**bits - 1) for name, bits in [("BIGINT", 63), ("HUGEINT", 126)]},
    "UTINYINT": (0, 2**8 - 1),
    "UBIGINT": (0, 2**64 - 1),
}
_DECIMALS = {"DECIMAL(38, 2)": 2, "DECIMAL(38, 9)": 9, "DECIMAL(4, 4)": 4, "DECIMAL(18, 0)": 0}
_EDGES = [0, 1, 7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**12 - 1, 10**12, -1]


def mostly(fine: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """So few odd values that some rows are fine in every column."""
    return st.sampled_from([fine] * 9 + [odd]).flatmap(lambda chosen: chosen)


def numbers(kind: str) -> st.SearchStrategy[Any]:
    """Values of a column of this type, null among them."""
    small = st.integers(0, 100)
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        edges = st.sampled_from([edge for edge in _EDGES if low <= edge <= high])
        return mostly(small | edges, st.none() | st.integers(low, high))
    if kind in _DECIMALS:
        places = _DECIMALS[kind]
        if places == 4:  # no room before the point
            return mostly(st.decimals(0, Decimal("0.9999"), places=4), st.none())
        parts = small.map(lambda n: Decimal(n) / (8 if places == 9 else 1))
        return mostly(parts, st.none() | st.decimals(-(10**13), 10**13, places=places))
    width = 32 if kind == "FLOAT" else 64
    near = st.sampled_from([float(e) if width == 64 else _single(e) for e in _EDGES])
    whole, eighths = small.map(float), small.map(lambda n: n / 8)
    return mostly(whole | eighths, st.none() | near | st.floats(width=width))  # type: ignore[arg-type]


def _single(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


KINDS = st.sampled_from([*_INTEGERS, *_DECIMALS, "FLOAT", "DOUBLE"])

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["", "\0", "a\0b", "\\u0000", "'", '"', "\\", "\n", "\r\n", "\u202e", "🧳🇵🇹", "\uffff", "NULL"]
)
IDS = mostly(st.just("u{row}"), TEXTS | st.none() | st.sampled_from(["a", "x" * 255, "é" * 256]))
SEGMENTS = st.sampled_from(["abandoned_search", "new_user", "at_risk", "high_value"])

MOMENTS = mostly(
    st.integers(-200 * 24, 30).map(lambda hours: BUILT + dt.timedelta(hours=hours)),
    st.none()
    | st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9998, 12, 31), timezones=st.just(dt.UTC))
    | st.sampled_from(["infinity", "-infinity", "10000-01-01", "0044-03-15 (BC)", "290000-01-01"]),
)


@st.composite
def tables(
    draw: st.DrawFn, columns: dict[str, st.SearchStrategy[Any] | str], types: dict[str, str]
) -> Table:
    """A table: the type of each column, and its rows. A column of "numbers" is of any width."""
    chosen = {
        name: types.get(name, "VARCHAR") if kind != "number" else draw(KINDS)
        for name, kind in columns.items()
    }
    values = {
        name: numbers(chosen[name]) if isinstance(kind, str) else kind
        for name, kind in columns.items()
    }
    rows = draw(st.lists(st.fixed_dictionaries(values), min_size=15, max_size=40))
    for number, row in enumerate(rows):  # most of them another user
        row["user_id"] = f"u{number}" if row["user_id"] == "u{row}" else row["user_id"]
    return chosen, rows


_USERS: dict[str, st.SearchStrategy[Any] | str] = {
    "user_id": IDS,
    "segment": mostly(SEGMENTS | TEXTS, st.none()),
    "lifetime_searches": "number",
    "lifetime_conversions": "number",
    "lifetime_revenue": "number",
}


@pytest.mark.timeout(600)
def test_segments_of_any_mart_arrive_exactly_or_are_rejected(
    environment: Path, database: Connection, select: Select
) -> None:
    """Two marts, one after the other: users who left stay as they are."""
    arrived = Counter[str]()

    @fuzzed
    @given(st.tuples(tables(_USERS, {}), tables(_USERS, {})))
    def check(marts: tuple[Table, Table]) -> None:
        empty(database, "crm.user_segments")
        held: dict[str, tuple[Any, ...]] = {}
        every: Counter[str | None] = Counter()
        for table in marts:
            make(environment, "mart_user_segments", *table)
            good, bad = parted(table[1], segment_of, key=("user_id",))
            fresh = {row["user_id"]: figures for row, figures in good}

            result = run("user_segments")

            same = [user for user, figures in fresh.items() if held.get(user) == figures]
            assert (result["rejected"], result["unchanged"]) == (bad.total(), len(same))
            assert result["inserted"] == len({*fresh} - {*held})
            assert result["updated"] == len({*fresh} & {*held}) - len(same)
            held, every = held | fresh, every + bad
            assert segments_held(select) == held
            assert rejected(select) == every
            arrived.update(rows=len(fresh), marts=1)

    check()
    assert arrived["rows"] > 3 * arrived["marts"]  # else it would prove little


_AUDIENCE: dict[str, st.SearchStrategy[Any] | str] = {
    **_USERS,
    "lifetime_searches": st.integers(0, 2**63 - 1),
    "lifetime_conversions": mostly(st.integers(0, 9), st.just(-1)),
    "first_seen_at": MOMENTS,
    "last_seen_at": MOMENTS,
    "primary_platform": mostly(st.just("ios"), st.none() | TEXTS),
    "primary_country": mostly(st.just("PT"), st.none() | TEXTS),
}
_MOMENT_TYPES = {"first_seen_at": "TIMESTAMPTZ", "last_seen_at": "TIMESTAMP"}
_COUNT_TYPES = {"lifetime_searches": "HUGEINT", "lifetime_conversions": "BIGINT"}

# segment -> template, priority, episode, hours that it is fresh, whether figures may be told
_MAILS = {
    "abandoned_search": ("abandoned_search", 1, "last_seen_at", 72, True),
    "new_user": ("welcome", 2, "first_seen_at", 14 * 24, False),
    "at_risk": ("win_back", 3, "last_seen_at", 180 * 24, True),
    "high_value": ("loyalty", 4, "last_seen_at", 90 * 24, True),
}


@pytest.mark.timeout(600)
def test_mails_of_any_mart_are_queued_exactly_or_their_rows_rejected(
    environment: Path, database: Connection, select: Select
) -> None:
    @fuzzed
    @given(tables(_AUDIENCE, {**_MOMENT_TYPES, **_COUNT_TYPES}))
    def check(table: Table) -> None:
        make(environment, "mart_user_segments", *table)
        empty(database, "crm.email_queue")
        good, bad = parted(table[1], audience_of, key=("user_id",))
        mails = {row["user_id"]: mail for row, figures in good if (mail := mail_of(row, figures))}

        result = run("email_triggers")

        queued = {
            row["user_id"]: (row["template"], row["priority"], row["episode_at"], row["payload"])
            for row in select("SELECT *, payload::text AS payload FROM crm.email_queue")
        }
        assert {
            user: (*mail, read_payload(payload)) for user, (*mail, payload) in queued.items()
        } == mails
        assert rejected(select) == bad
        assert (result["rejected"], result["inserted"]) == (bad.total(), len(mails))

    check()


_RECOMMENDED: dict[str, st.SearchStrategy[Any] | str] = {
    "user_id": mostly(st.sampled_from(["a", "b\n:*"]), IDS),
    "destination": mostly(st.integers(0, 99).map("Lima {}".format), st.none() | TEXTS),
    "score": mostly(
        st.floats(0.4, 1), st.none() | st.sampled_from([0.5, 1.0, -0.0, 1.5, math.nan, -1.0])
    ),
    "rank": mostly(st.integers(1, 9), st.none() | st.integers(-(2**126), 2**126)),
}


@pytest.mark.timeout(600)
def test_recommendations_of_any_mart_arrive_exactly_or_are_rejected(
    environment: Path, database: Connection, select: Select, keys: redis.Redis
) -> None:
    @fuzzed
    @given(tables(_RECOMMENDED, {"score": "DOUBLE", "rank": "HUGEINT"}))
    def check(table: Table) -> None:
        make(environment, "mart_recommendations", *table)
        empty(database)
        keys.flushall()
        good, bad = parted(table[1], recommended, key=("user_id", "destination"))
        expected = best_of(row for row, _ in good)

        run("recommendations")

        names: Any = keys.keys()
        values: Any = keys.mget(names) if names else []
        arrived = dict(zip((name.decode() for name in names), map(json.loads, values), strict=True))
        assert {name: value["destinations"] for name, value in arrived.items()} == {
            name: [destination for destination, _ in best] for name, best in expected.items()
        }
        for name, best in expected.items():
            mean = math.fsum(score for _, score in best) / len(best)
            assert abs(arrived[name]["score"] - mean) <= 0.000_05 + 1e-9
            assert set(arrived[name]) == {"destinations", "score"}
            assert 86_000 < keys.ttl(name) <= 86_400
        assert rejected(select) == bad

    check()


# The contracts once more, in plain Python


def segment_of(row: Row) -> tuple[Any, ...] | None:
    """The segment and the three figures; None where the row breaks the contract."""
    figures = (
        text(row["segment"]),
        count(row["lifetime_searches"]),
        count(row["lifetime_conversions"]),
        money(row["lifetime_revenue"]),
    )
    return None if user(row["user_id"]) is None or None in figures else figures


def audience_of(row: Row) -> tuple[Any, ...] | None:
    texts = (row["primary_platform"], row["primary_country"])
    if any(value is not None and "\0" in value for value in texts):
        return None
    if any(isinstance(row[name], str) for name in ("first_seen_at", "last_seen_at")):
        return None  # a moment that no calendar holds
    return segment_of(row)


def recommended(row: Row) -> tuple[Any, ...] | None:
    good = (
        user(row["user_id"]) is not None
        and row["destination"]
        and row["score"] is not None
        and 0 <= row["score"] <= 1
        and (row["rank"] is None or 1 <= row["rank"] < 2**63)
    )
    return () if good else None


def user(value: str | None) -> str | None:
    return value if text(value) and len(str(value)) <= 255 else None


def text(value: str | None) -> str | None:
    return value if value and "\0" not in value else None


def count(value: Any) -> int | None:
    if value is None or not math.isfinite(value) or value != int(value):
        return None
    return int(value) if 0 <= value < 2**63 else None


def money(value: Any) -> Decimal | None:
    """To the cent as DuckDB rounds: halves away from zero; a float after it was multiplied."""
    if value is None or not math.isfinite(value):
        return None
    cents = Decimal(value * 100.0) if isinstance(value, float) else Decimal(value).scaleb(2, WIDE)
    if not cents.is_finite():
        return None
    cents = cents.quantize(Decimal(1), ROUND_HALF_UP, WIDE)
    return abs(cents.scaleb(-2, WIDE)) if 0 <= cents < 10**14 else None


def mail_of(row: Row, figures: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Template, priority, episode and payload of the mail that a user is due."""
    if row["segment"] not in _MAILS:
        return None
    template, priority, episode, hours, full = _MAILS[row["segment"]]
    moment = _known(row[episode])
    if moment is None or moment < BUILT - dt.timedelta(hours=hours):
        return None
    payload = {
        "version": 1,
        "segment": row["segment"],
        "last_seen_at": _known(row["last_seen_at"]),
        "platform": row["primary_platform"],
        "country": row["primary_country"],
    }
    if full:
        told = ("total_searches", "total_conversions", "lifetime_value")
        payload |= dict(zip(told, (figures[1], figures[2], str(figures[3])), strict=True))
    return template, priority, moment, payload


def best_of(rows: Any) -> dict[str, list[tuple[str, float]]]:
    """Key -> destinations with their scores, best first."""
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        if row["score"] > 0.5:
            by_user.setdefault(f"reco:{row['user_id']}", []).append(row)
    return {
        key: [
            (row["destination"], row["score"])
            for row in sorted(
                some,
                key=lambda row: (
                    math.inf if row["rank"] is None else row["rank"],
                    -row["score"],
                    row["destination"].encode(),
                ),
            )
        ][:10]
        for key, some in by_user.items()
    }


# Builders

WIDE = Context(prec=400)  # digits enough for any float


def parted(
    rows: list[Row], judge: Callable[[Row], tuple[Any, ...] | None], key: tuple[str, ...]
) -> tuple[list[tuple[Row, tuple[Any, ...]]], Counter[str | None]]:
    """The rows that keep a contract, with its figures, and how many others each user id has."""
    seen = Counter(tuple(row[name] for name in key) for row in rows)
    good, bad = [], Counter[str | None]()
    for row in rows:
        figures = judge(row)
        if figures is None or seen[tuple(row[name] for name in key)] > 1:
            bad[row["user_id"] and row["user_id"].replace("\0", "\\u0000")] += 1
        else:
            good.append((row, figures))
    return good, bad


def make(path: Path, mart: str, types: dict[str, str], rows: list[Row]) -> None:
    """Write the mart; a moment that Python has none of is given as text."""
    built = "generated_at" if mart == "mart_recommendations" else "segmented_at"
    columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
    values = [
        value.replace(tzinfo=None).isoformat(" ") if isinstance(value, dt.datetime) else value
        for row in rows
        for value in (*(row[name] for name in types), BUILT)
    ]
    casts = ", ".join(f"?::{kind}" for kind in (*types.values(), "TIMESTAMPTZ"))
    with written(path) as connection:
        connection.execute(f"CREATE OR REPLACE TABLE {mart} ({columns}, {built} TIMESTAMPTZ)")
        rows_of_casts = ", ".join([f"({casts})"] * len(rows))
        connection.execute(f"INSERT INTO {mart} VALUES {rows_of_casts}", values)


def empty(database: Connection, *tables: str) -> None:
    """Start afresh, on a connection that is there already: a new one costs as much as a run."""
    for table in (*tables, "etl.rejected_rows", "etl.sync_runs"):
        postgres.execute(database, f"DELETE FROM {table}")
    database.commit()


def segments_held(select: Select) -> dict[str, tuple[Any, ...]]:
    """What crm.user_segments holds of the mart's columns."""
    rows = select("SELECT *, lifetime_value::text AS money FROM crm.user_segments")
    columns = ("segment", "total_searches", "total_conversions")
    return {
        row["user_id"]: (*(row[name] for name in columns), Decimal(row["money"])) for row in rows
    }


def _known(moment: Any) -> Any:
    """A visit; one in the future by more than a day is a placeholder."""
    return None if moment is not None and moment > BUILT + dt.timedelta(days=1) else moment


def rejected(select: Select) -> Counter[str | None]:
    """How many rejected rows each user id has."""
    return Counter(row["key"] for row in select("SELECT key FROM etl.rejected_rows"))


def read_payload(text: str) -> Row:
    payload: Row = json.loads(text)
    if payload["last_seen_at"] is not None:
        payload["last_seen_at"] = dt.datetime.fromisoformat(payload["last_seen_at"])
    return payload
