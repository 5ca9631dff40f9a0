"""What a Redis server is, asked before the first key goes out."""

from __future__ import annotations

import logging

import pytest
import redis
from destinations import last_run
from fixture_types import Mart, Select
from pace import within
from redis_servers import Others
from test_redis import MANY, redis_user

from etl import recommendations
from etl.errors import SyncError

Patch = pytest.MonkeyPatch

UNKNOWN = ("HELLO", "MSETEX", "COMMAND", "CLUSTER", "INFO")


# What does not say


@pytest.mark.few(1)
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
    assert "set REDIS_SENTINEL to the name of a master that it watches" in said


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


@pytest.mark.few(1)
@pytest.mark.parametrize("program", ["valkey", "redis-server"])
def test_a_cluster_without_replicas_gets_each_key_on_its_node(
    program: str, mart: Mart, others: Others, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=1_500))
    caplog.set_level(logging.INFO, "etl")

    with others.cluster(5_000, 6_000, 5_384, program=program) as ports:
        assert recommendations.sync()["written"] == 1_500
        assert recommendations.sync(dry_run=True)["unchanged"] == 1_500
        there = [redis.Redis(port=port).dbsize() for port in ports]

    assert (sum(there), min(there) > 400) == (1_500, True)
    assert "keys=1500 by=SET" in caplog.text


@pytest.mark.few(1)
@pytest.mark.parametrize("slots", [0, 5_000])
def test_a_cluster_without_all_slots_is_refused(
    slots: int, mart: Mart, others: Others, select: Select
) -> None:
    mart(MANY.format(users=10))

    with others.cluster(slots):
        said = _refusals(select)

    assert ("5,000 of 16,384 slots have a node" if slots else "none of the slots has") in said
    assert "look at CLUSTER INFO" in said


def test_a_node_that_has_none_of_the_slots_leads_to_the_others(mart: Mart, others: Others) -> None:
    mart(MANY.format(users=10))

    with others.cluster(16_384, 0, node=1) as ports:
        assert recommendations.sync()["written"] == 10
        assert [redis.Redis(port=port).dbsize() for port in ports] == [10, 0]


def test_another_database_of_a_cluster_is_refused(
    mart: Mart, others: Others, select: Select, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    monkeypatch.setenv("REDIS_DB", "1")

    with others.cluster(16_384):
        said = _refusals(select)

    assert said.endswith("this is a cluster, which has database 0 alone; set REDIS_DB=0")


def test_a_cluster_that_may_not_be_asked_is_refused(
    mart: Mart, others: Others, select: Select, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))

    with others.cluster(16_384) as (port,), redis.Redis(port=port) as node:
        with redis_user(node, monkeypatch, "~reco:* +ping +set +mget"):
            said = _refusals(select)
        with redis_user(node, monkeypatch, "~reco:* +ping +set +mget +cluster|slots"):
            assert recommendations.sync()["written"] == 10

    assert "+cluster|slots" in said


@pytest.mark.few(1)
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
