"""A table whose collation takes different texts for the same: what differs in bytes is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from checks import GOOD, looked
from conftest import segments
from destinations import execute
from fixture_types import Mart
from refusing import german

from etl import postgres, user_segments
from etl.errors import SyncError
from etl.init_db import init_db
from etl.settings import Settings

if TYPE_CHECKING:
    from demo.embedded import Servers

pytestmark = pytest.mark.slow  # another Postgres has to be made

COLUMN = "ALTER TABLE crm.user_segments ALTER {} TYPE text COLLATE {}"


@pytest.fixture(scope="module")
def icu(servers: Servers) -> Iterator[int]:
    """A Postgres that has such collations, which that of the wheel has not; its port."""
    with german(servers) as server:
        yield server.port


@pytest.fixture(autouse=True)
def tables(icu: int, environment: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty tables in it."""
    with monkeypatch.context() as there:
        there.setenv("POSTGRES_PORT", str(icu))
        execute("DROP SCHEMA IF EXISTS crm, etl CASCADE")
        init_db()
        execute(
            "CREATE COLLATION crm.any_case"
            " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
        yield


def test_a_segment_that_differs_in_bytes_alone_is_written(mart: Mart) -> None:
    execute(COLUMN.format("segment", "crm.any_case"))
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('a', 'Regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))

    dry = user_segments.sync(dry_run=True, show=1)
    shard = user_segments.sync(shard=(0, 1), dry_run=True)
    result = user_segments.sync()

    assert [(one["updated"], one["unchanged"]) for one in (dry, shard, result)] == [(1, 1)] * 3
    (shown,) = dry["changes"]
    assert shown["columns"] == {"segment": {"old": "regular", "new": "Regular"}}
    sql = "SELECT segment, previous_segment FROM crm.user_segments WHERE user_id = 'a'"
    with postgres.session(Settings.from_environment(), "tests") as connection:
        assert postgres.select(connection, sql) == [
            {"segment": "Regular", "previous_segment": "regular"}
        ]


def test_two_users_whom_the_collation_takes_for_one_fail_the_run(mart: Mart) -> None:
    execute(COLUMN.format("user_id", "crm.any_case"))
    mart(segments("('a', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('A', 'regular', 1, 0, 0)"))

    with pytest.raises(SyncError, match="1 row is not there as written"):
        user_segments.sync()


def test_check_warns_of_such_a_collation(mart: Mart) -> None:
    mart(*GOOD)
    execute(COLUMN.format("segment", "crm.any_case"))

    (one,) = looked("Postgres tables", "warn")

    assert one.found == (
        "crm.user_segments.segment takes different texts for the same by its collation any_case"
    )
