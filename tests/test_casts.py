"""A contract may ask for text, numbers, booleans, dates and moments; more is told by name."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import dataframely as dy
import duckdb
import pytest
from duckdb_files import written

from etl import warehouse
from etl.errors import SyncError
from etl.run import contract
from etl.run.contract import Rejects
from etl.settings import Settings
from etl.warehouse import types as casts

Accept = Callable[[dy.Column, str], tuple[list[Any], Rejects]]

DAY = dt.date(2026, 5, 1)


class Least(dy.Schema):
    """What every contract has."""

    user_id = dy.String(primary_key=True)
    built_at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)


NOON = dt.datetime(2026, 5, 1, 12, 0, 0, 123456)


@pytest.fixture
def accept(tmp_path: Path) -> Accept:
    """Read a mart whose column x is this SQL under a contract that declares it so."""

    def run(column: dy.Column, sql: str) -> tuple[list[Any], Rejects]:
        (tmp_path / "one.sql").write_text("FROM mart")
        path = tmp_path / "warehouse.duckdb"
        with written(path) as connection:
            connection.execute(
                f"CREATE TABLE mart AS SELECT 'a' AS user_id, {sql} AS x, NULL AS built_at"
            )
        schema = type("Contract", (Least,), {"x": column})
        settings = Settings(duckdb_path=str(path), etl_sql_dir=str(tmp_path))
        validator = contract.Validator(schema, 10, dt.datetime.now(dt.UTC))
        good = validator.valid_rows(warehouse.read("one", schema, settings))
        rejects = validator.rejects()
        assert good.schema["x"] == column.dtype
        return good["x"].to_list(), rejects

    return run


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("column", "sql", "value"),
    [
        (dy.Date(), "DATE '2026-05-01'", DAY),
        (dy.Date(), "DATE '0001-01-01'", dt.date.min),
        (dy.Date(), "DATE '9999-12-31'", dt.date.max),
        (dy.Date(nullable=True), "NULL::DATE", None),
        (dy.Date(nullable=True), "NULL", None),
        (dy.Bool(), "true", True),
        (dy.Bool(nullable=True), "NULL::BOOLEAN", None),
        (dy.Bool(nullable=True), "NULL", None),
        (dy.Int8(), "(-128)::HUGEINT", -128),
        (dy.Int16(), "32767::UBIGINT", 32767),
        (dy.Int32(), "2147483647::DOUBLE", 2**31 - 1),
        (dy.Int64(), "7::UTINYINT", 7),
        (dy.Integer(), "7::DECIMAL(5, 2)", 7),
        (dy.UInt8(), "255::BIGINT", 255),
        (dy.UInt16(), "65535::INTEGER", 65535),
        (dy.UInt32(), "4294967295::BIGINT", 2**32 - 1),
        (dy.UInt64(), "18446744073709551615::UHUGEINT", 2**64 - 1),
        (dy.Decimal(38, 0), "('9' || repeat('9', 37))::DECIMAL(38, 0)", Decimal("9" * 38)),
        (dy.Decimal(38, 10), "1.0000000001::DECIMAL(20, 10)", Decimal("1.0000000001")),
        (dy.Decimal(3, 1), "9.96::DECIMAL(10, 2)", Decimal("10.0")),
        (dy.Decimal(9, 4), "1.00005::DOUBLE", Decimal("1.0001")),
        (dy.Decimal(18, 18), "0.5::FLOAT", Decimal("0.5")),
        (dy.Decimal(), "7::TINYINT", Decimal(7)),
        (dy.Float32(), "0.5::DOUBLE", 0.5),
        (dy.Float64(), "0.1::DECIMAL(3, 1)", 0.1),
        (dy.Float(), "7::HUGEINT", 7.0),
        (dy.String(), "'ä'::ENUM ('ä')", "ä"),
        (dy.Datetime(time_unit="us"), "TIMESTAMP '2026-05-01 12:00:00.123456'", NOON),
        (dy.Datetime(time_unit="us"), "TIMESTAMPTZ '2026-05-01 14:00:00.123456+02'", NOON),
        (dy.Datetime(time_unit="us"), "DATE '2026-05-01'", dt.datetime(2026, 5, 1)),
    ],
)
def test_every_kind_of_column_arrives_exactly(
    accept: Accept, column: dy.Column, sql: str, value: object
) -> None:
    assert accept(column, sql)[0] == [value]


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("column", "sql", "shown"),
    [
        (dy.Int8(), "128::BIGINT", "128"),
        (dy.Int8(), "1.5::DOUBLE", "1.5"),
        (dy.UInt8(), "(-1)::TINYINT", "-1"),
        (dy.UInt64(), "(-1)::HUGEINT", "-1"),
        (dy.Int32(), "2147483648::DOUBLE", "2147483648.0"),
        (dy.Decimal(3, 1), "100::TINYINT", "100"),
        (dy.Decimal(3, 1), "99.96::DECIMAL(10, 2)", "99.96"),
        (dy.Float32(), "1e300::DOUBLE", "1e+300"),
        (dy.Date(), "'infinity'::DATE", "infinity"),
        (dy.Date(), "'0044-03-15 (BC)'::DATE", "0044-03-15 (BC)"),
        (dy.Date(), "'10000-01-01'::DATE", "10000-01-01"),
        (dy.Datetime(time_unit="us"), "'infinity'::TIMESTAMP", "infinity"),
        (dy.Datetime(time_unit="us"), "'20000-01-01'::DATE", "20000-01-01"),
    ],
)
def test_a_value_that_does_not_fit_is_shown_as_it_was(
    accept: Accept, column: dy.Column, sql: str, shown: str
) -> None:
    values, rejects = accept(column, sql)

    assert (values, rejects.reasons) == ([], {"x:unfit": 1})
    assert json.loads(rejects.rows["row"].item())["x"] == shown


@pytest.mark.parametrize("column", [dy.Date(), dy.Bool(), dy.UInt16(), dy.Decimal(5, 1)])
def test_a_null_is_told_from_what_does_not_fit(accept: Accept, column: dy.Column) -> None:
    assert accept(column, "NULL")[1].reasons == {"x:null": 1}


@pytest.mark.parametrize(
    ("column", "sql", "problem"),
    [
        (dy.Date(), "now()", "x is TIMESTAMP WITH TIME ZONE, which is not a date"),
        (dy.Date(), "'2026-05-01'", "x is VARCHAR, which is not a date"),
        (dy.Bool(), "1", "x is INTEGER, which is not a boolean"),
        (dy.Bool(), "'true'", "x is VARCHAR, which is not a boolean"),
        (dy.UInt8(), "true", "x is BOOLEAN, which is not a number"),
        (dy.String(), "true", "x is BOOLEAN, which is not text"),
    ],
)
def test_a_type_that_cannot_serve_is_told(
    accept: Accept, column: dy.Column, sql: str, problem: str
) -> None:
    with pytest.raises(SyncError, match=f": {problem}; correct the mart or cast in that file"):
        accept(column, sql)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("column", "named"),
    [
        (dy.Time(), "x is Time"),
        (dy.Duration(), "x is Duration(time_unit='us')"),
        (dy.Binary(), "x is Binary"),
        (dy.List(dy.String()), "x is List(String)"),
        (dy.Struct({"a": dy.Int64()}), "x is Struct({'a': Int64})"),
        (dy.Enum(["a"]), "x is Enum(categories=['a'])"),
        (dy.Categorical(), "x is Categorical"),
        (dy.Datetime(time_unit="ns"), "x is Datetime(time_unit='ns', time_zone=None)"),
        (dy.Datetime(time_zone="Europe/Paris"), "time_zone='Europe/Paris')"),
    ],
)
def test_a_dtype_that_is_not_read_is_told_with_its_column(
    accept: Accept, column: dy.Column, named: str
) -> None:
    with pytest.raises(SyncError) as raised:
        accept(column, "NULL")

    assert str(raised.value).startswith("Contract: x is ")
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        ({"user_id"}, "no column has primary_key=True"),
        ({"built_at"}, "built_at is missing"),
        ({"built_at", "user_id"}, "no column has primary_key=True; built_at is missing"),
    ],
)
def test_a_contract_without_a_key_or_a_build_time_is_told(absent: set[str], told: str) -> None:
    fields = {name: column for name, column in Least.columns().items() if name not in absent}
    schema = type("Contract", (dy.Schema,), fields)

    with duckdb.connect() as connection, pytest.raises(SyncError) as raised:
        casts.check_columns(connection.sql("SELECT 1 AS x"), schema, "one.sql")

    assert str(raised.value).startswith(f"Contract: {told}. A contract has a primary key")
