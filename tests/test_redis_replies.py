"""What a Redis server says is told as far as its first clause, and no data with it."""

from __future__ import annotations

import logging
import os
import re
import traceback

import pytest
from fixture_types import Mart, Select
from pace import within
from redis_servers import Answer, Others
from test_causes import chain
from test_redis import MANY

from etl import recommendations
from etl.errors import SyncError

PASSWORD = "hunter2, the {secret} of: us"
PERSONAL = ("user_0", "Rome", "15001", "10.1.2.3", "hunter", "secret", "\x1b", "\x9b", "\u202e")

ECHOES = [
    b"-ERR unknown command 'SET', with args beginning with: 'reco:user_0' '{\"destinations\":\r\n",
    b'-ERR unknown command `SET`, with args beginning with: `reco:user_0`, `{"destinations":\r\n',
    b'-ERR cannot set reco:user_0 to {"destinations":["Rome"]\r\n',
    b'-ERR value {"destinations":["Rome"] is wrong for reco:user_0\r\n',
    b"-MOVED 15001 10.1.2.3:7001\r\n",
    b"-ASK 15001 10.1.2.3:7001\r\n",
    b"-MOVED\r\n",
    b"-MISCONF Redis cannot save; last key was reco:user_0\r\n",
    b"-NOPERM no access to reco:user_0\r\n",
    b"-\r\n",
    b"-ERR \x1b[31m\xc2\x9b\xe2\x80\xae reco:user_0\r\n",
    b'$25\r\n{"destinations":["Rome"]} 15\r\n',
    b"+reco:user_0\r\n",
    b":15001\r\n",
    b"*2\r\n$6\r\nuser_0\r\n-ERR reco:user_0\r\n",
    b"user_0 Rome\r\n",
    b"$user_0\r\n",
    b"$28\r\n%b\r\n" % PASSWORD.encode(),
    b"+%b\r\n" % PASSWORD.encode(),
    b"-ERR wrong %b\r\n" % PASSWORD.encode(),
    b"-%b\r\n" % PASSWORD.encode(),
    b"-ERR not x%by\r\n" % PASSWORD.encode(),
]


@pytest.mark.few(5)
@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("command", ["SET", "PING", "AUTH", "SELECT", "MGET"])
def test_nothing_that_a_server_repeats_is_told(
    command: str,
    echo: bytes,
    recommended: Select,
    others: Others,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    others.monkeypatch.setenv("REDIS_DB", "1")
    others.monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    answers = {"AUTH": b"+OK\r\n", "SELECT": b"+OK\r\n", "SET": b"+OK\r\n", command: echo}

    with others.fake(answers), pytest.raises(SyncError) as raised:
        recommendations.sync(dry_run=command == "MGET")

    told = "".join(traceback.format_exception(raised.value)) + caplog.text
    told += "".join(f"{one} {one.args} {vars(one)}" for one in chain(raised.value))
    told += str(recommended("SELECT to_jsonb(r)::text AS row FROM etl.sync_runs AS r"))
    assert repeated_in(told) == []
    assert str(raised.value).startswith("Redis (127.0.0.1:")
    assert "\n" not in str(raised.value)


@pytest.mark.few(5)
@pytest.mark.parametrize("echo", [b"-ERR no %b here", b"-%b", b"+%b", b"-WRONGPASS %b", b"%b"])
@pytest.mark.parametrize("command", ["SET", "PING", "AUTH"])
def test_a_password_that_is_an_ordinary_word_is_not_repeated_either(
    command: str, echo: bytes, recommended: Select, others: Others
) -> None:
    others.monkeypatch.setenv("REDIS_PASSWORD", "opensesame")
    answers = {"AUTH": b"+OK\r\n", "SET": b"+OK\r\n"}

    with (
        others.fake({**answers, command: echo % b"opensesame" + b"\r\n"}),
        pytest.raises(SyncError) as raised,
    ):
        recommendations.sync()

    assert "sesame" not in str(raised.value)


def test_a_login_that_is_refused_in_german_is_told_with_the_next_step(
    mart: Mart, others: Others
) -> None:
    mart(MANY.format(users=3))
    others.monkeypatch.setenv("REDIS_PASSWORD", "pw")
    others.monkeypatch.setenv("RETRY_SECONDS", "60")

    with (
        within(10),
        others.fake({"AUTH": "-ERR ungültiges Kennwort\r\n".encode()}),
        pytest.raises(SyncError, match="an error, whose words are not repeated; check REDIS_USE"),
    ):
        recommendations.sync()


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MISCONF Redis is configured to save, but cannot", "the server cannot save to its disk"),
        ("NOREPLICAS Not enough good replicas to write.", "the server has too few replicas"),
        ("MOVED 1 10.1.2.3:1", "MOVED; it is a node of a cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "it is a node of a cluster"),
        ("READONLY You can't write against a read only replica.", "set REDIS_HOST to the primary"),
        ("MASTERDOWN Link with MASTER is down", "set REDIS_HOST to the primary"),
        ("DENIED Redis is running in protected mode because", "set REDIS_PASSWORD"),
        ("ERR unknown command 'SET'", "are REDIS_HOST, REDIS_PORT and REDIS_TLS those of a Redis"),
    ],
)
def test_what_a_server_refuses_is_told_with_the_next_step(
    error: str, said: str, mart: Mart, others: Others
) -> None:
    mart(MANY.format(users=3))

    with others.fake({"SET": f"-{error}\r\n".encode()}), pytest.raises(SyncError) as raised:
        recommendations.sync()

    assert said in str(raised.value)


