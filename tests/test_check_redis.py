"""`etl.check` of Redis: servers of every kind, rights, and memory beside what the mart needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from checks import GOOD, agrees, states
from destinations import dump
from fixture_types import Mart
from redis_sentinel import watched
from redis_servers import Others

from demo import sample
from demo.embedded import Servers
from etl import recommendations
from etl.check import check
from etl.errors import SyncError

LOST = {"Redis": "fail", "Redis rights": "skipped", "Redis memory": "skipped"}


def _found(name: str) -> str:
    return "; ".join(one.found for one in check() if one.name == name)


ADDRESSES = {
    "a port where nobody is": {"REDIS_PORT": "1"},
    "a wrong password": {"REDIS_PASSWORD": "wrong"},
    "no such database": {"REDIS_DB": "99"},
    "a file that is not there": {"REDIS_TLS": "true", "REDIS_CA_FILE": "/nowhere/ca.pem"},
    "TLS with who has none": {"REDIS_TLS": "true"},
    "a certificate without TLS": {"REDIS_CA_FILE": "/nowhere/ca.pem"},
    "a Sentinel where none is": {"REDIS_SENTINEL": "mymaster"},
}


@pytest.mark.few(2)
@pytest.mark.parametrize("what", ADDRESSES)
def test_a_server_that_does_not_serve_is_told_as_a_run_tells_it(
    what: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(*GOOD)
    with monkeypatch.context() as changed:
        for name, value in ADDRESSES[what].items():
            changed.setenv(name, value)

        findings = check()

        assert states(findings) == LOST
        assert agrees(findings)


def test_a_server_that_is_away_is_not_waited_for(
    mart: Mart, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mart(*GOOD)
    monkeypatch.setenv("REDIS_PORT", "1")
    monkeypatch.setenv("RETRY_SECONDS", "0.1")

    assert states(check()) == LOST
    assert "redis.lost" not in caplog.text


def test_a_replica_is_told_as_a_run_tells_it(mart: Mart, others: Others) -> None:
    mart(*GOOD)
    with others.server("--replicaof", "127.0.0.1", str(others.servers.redis_port)):
        findings = check()

        assert states(findings) == LOST
        assert agrees(findings)


@pytest.mark.slow
def test_a_cluster_is_told_with_its_primaries(mart: Mart, others: Others) -> None:
    mart(*GOOD)
    with others.cluster(16_384, 0):
        findings = check()

        assert states(findings) == {}
        assert agrees(findings)
        assert "a cluster of 1 primaries" in _found("Redis")


@pytest.mark.slow
def test_a_cluster_without_all_slots_is_told_as_a_run_tells_it(mart: Mart, others: Others) -> None:
    mart(*GOOD)
    with others.cluster(16_000):
        findings = check()

        assert states(findings) == LOST
        assert agrees(findings)


@pytest.mark.slow
def test_the_primary_that_sentinels_name_is_told(
    mart: Mart, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(*GOOD)
    with watched(servers) as group:
        for name, value in group.environment.items():
            monkeypatch.setenv(name, value)

        findings = check()

        assert states(findings) == {}
        assert agrees(findings)
        assert "the primary that Sentinels name, 1 replicas" in _found("Redis")


def _user(keys: Any, *rules: str) -> None:
    keys.execute_command("ACL", "SETUSER", "sync", "reset", "on", ">pass", *rules)


@pytest.fixture
def as_user(keys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Log in as a user with these rules alone."""

    def become(*rules: str) -> None:
        _user(keys, *rules)
        monkeypatch.setenv("REDIS_USERNAME", "sync")
        monkeypatch.setenv("REDIS_PASSWORD", "pass")

    yield become
    keys.execute_command("ACL", "DELUSER", "sync")


Become = Callable[..., None]


def test_a_user_with_no_more_rights_than_a_run_needs_may_check(mart: Mart, as_user: Become) -> None:
    mart(*GOOD)
    as_user("~reco:*", "+ping", "+set", "+mget")

    findings = check()

    ours = {"Redis memory", "recommendations"}
    told = {name: state for name, state in states(findings).items() if name in ours}
    assert told == {"Redis memory": "skipped"}  # INFO is refused
    assert agrees(findings)
    assert recommendations.sync()["written"] == 1


