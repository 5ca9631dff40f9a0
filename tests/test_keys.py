"""Keys of any type and of several columns: one text, in DuckDB, in Postgres and in Python."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import dataframely as dy
import duckdb
import polars as pl
import pytest
from examples import examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from etl import postgres, warehouse
from etl.plumbing import queries
from etl.postgres import Connection
from etl.warehouse import keys

TEXTS = st.text(st.sampled_from("aä|\\'\" \x1f\n😀"), max_size=5)
MOMENTS = st.datetimes(dt.datetime.min, dt.datetime.max)
RATIOS = st.integers(-(10**18) + 1, 10**18 - 1).map(lambda n: Decimal(n).scaleb(-18))
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1e300, -5e-324])

# A dtype of a contract and its values.
KINDS: dict[str, tuple[dy.Column, st.SearchStrategy[Any]]] = {
    "text": (dy.String(), TEXTS),
    "int8": (dy.Int8(), st.integers(-(2**7), 2**7 - 1)),
    "int16": (dy.Int16(), st.integers(-(2**15), 2**15 - 1)),
    "int32": (dy.Int32(), st.integers(-(2**31), 2**31 - 1)),
    "int64": (dy.Int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint8": (dy.UInt8(), st.integers(0, 2**8 - 1)),
    "uint32": (dy.UInt32(), st.integers(0, 2**32 - 1)),
    "uint64": (dy.UInt64(), st.integers(0, 2**64 - 1)),
    "money": (dy.Decimal(14, 2), st.decimals(-(10**11), 10**11, places=2)),
    "ratio": (
        dy.Decimal(18, 18),
        RATIOS,
    ),
    "huge": (dy.Decimal(38, 0), st.integers(-(10**37), 10**37).map(Decimal)),
    "float32": (dy.Float32(), st.floats(width=32)),
    "float64": (dy.Float64(), FLOATS),
    "truth": (dy.Bool(), st.booleans()),
    "date": (dy.Date(), st.dates()),
    "naive": (dy.Datetime(time_unit="us"), MOMENTS),
    "moment": (dy.Datetime(time_unit="us", time_zone="UTC"), MOMENTS),
}
ROWS = st.lists(st.tuples(*(values for _, values in KINDS.values())), min_size=1, max_size=20)
FEW = settings(
    max_examples=examples(5, 15),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.slow
@FEW
@given(rows=ROWS)
def test_each_type_has_one_text_in_all_three(database: Connection, rows: list[Any]) -> None:
    frame = frame_of(rows)
    postgres.copy_to_temp(database, "mart", warehouse.to_batches([frame]))
    columns = ", ".join(f"etl.key_text({name}) AS {name}" for name in KINDS)

    by_postgres = postgres.select(database, f"SELECT {columns} FROM pg_temp.mart")

    for name in KINDS:
        by_python = [as_column(value) for value in frame[name].to_list()]
        assert [row[name] for row in by_postgres] == by_python, name
        assert by_duckdb(frame, [name, name]) == [f"{text}|{text}" for text in by_python], name


@FEW
@given(rows=ROWS)
def test_shards_are_the_same_on_both_sides(database: Connection, rows: list[Any]) -> None:
    frame = frame_of(rows)
    postgres.copy_to_temp(database, "mart", warehouse.to_batches([frame]))
    text = " || '|' || ".join(f"etl.key_text({name})" for name in KINDS)

    (one, whole), (mine, theirs) = (
        (by_duckdb(frame, names, shards=7) for names in (["text"], list(KINDS))),
        (
            [row["s"] for row in postgres.select(database, f"SELECT {sql} AS s FROM pg_temp.mart")]
            for sql in ("etl.shard_of(text, 7)", f"etl.shard_of({text}, 7)")
        ),
    )

    assert (one, whole) == (mine, theirs)


def test_the_shards_of_users_stay_where_they_were(database: Connection) -> None:
    users = ["a", "user_1", "a|b"]

    (row,) = postgres.select(
        database,
        f"SELECT {', '.join(f'etl.shard_of(${n + 1}, 16) AS s{n}' for n in range(3))}",
        *users,
    )

    assert by_duckdb(pl.DataFrame({"text": users}), ["text"], shards=16) == [9, 12, 1]
    assert list(row.values()) == [9, 12, 1]


@pytest.mark.parametrize(
    ("one", "other"), [(("a|b", "c"), ("a", "b|c")), (("a\\", "|b"), ("a\\|", "b"))]
)
def test_no_two_keys_have_the_same_text(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert keys.text(one) != keys.text(other)


def test_the_text_of_a_key_of_several_columns_costs_no_call(database: Connection) -> None:
    sql = (
        "EXPLAIN (VERBOSE) SELECT FROM etl.sync_runs WHERE etl.shard_of(etl.key_text(sync) || '|'"
        " || etl.key_text(started_at) || etl.key_text(shard) || etl.key_text(seconds), $1::int) = 1"
    )

    plan = str(postgres.select(database, sql, 4))

    assert "md5" in plan
    assert "shard_of" not in plan
    assert "key_text" not in plan


def frame_of(rows: list[Any]) -> pl.DataFrame:
    dtypes = {name: column.dtype for name, (column, _) in KINDS.items()}
    return pl.DataFrame(rows, schema=dtypes, orient="row")


def as_column(value: object) -> str | None:
    """The text of a key's column, one of several."""
    text = keys.text([value, 0])
    return text and text.removesuffix("|0")


def by_duckdb(frame: pl.DataFrame, names: list[str], shards: int = 0) -> list[Any]:
    built = frame.select(*dict.fromkeys(names)).to_arrow()
    with duckdb.connect() as connection:
        connection.execute(queries.load("warehouse", "session"))
        rows = connection.from_arrow(built)
        columns = [(duckdb.ColumnExpression(n), KINDS[n][0].dtype) for n in names]
        made = keys.expression(columns)
        if shards:
            made = duckdb.FunctionExpression("shard_of", made, duckdb.ConstantExpression(shards))
        return [value for (value,) in rows.select(made).fetchall()]