@pytest.mark.few(2)
@pytest.mark.parametrize("ask", [b"user_0 :1", b"1 user_0\x1b[31m:7001", b"1 10.1.2.3:0", b"1 x:y"])
def test_a_redirection_to_what_is_no_address_is_one_line(
    ask: bytes, recommended: Select, others: Others
) -> None:
    refused = b"-ASK %b\r\n" % ask
    answers: dict[str, Answer] = {"HELLO": CLUSTER, "CLUSTER": lambda: [_here()], "SET": refused}

    with others.fake(answers), pytest.raises(SyncError) as raised:
        recommendations.sync()

    said = str(raised.value)
    assert "unexpected" not in said
    assert repeated_in(said) == []


def _here() -> bytes:
    """CLUSTER SLOTS of a node that has them all, and that the service is pointed at."""
    return _slots(b"0", b"16383", host=b"127.0.0.1", port=int(os.environ["REDIS_PORT"]))


CLUSTER = b"*4\r\n$4\r\nmode\r\n$7\r\ncluster\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"


def _slots(*parts: bytes, host: bytes = b"10.1.2.3", port: int = 7001) -> bytes:
    """CLUSTER SLOTS with one range."""
    node = b"*2\r\n$%d\r\n%b\r\n:%d\r\n" % (len(host), host, port)
    return b"*1\r\n*3\r\n" + b"".join(b":%b\r\n" % part for part in parts) + node


@pytest.mark.few(5)
@pytest.mark.parametrize(
    "slots",
    [
        _slots(b"0", b"99999999999999"),
        _slots(b"-5", b"16383"),
        _slots(b"9", b"3"),
        _slots(b"0", b"16383", port=0),
        _slots(b"0", b"16383", port=99_999),
        _slots(b"0", b"16383", host=b"user_0 \x1b[31m\xe2\x80\xae"),
        b"*1\r\n*2\r\n:0\r\n:16383\r\n",
        b"*1\r\n*3\r\n:0\r\n:16383\r\n:7\r\n",
        b"*1\r\n*0\r\n",
        b"*1\r\n$6\r\nuser_0\r\n",
        b"*0\r\n",
        b":15001\r\n",
        b"$6\r\nuser_0\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b"-ERR user_0 hunter\r\n",
    ],
)
def test_slots_that_cannot_be_are_one_line(
    slots: bytes, recommended: Select, others: Others
) -> None:
    answers = {"HELLO": CLUSTER, "CLUSTER": slots}

    with within(10), others.fake(answers), pytest.raises(SyncError) as raised:
        recommendations.sync()

    said = str(raised.value)
    assert said.startswith("Redis (127.0.0.1:")
    assert "unexpected" not in said
    assert repeated_in(said) == []


def repeated_in(told: str) -> list[str]:
    """What of PERSONAL is told; a number that is part of a time or of a run's id is none of it."""
    alone = r"(?<![\w.]){}(?!\w)"
    return [
        one
        for one in PERSONAL
        if re.search((alone if one.isdigit() else "{}").format(re.escape(one)), told)
    ]


@pytest.fixture
def recommended(mart: Mart, select: Select) -> Select:
    """A mart of three users; what reads the ledger afterwards."""
    mart(MANY.format(users=3))
    return select
