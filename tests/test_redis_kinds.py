"""What a Redis server is, asked before the first key goes out."""

from __future__ import annotations

import logging

import pytest
import redis
from destinations import Mart, Select, last_run
from pace import within
from redis_servers import Others
from test_redis import MANY, redis_user

from etl import recommendations
from etl.errors import SyncError

Patch = pytest.MonkeyPatch

UNKNOWN = ("HELLO", "MSETEX", "COMMAND", "CLUSTER", "INFO")


# What does not say


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="hangs up"),
        pytest.param(b"-ERR unsupported command 'hello'\r\n", id="unsupported"),
        pytest.param(b"-ERR unbekannter Befehl\r\n", id="in German"),
        pytest.param(b"+OK\r\n", id="answers anything"),
        pytest.param(b"*0\r\n", id="an empty list"),
        pytest.param(b"*1\r\n*1\r\n+mode\r\n", id="another list"),
    ],
)
def test_a_proxy_that_does_not_know_hello_gets_keys_by_set(
    answer: bytes | None, mart: Mart, keys: redis.Redis, others: Others, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=1_500))

    with (
        redis_user(keys, monkeypatch, "~reco:* +ping +set +mget"),
        others.proxy(dict.fromkeys(UNKNOWN, answer)),
    ):
        foretold = recommendations.sync(dry_run=True)
        result = recommendations.sync()

    assert (foretold["inserted"], result["written"], keys.dbsize()) == (1_500, 1_500, 1_500)


def test_a_proxy_that_hangs_up_on_msetex_alone_gets_keys_by_set(
    mart: Mart, keys: redis.Redis, others: Others
) -> None:
    mart(MANY.format(users=1_500))

    with others.proxy({"MSETEX": None}):
        assert recommendations.sync()["written"] == keys.dbsize() == 1_500


def test_redis_7_gets_keys_by_set(mart: Mart, others: Others) -> None:
    mart(MANY.format(users=1_500))

    with others.server(program="redis-server"):
        assert recommendations.sync()["written"] == 1_500
        assert recommendations.sync(dry_run=True)["unchanged"] == 1_500


# What it says


@pytest.mark.parametrize("db", ["0", "1"])
def test_a_sentinel_is_called_one(
    db: str, mart: Mart, others: Others, select: Select, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    monkeypatch.setenv("REDIS_DB", db)

    with others.server(program="redis-sentinel") as port:
        said = _refusals(select)

    assert f"(127.0.0.1:{port}/{db}): this is a Sentinel" in said
    assert "set REDIS_HOST and REDIS_PORT to those of the primary" in said


def test_a_sentinel_that_does_not_know_hello_is_no_redis_server(
    mart: Mart, others: Others, select: Select
) -> None:
    mart(MANY.format(users=10))
    unknown = {"HELLO": b"-ERR unknown command 'HELLO'\r\n"}

    with others.server(program="redis-sentinel") as port, others.proxy(unknown, port):
        said = _refusals(select, runs=(False,))

    assert "unknown command; are REDIS_HOST, REDIS_PORT" in said


def test_a_replica_is_refused_also_where_it_takes_keys(
    mart: Mart, others: Others, select: Select
) -> None:
    mart(MANY.format(users=10))
    primary = f"127.0.0.1 {others.servers.redis_port}"

    with others.server("--replicaof", primary, "--replica-read-only", "no"):
        said = _refusals(select)

    assert said.endswith("this is a replica; set REDIS_HOST to the primary")


@pytest.mark.parametrize("program", ["valkey", "redis-server"])
def test_a_node_of_a_cluster_is_refused_before_the_first_key(
    program: str, mart: Mart, others: Others, select: Select
) -> None:
    mart(MANY.format(users=1_500))

    with others.cluster(5_000, 6_000, 5_384, program=program) as ports:
        said = _refusals(select)
        there = [redis.Redis(port=port).dbsize() for port in ports]

    assert "this is a node of a cluster of 3 with 16,384 of 16,384 slots" in said
    assert "set REDIS_HOST to a single server" in said
    assert there == [0, 0, 0]


def test_a_cluster_without_all_slots_is_refused(mart: Mart, others: Others, select: Select) -> None:
    mart(MANY.format(users=10))

    with others.cluster(5_000):
        said = _refusals(select)

    assert "of a cluster of 1 with 5,000 of 16,384 slots" in said


def test_a_node_that_has_none_of_the_slots_keeps_no_key(
    mart: Mart, others: Others, select: Select
) -> None:
    mart(MANY.format(users=10))

    with others.cluster(16_384, 0, node=1) as ports:
        said = _refusals(select, runs=(False,))
        there = [redis.Redis(port=port).dbsize() for port in ports]

    assert "stopped with 0 of 10 keys written: MOVED; it is a node of a cluster" in said
    assert there == [0, 0]


def test_a_cluster_that_may_not_be_asked_is_refused(
    mart: Mart, others: Others, select: Select, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))

    with others.cluster(16_384) as (port,), redis.Redis(port=port) as node:
        with redis_user(node, monkeypatch, "~reco:* +ping +set +mget"):
            said = _refusals(select)
        with redis_user(node, monkeypatch, "~reco:* +ping +set +mget +cluster|info"):
            assert recommendations.sync()["written"] == 10

    assert "allow +cluster|info" in said


@pytest.mark.parametrize("program", ["valkey", "redis-server"])
def test_a_cluster_of_one_node_gets_keys_by_set(
    program: str, mart: Mart, others: Others, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=1_500))
    caplog.set_level(logging.INFO, "etl")

    with others.cluster(16_384, program=program):
        assert recommendations.sync()["written"] == 1_500
        assert recommendations.sync(dry_run=True)["unchanged"] == 1_500

    assert "keys=1500 by=SET" in caplog.text


def _refusals(select: Select, *, runs: tuple[bool, ...] = (False, True)) -> str:
    """What a run and a dry run say, which is the same line; at once and without a key."""
    said = set()
    for dry_run in runs:
        with within(5), pytest.raises(SyncError) as raised:
            recommendations.sync(dry_run=dry_run)
        said.add(str(raised.value))
    (line,) = said
    row = last_run(select, "recommendations")
    assert (row["status"], row["written"], row["error"]) == ("failed", 0, line)
    assert "\n" not in line
    assert "user_" not in line
    return line
