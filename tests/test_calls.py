"""A connection does one thing at a time, because the driver can do no more."""

from __future__ import annotations

import threading

import pytest
from pace import HANG

from etl import postgres
from etl.errors import SyncError


def test_a_second_call_is_refused_while_the_first_is_under_way(
    database: postgres.Connection,
) -> None:
    go_on = threading.Event()
    call = database.submit(lambda _: go_on.wait(HANG))

    with pytest.raises(SyncError, match="an earlier call on this connection is under way"):
        postgres.execute(database, "SELECT 1")
    go_on.set()

    assert call.result()
    assert postgres.select(database, "SELECT 1 AS one") == [{"one": 1}]
