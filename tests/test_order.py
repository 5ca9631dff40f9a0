"""A mart's rows are sorted only where they have to be, and all rows of a key come in one frame."""

from __future__ import annotations

import itertools
import random
from typing import Any

import dataframely as dy
import duckdb
import orjson
import polars as pl
import pyarrow as pa
import pytest
import redis
from conftest import segments
from fixture_types import Mart
from marts import MANY, opened, recommended

from etl import recommendations, warehouse
from etl.errors import SyncError
from etl.plumbing import queries
from etl.warehouse import file, order, stream


@pytest.mark.parametrize("many", [1_000, 5_000_000])
@pytest.mark.parametrize(
    "by",
    [
        *("u, d", "hash(u), d", "d, u", "u % 7, u, d", "hash(u * 2 + d)", "u > 8000, d, u"),
        "u % 500 = 7 AND d > 0, u, d",  # 18 users stand in two places
    ],
)
def test_rows_may_stand_in_any_order(
    by: str, many: int, mart: Mart, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted, in part or not, in frames of some thousand rows, after as many were seen."""
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    monkeypatch.setattr(order, "_HASHES", 2_048)
    monkeypatch.setattr(order, "_MANY_KEYS", many)
    mart(f"{MANY.format(users=9_000)} ORDER BY {by}")

    result = recommendations.sync()

    assert (result["extracted"], result["written"], result["rejected"]) == (18_000, 9_000, 0)
    whole = b'{"destinations":["Destination 0","Destination 1"],"score":0.95}'
    assert set(keys.mget(keys.keys())) == {whole}


@pytest.mark.parametrize(
    ("few", "are_sorted", "rows"),
    [
        (0, "none", "('b', 'X', 0.9, 1), ('b', 'Y', 0.8, 2), ('a', 'X', 0.9, 1)"),
        (0, "all", "('b', 'X', 0.9, 1), ('a', 'X', 0.9, 1), ('b', 'Y', 0.8, 2)"),
        (1, "some", "('b', 'X', 0.9, 1), ('a', 'X', 0.9, 1), ('b', 'Y', 0.8, 2)"),
        (0, "none", "('b', 'X', 0.9, 1), ('b', 'Y', 0.8, 2), (NULL, 'X', 1, 1), (NULL, 'Y', 1, 1)"),
        (0, "all", "('b', 'X', 0.9, 1), (NULL, 'X', 0.9, 1), ('b', 'Y', 0.8, 2)"),
        (0, "none", "(NULL, 'X', 0.9, 1), ('b', 'X', 1, 1), ('b', 'Y', 1, 2), (NULL, 'X', 1, 1)"),
    ],
)
@pytest.mark.usefixtures("keys")
def test_rows_are_sorted_only_where_those_of_a_user_do_not_stand_together(
    few: int, are_sorted: str, rows: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_together, found = order.put_together, []

    def noted(*arguments: Any) -> Any:
        apart = arguments[3].apart
        found.append("all" if apart is None else "some" if apart else "none")
        return put_together(*arguments)

    monkeypatch.setattr(order, "put_together", noted)
    monkeypatch.setattr(order, "_FEW_RUNS", few)
    mart(recommended(rows))

    assert recommendations.sync(force=True)["extracted"] == rows.count("(")
    assert found == [are_sorted]


@pytest.mark.parametrize("between", [0, 1])
@pytest.mark.parametrize("before", [0, 2_045, 2_046, 2_047])
def test_users_whose_ids_have_one_hash_get_their_own(
    before: int, between: int, mart: Mart, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can choose such ids, for DuckDB's hash has no secret; also where a batch ends."""
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    one, two = "dle4ao2h000a", "o0z9vhsx5eow"
    first = [f"('u{n}', 'X', 0.9, 1)" for n in range(before)]
    rows = [*first, f"('{one}', 'A', 0.9, 1)", f"('{two}', 'B', 0.9, 1)"]
    rows += ["('between', 'X', 0.9, 1)"] * between
    mart(recommended(", ".join([*rows, f"('{one}', 'C', 0.8, 2)", f"('{two}', 'D', 0.8, 2)"])))

    recommendations.sync()

    written = keys.mget([f"reco:{one}", f"reco:{two}"])
    destinations = [orjson.loads(value or b"{}")["destinations"] for value in written]
    assert destinations == [["A", "C"], ["B", "D"]]


def test_rows_that_come_in_another_order_than_they_were_seen_in_are_no_half_values(
    mart: Mart, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table's rows do not; a query that was changed in sql/warehouse may return others."""
    seen = order.Keys(apart=[], runs=2)
    monkeypatch.setattr(order, "look_through", lambda *_: seen)
    mart(recommended("('b', 'X', 0.9, 1), ('a', 'X', 0.9, 1), ('b', 'Y', 0.8, 2)"))

    with pytest.raises(SyncError, match=r"recommendations\.sql: returned other rows, or an"):
        recommendations.sync()

    assert keys.dbsize() == 0


@pytest.mark.parametrize(("as_what", "in_order"), [("TABLE", False), ("VIEW", True)])
def test_only_a_table_is_looked_through_to_save_the_sort(
    as_what: str, in_order: bool, mart: Mart
) -> None:
    """A view would be computed once to look and once to read."""
    mart(
        segments("('b', 'regular', 1, 0, 0), ('a', 'regular', 2, 0, 0)").replace(
            "mart_user_segments", "stg"
        ),
        f"CREATE {as_what} mart_user_segments AS SELECT * FROM stg",
    )

    frames = opened(lambda mart: list(mart.frames()), ordered=False)

    assert (pl.concat(frames)["user_id"].to_list() == ["a", "b"]) == in_order


@pytest.mark.parametrize("many", [3_000, 5_000_000])
@pytest.mark.parametrize("seed", range(12))
def test_how_keys_stand_is_seen_however_far_apart_they_are(
    seed: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case has 5,000 runs, in several batches; up to two keys come again in another."""
    monkeypatch.setattr(order, "_HASHES", 2_048)
    monkeypatch.setattr(order, "_MANY_KEYS", many)
    chosen = random.Random(seed)
    firsts = [f"u{n}" for n in range(5_000)]
    chosen.shuffle(firsts)
    every = [key for key in firsts for _ in range(1 if seed < 3 else chosen.choice([1, 1, 3]))]
    for _ in range(seed % 3):
        every.insert(chosen.randrange(4_000, len(every)), every[chosen.randrange(2_000)])
    runs = [key for key, _ in itertools.groupby(every)]
    unknown = pa.nulls(len(every), pa.timestamp("us"))

    with duckdb.connect() as connection:
        connection.execute(queries.load("warehouse", "session"))
        rows = connection.from_arrow(pa.table({"user_id": every, "built_at": unknown}))
        seen = order.look_through(rows, Keyed, ["user_id"])

    different = len(set(runs))
    assert len(seen.apart or []) == len(runs) - different
    assert seen.unique == (different == len(every))
    assert seen.runs == (None if seen.unique else different)


def test_looking_ends_where_one_key_comes_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB's hash of 0 is 0, which is in the first part whatever the number of parts."""
    monkeypatch.setattr(order, "_HASHES", 2_048)
    monkeypatch.setattr(order, "_MANY_KEYS", 3_000)

    class Numbered(dy.Schema):
        user_id = dy.Int64(primary_key=True)
        built_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)

    with duckdb.connect() as connection:
        connection.execute(queries.load("warehouse", "session"))
        rows = connection.sql(
            "SELECT if(n > 100_000 AND n % 2 = 0, 0, n) AS user_id, NULL::TIMESTAMP AS built_at"
            " FROM range(1, 200_000) AS r(n)"
        )
        assert order.look_through(rows, Numbered, ["user_id"]) == order.Keys()


class Keyed(dy.Schema):
    """As little as a contract may have."""

    user_id = dy.String(primary_key=True)
    built_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)


@pytest.mark.parametrize(
    ("ids", "threads"), [("'b', 'b', 'a'", 2), ("'b', 'a', 'b'", 1), ("'b', 'a', 'c'", 2)]
)
def test_rows_that_are_sorted_apart_have_the_room_of_a_sort(
    ids: str, threads: int, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be nearly all: a few users with long histories, in two places."""
    one = segments("('b', 'regular', 1, 0, 0)").replace("mart_user_segments", "stg")
    every = f"SELECT * REPLACE (unnest([{ids}]) AS user_id) FROM stg"
    mart(one, f"CREATE TABLE mart_user_segments AS {every}")
    monkeypatch.setattr(file, "_BYTES_OF_TWO_THREADS", 0)

    def used(mart: warehouse.Mart) -> object:
        asked = duckdb.SQLExpression("current_setting('threads')")
        return mart.relation.select(asked).fetchall()[0]

    assert opened(used, ordered=False) == (threads,)
