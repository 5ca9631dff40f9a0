"""What DuckDB says of a row's values goes nowhere: not into the error, the log or the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import command
from fixture_types import Mart, OwnQuery, Select

from etl import user_segments
from etl.errors import SyncError
from etl.warehouse import errors

# Each expression fails on the value of u, which is somebody's address.
EXPRESSIONS = {
    "u::BIGINT": "Conversion Error: Could not convert string (column u)",
    "u::TIMESTAMPTZ": "Conversion Error: invalid timestamp field format (column u)",
    "u::DATE": "Conversion Error: invalid date field format (column u)",
    "u::DECIMAL(14, 2)": "Conversion Error: Could not convert string (column u)",
    "u::BOOLEAN": "Conversion Error: Could not convert string (column u)",
    "u::UUID": "Conversion Error: Could not convert string (column u)",
    "u::ENUM ('a', 'b')": "Conversion Error: Could not convert string (column u)",
    "u::JSON": "Conversion Error: Malformed JSON at byte (column u)",
    "u::INT[]": "Conversion Error: Type VARCHAR with value (column u)",
    "u::INTERVAL": "Conversion Error: Could not convert string (column u)",
    "n::TINYINT": "Conversion Error: Type INT64 with value (column n)",
    "(u || '''\n\"')::INT": "Conversion Error: Could not convert string",
    "n * n * n": "Out of Range Error: Overflow in multiplication of INT64",
    "strptime(u, '%Y')": "Invalid Input Error: Could not parse string",
    "json_extract(u, '$.x')": "Invalid Input Error: Malformed JSON at byte",
    "error('bad user ' || u)": "Invalid Input Error: bad user",
    "error(u)": "Invalid Input Error",
    "error('Conversion Error: ' || u)": "Invalid Input Error: Conversion Error",
    "error('with name \"' || u || '.x.y\" does not exist')": "Invalid Input Error: with name",
    "regexp_matches('a', u || '(')": "Invalid Input Error: missing",
    "timezone(u, now())": "Not implemented Error: Unknown TimeZone",
    "date_trunc(u, now())": "Conversion Error: extract specifier",
    "from_base64(u)": "Conversion Error: Could not decode string",
}


@pytest.mark.few(4)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_error_tells_no_value_of_a_row(
    mart: Mart, environment: Path, select: Select, expression: str
) -> None:
    mart(failing_view(expression))

    with pytest.raises(SyncError) as raised:
        user_segments.sync()

    (run,) = select("SELECT * FROM etl.sync_runs")
    assert str(raised.value) == (
        f"warehouse {environment}: {EXPRESSIONS[expression]};"
        " correct sql/warehouse/user_segments.sql or the mart"
    )
    assert run["error"] == str(raised.value)
    for error in chain(raised.value):
        assert "anna" not in str(error)
        assert "4294967296" not in str(error)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_no_output_has_a_value_of_a_row(mart: Mart, flags: tuple[str, ...]) -> None:
    mart(failing_view("u::BIGINT"))

    seen = command("etl.user_segments", *flags, ETL_DEBUG="1")

    assert seen.returncode == 1
    assert "Could not convert string (column u)" in seen.stdout + seen.stderr
    assert "anna" not in seen.stdout + seen.stderr


def test_a_value_in_a_file_behind_a_view_is_not_told(
    mart: Mart, environment: Path, select: Select
) -> None:
    environment.with_name("seg.csv").write_text("user_id\n1\nanna.test@example.com\n")
    mart(
        f"CREATE VIEW mart_user_segments AS SELECT user_id::VARCHAR AS user_id, 'x' AS segment,"
        " 1 AS total_searches, 1 AS total_conversions, 1 AS lifetime_value"
        f" FROM read_csv('{environment.with_name('seg.csv')}', columns = {{user_id: 'BIGINT'}})"
    )

    with pytest.raises(SyncError, match=r"Conversion Error: CSV Error on Line \(column user_id\)"):
        user_segments.sync()

    assert "anna" not in str(select("SELECT * FROM etl.sync_runs"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        # As Arrow words what comes in the middle of a stream.
        (
            OSError("Conversion Error: Could not convert string 'anna' to INT64"),
            "Conversion Error: ",
        ),
        (OSError("Invalid Input Error: anna@example.com is bad"), "Invalid Input Error; "),
        (OSError(28, "No space left on device"), "No space left on device; "),
        (ValueError("anna is no number"), "ValueError of DuckDB; "),
        (RuntimeError("anna Error: nothing known"), "RuntimeError of DuckDB; "),
        (OSError("INTERNAL Error: 'anna' found"), "INTERNAL Error; "),
    ],
)
def test_what_is_not_known_to_hold_no_value_is_told_by_its_kind(
    error: Exception, told: str
) -> None:
    problem = str(errors.to_sync_error(error, Path("w"), "look there"))

    assert problem.startswith(f"warehouse w: {told}")
    assert problem.endswith("look there")
    assert "anna" not in problem


@pytest.mark.parametrize(
    ("view", "told"),
    [
        ("SELECT nosuch FROM stg", 'Binder Error: Referenced column "nosuch" not found'),
        ("SELECT nosuch(u) FROM stg", "Catalog Error: Scalar Function with name nosuch does not"),
    ],
)
def test_an_error_of_names_shows_them(
    mart: Mart, own_query: OwnQuery, view: str, told: str
) -> None:
    mart("CREATE TABLE stg AS SELECT 'anna' AS u")
    own_query(view)

    with pytest.raises(SyncError) as raised:
        user_segments.sync()

    assert told in str(raised.value)


def failing_view(expression: str) -> str:
    """A mart that fails where the rows are read, beside one row that does not."""
    return (
        "CREATE TABLE stg AS SELECT * FROM (VALUES ('anna.test@example.com', 4294967296))"
        " AS v(u, n);"
        f"CREATE VIEW mart_user_segments AS SELECT ({expression})::VARCHAR AS user_id,"
        " 'x' AS segment, 1 AS total_searches, 1 AS total_conversions, 1 AS lifetime_value FROM stg"
    )


def chain(error: BaseException | None) -> list[BaseException]:
    """An error with all that it came of."""
    if error is None:
        return []
    return [error, *chain(error.__cause__), *chain(error.__context__)]