NOT_ENOUGH = {
    "no SET": ["~reco:*", "+ping", "+mget"],
    "other keys": ["~other:*", "+@all"],
    "nothing to read with": ["~reco:*", "+ping", "+set"],
}


@pytest.mark.few(1)
@pytest.mark.parametrize("what", NOT_ENOUGH)
def test_a_right_that_a_run_needs_is_missed_without_a_key_written(
    what: str, mart: Mart, as_user: Become, keys: redis.Redis
) -> None:
    mart(*GOOD)
    as_user(*NOT_ENOUGH[what])

    failed = [one for one in check() if one.state == "fail"]
    with pytest.raises(SyncError) as raised:
        recommendations.sync()

    (one,) = failed
    assert one.name.startswith("Redis")
    assert str(raised.value).endswith(one.advice)
    assert dump(keys) == {}


def test_values_that_a_dry_run_cannot_compare_are_a_warning(mart: Mart, as_user: Become) -> None:
    mart(*GOOD)
    as_user("~reco:*", "+ping", "+set", "+exists")

    findings = check()

    assert states(findings)["Redis rights"] == "warn"
    assert agrees(findings)


MEMORY = {
    "no limit": ([], {}, "no maxmemory"),
    "room": (["--maxmemory", "100mb"], {}, "are free, noeviction"),
    "too little": (["--maxmemory", "2mb"], {"Redis memory": "fail"}, "Redis takes no more"),
    "too little, and a policy": (
        ["--maxmemory", "2mb", "--maxmemory-policy", "volatile-lru"],
        {"Redis memory": "fail"},
        "keys are evicted",
    ),
    "none at all": (
        ["--maxmemory", "500kb"],
        {"Redis rights": "fail", "Redis memory": "skipped"},
        "",
    ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("what", MEMORY)
def test_memory_is_compared_with_what_the_keys_of_the_mart_need(
    what: str, environment: Path, others: Others
) -> None:
    options, expected, words = MEMORY[what]
    sample.build(environment, 10_000)
    with others.server(*options, program="redis-server"):
        findings = check()
        fails = False
        try:
            recommendations.sync()
        except SyncError:
            fails = True

    assert states(findings) == expected
    assert words in "; ".join(one.found for one in findings if one.name == "Redis memory")
    assert fails == bool(expected)


def test_keys_that_are_there_need_no_room_again(environment: Path, others: Others) -> None:
    sample.build(environment, 10_000)
    with others.server("--maxmemory", "6mb", program="redis-server") as port:
        recommendations.sync()
        with redis.Redis(port=port) as client:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] + 200_000))

        assert "0.0 MB of them new" in _found("Redis memory")
        assert states(check()) == {}


def test_what_a_run_that_was_stopped_has_left_to_write_needs_room(
    environment: Path, others: Others
) -> None:
    sample.build(environment, 10_000)
    with (
        others.server(program="redis-server") as port,
        redis.Redis(port=port) as client,
    ):

        def let_have(more: int) -> None:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] + more))

        let_have(500_000)
        with pytest.raises(SyncError, match="stopped with"):
            recommendations.sync()
        let_have(300_000)

        assert "0.0 MB of them new" not in _found("Redis memory")
        assert states(check()) == {"Redis memory": "fail"}


@pytest.mark.slow
def test_what_keys_need_is_about_what_a_server_takes_for_them(
    environment: Path, others: Others
) -> None:
    sample.build(environment, 20_000)
    for program in ("valkey", "redis-server"):
        with others.server(program=program) as port, redis.Redis(port=port) as client:
            before = client.info("memory")["used_memory"]
            told = float(_found("Redis memory").split("keys, ")[1].split(" MB")[0])
            recommendations.sync()
            taken = (client.info("memory")["used_memory"] - before) / 1e6

        assert 0.88 < told / taken < 1.12, program
