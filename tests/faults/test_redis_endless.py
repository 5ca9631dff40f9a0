"""A Redis server that never comes to an end: one line in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from itertools import chain, repeat

import pytest
from fixture_types import Mart
from pace import HANG, within
from redis_servers import Others

from etl import recommendations
from etl.cache import resp
from etl.errors import SyncError

MANY = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'user_' || n AS user_id, 'Rome' AS destination, 0.9 AS score
    FROM range(1500) AS r(n)
"""

PIECE = b"x" * 65_536


def _drip(whole: bytes) -> Iterator[bytes]:
    for byte in whole:
        yield bytes([byte])
        time.sleep(0.2)


def _silence() -> Iterator[bytes]:
    time.sleep(60)
    yield b""


ENDLESS = {
    "a byte at a time": lambda: _drip(b"+" + b"x" * 1_000),
    "a byte at a time of a value": lambda: chain([b"$1000\r\n"], _drip(b"x" * 1_000)),
    "an endless line": lambda: chain([b"+"], repeat(PIECE)),
    "an endless error": lambda: chain([b"-ERR "], repeat(PIECE)),
    "an endless number": lambda: chain([b":"], repeat(b"1" * 65_536)),
    "a value of 10 GB": lambda: chain([b"$10737418240\r\n"], repeat(PIECE)),
    "a value of unheard-of size": lambda: [b"$" + b"9" * 1_000 + b"\r\n"],
    "a list without end": lambda: chain([b"*4294967295\r\n"], repeat(b"$1\r\na\r\n" * 10_000)),
    "lists of lists": lambda: repeat(b"*1\r\n" * 10_000),
    "wide lists of lists": lambda: repeat(b"*100000\r\n" * 10_000),
    "many values of 100 kB": lambda: chain([b"*100000\r\n"], repeat(b"$100000\r\n" + PIECE)),
    "no Redis": lambda: [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "silence": _silence,
}


@pytest.mark.few(6)
@pytest.mark.parametrize("way", ENDLESS)
@pytest.mark.parametrize("command", ["AUTH", "PING", "HELLO", "MSETEX", "SET", "MGET"])
def test_a_reply_without_end_ends_in_one_line(
    command: str, way: str, mart: Mart, others: Others
) -> None:
    mart(MANY)
    others.monkeypatch.setattr(resp, "REPLY_SECONDS", 0.5)
    others.monkeypatch.setenv("REDIS_PASSWORD", "pw")
    hello = b"*4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
    answers = {"AUTH": b"+OK\r\n", "HELLO": hello, command: ENDLESS[way]}

    tracemalloc.start()
    with within(HANG), others.fake(answers), pytest.raises(SyncError) as raised:  # type: ignore[arg-type]
        recommendations.sync(dry_run=command == "MGET")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 200 << 20
    assert str(raised.value).startswith("Redis (")
    assert "\n" not in str(raised.value)


def test_a_batch_whose_replies_each_come_late_ends_in_one_line(mart: Mart, others: Others) -> None:
    mart(MANY)
    others.monkeypatch.setattr(resp, "REPLY_SECONDS", 0.5)

    def late() -> Iterator[bytes]:
        time.sleep(0.2)
        yield b"+OK\r\n"

    with within(HANG), others.fake({"SET": late}), pytest.raises(SyncError) as raised:
        recommendations.sync()

    assert "stopped with at least 0 of 1,500 keys written: Timeout" in str(raised.value)
