"""A cluster: each key goes to the node of its slot, also while nodes fail and slots move."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import pytest
from conftest import ROOT
from destinations import last_run
from fixture_types import Mart, Meanwhile, Select
from pace import soon, within
from redis.crc import key_slot
from redis_cluster import LiveCluster, live_cluster
from test_redis import DAY, MANY, RIGHTS

from demo.embedded import Servers
from etl import cache, recommendations
from etl.errors import SyncError

Patch = pytest.MonkeyPatch

USERS = 20_000


class Moved(Protocol):
    """Let a slot begin to move in mid-run, and arrive if `ends`: `with moved(ends=True)`."""

    def __call__(self, *, ends: bool) -> AbstractContextManager[None]: ...


@pytest.fixture(scope="module")
def running_cluster(servers: Servers) -> Iterator[LiveCluster]:
    with live_cluster(servers) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: LiveCluster, environment: object, monkeypatch: Patch) -> LiveCluster:
    """The cluster in order and empty, and the service pointed at one of its nodes."""
    running_cluster.heal()
    monkeypatch.setenv("REDIS_PORT", str(running_cluster.servers[1].port))
    monkeypatch.setenv("RETRY_SECONDS", "60")
    return running_cluster


@pytest.fixture
def moved(cluster: LiveCluster, meanwhile: Meanwhile) -> Moved:
    """Let a slot begin to move in mid-run, and with `ends` also arrive; later it moves back."""

    @contextmanager
    def move(*, ends: bool) -> Iterator[None]:
        slot = key_slot(b"reco:user_9990")  # the ids come in the order of the text
        source = next(one for one in cluster.primaries() if _has(cluster, one, slot))
        target = next(one for one in cluster.primaries() if one != source)

        def begin() -> None:
            cluster.move_begin(slot, source, target)
            if ends:
                cluster.move_end(slot, source, target)

        meanwhile(8, begin)
        try:
            yield
        finally:
            cluster.move_end(slot, source, target)
            cluster.move_begin(slot, target, source)
            cluster.move_end(slot, target, source)

    return move


# In order


def test_each_key_goes_to_the_node_that_has_its_slot(
    mart: Mart, cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=USERS))
    caplog.set_level(logging.INFO, "etl")

    result = recommendations.sync()

    assert result["written"] == USERS
    assert f"keys={USERS} by=SET" in caplog.text
    _all_are_there(cluster, USERS)


def test_an_id_with_braces_goes_where_its_readers_look(mart: Mart, cluster: LiveCluster) -> None:
    ids = ["{a}b", "a{}b", "{", "a{b}{c}", "ä{ö}ü"]
    rows = ", ".join(f"('{one}', 'Rome', 0.9)" for one in ids)
    columns = "v(user_id, destination, score)"
    mart(f"CREATE TABLE mart_recommendations AS FROM (VALUES {rows}) AS {columns}")

    assert recommendations.sync()["written"] == len(ids)
    with cluster.reader() as reader:
        assert all(reader.get(f"reco:{one}") for one in ids)


def test_a_dry_run_compares_what_each_node_has(mart: Mart, cluster: LiveCluster) -> None:
    mart(MANY.format(users=5_000))
    with cluster.reader() as reader:
        reader.set("reco:user_1", "other")
        for n in range(10, 20):
            reader.set(f"reco:user_{n}", '{"destinations":["Rome"],"score":0.9}')

    result = recommendations.sync(dry_run=True)

    counts = {name: result[name] for name in ("inserted", "updated", "unchanged")}
    assert counts == {"inserted": 4_989, "updated": 1, "unchanged": 10}
    assert cluster.keys() == 11


def test_a_replica_or_any_of_several_nodes_leads_to_the_cluster(
    mart: Mart, cluster: LiveCluster, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=100))
    replica = cluster.replica_of(cluster.primaries()[0])
    monkeypatch.setenv("REDIS_HOST", f"127.0.0.1:1, 127.0.0.1:{replica.port}")
    monkeypatch.setenv("REDIS_PORT", "2")

    assert recommendations.sync()["written"] == cluster.keys() == 100


def test_a_key_that_is_gone_fails_the_run(
    mart: Mart, cluster: LiveCluster, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    read_back = cache.read_back

    def after_a_loss(client: Any, keys: list[str], settings: Any) -> Any:
        with cluster.reader() as reader:
            reader.delete(keys[3])
        return read_back(client, keys, settings)

    monkeypatch.setattr(cache, "read_back", after_a_loss)

    with pytest.raises(SyncError, match="gone are 1 of a sample of 10 written keys"):
        recommendations.sync()


def test_a_key_that_one_node_refuses_ends_in_an_exact_count(
    mart: Mart, cluster: LiveCluster, meanwhile: Meanwhile
) -> None:
    mart(MANY.format(users=USERS))
    node = cluster.node(cluster.primaries()[2])
    meanwhile(6, lambda: node.config_set("maxmemory", 1))
    try:
        with pytest.raises(SyncError) as raised:
            recommendations.sync()
    finally:
        node.config_set("maxmemory", 0)

    there = cluster.keys()
    assert 6_000 - USERS // 3 < there < USERS
    assert f"stopped with {there:,} of {USERS:,} keys written: OOM" in str(raised.value)


# Slots that move


@pytest.mark.few(1)
@pytest.mark.parametrize("ends", [False, True], ids=["is moving", "has moved"])
def test_keys_of_a_slot_that_moves_meanwhile_follow_it(
    ends: bool, mart: Mart, cluster: LiveCluster, moved: Moved
) -> None:
    mart(MANY.format(users=USERS))

    with moved(ends=ends):
        with within(15):  # it does not wait each time
            result = recommendations.sync()
        foretold = recommendations.sync(dry_run=True)

    assert (result["written"], foretold["unchanged"]) == (USERS, USERS)
    _all_are_there(cluster, USERS)


# Nodes that fail


def test_a_primary_that_hands_over_in_mid_run_costs_nothing(
    mart: Mart, cluster: LiveCluster, meanwhile: Meanwhile
) -> None:
    mart(MANY.format(users=USERS))
    replica = cluster.replica_of(cluster.primaries()[0])
    meanwhile(6, lambda: cluster.node(replica).execute_command("CLUSTER FAILOVER"))
    meanwhile(9, lambda: soon(lambda: replica in cluster.primaries(), 20))

    assert recommendations.sync()["written"] == USERS
    _all_are_there(cluster, USERS)


def test_a_primary_that_is_killed_in_mid_run_is_replaced_and_nothing_is_lost(
    mart: Mart, cluster: LiveCluster, meanwhile: Meanwhile, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=USERS))
    meanwhile(6, cluster.primaries()[0].kill)

    result = recommendations.sync()

    assert result["written"] == USERS
    assert "redis.lost" in caplog.text
    _all_are_there(cluster, USERS)


@pytest.mark.slow
def test_keys_that_the_replica_does_not_have_when_it_takes_over_are_sent_again(
    mart: Mart, cluster: LiveCluster, meanwhile: Meanwhile
) -> None:
    mart(MANY.format(users=USERS))
    primary = cluster.primaries()[0]
    node = cluster.node(primary)

    def lag() -> None:
        """Let the replica begin from scratch, in half a minute."""
        node.config_set("repl-diskless-sync-delay", 30)
        node.execute_command("DEBUG", "CHANGE-REPL-ID")
        node.execute_command("CLIENT", "KILL", "TYPE", "replica")

        threading.Timer(0.5, primary.kill).start()

    meanwhile(6, lag)

    assert recommendations.sync()["written"] == USERS
    assert primary.process is not None
    primary.process.wait()  # also where the run was done before
    assert soon(lambda: primary not in cluster.primaries(), 10)
    _all_are_there(cluster, USERS)


def test_replicas_that_stay_behind_are_told(
    mart: Mart, cluster: LiveCluster, caplog: pytest.LogCaptureFixture, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=100))
    monkeypatch.setenv("RETRY_SECONDS", "1")
    primary = cluster.primaries()[0]
    cluster.node(primary).config_set("repl-diskless-sync-delay", 30)
    try:
        cluster.node(primary).execute_command("DEBUG", "CHANGE-REPL-ID")
        cluster.node(primary).execute_command("CLIENT", "KILL", "TYPE", "replica")
        result = recommendations.sync()
    finally:
        cluster.node(primary).config_set("repl-diskless-sync-delay", 0)

    assert result["written"] == 100
    assert "keys.unreplicated" in caplog.text
    assert "no replica confirmed the keys" in caplog.text


def test_a_node_that_stays_away_ends_the_run_in_one_line(
    mart: Mart, cluster: LiveCluster, meanwhile: Meanwhile, monkeypatch: Patch, select: Select
) -> None:
    mart(MANY.format(users=USERS))
    monkeypatch.setenv("RETRY_SECONDS", "1")
    primary = cluster.primaries()[0]
    replica = cluster.replica_of(primary)
    meanwhile(6, replica.kill)
    meanwhile(7, primary.kill)

    with within(10), pytest.raises(SyncError) as raised:
        recommendations.sync()

    said, row = str(raised.value), last_run(select, "recommendations")
    assert (row["status"], row["error"], raised.value.exit_code) == ("failed", said, 1)
    assert f"stopped with at least {row['written']:,} of {USERS:,} keys written: " in said
    assert "look at CLUSTER INFO" in said or f"127.0.0.1:{primary.port}. Connection refused" in said
    assert "\n" not in said


def test_a_run_that_waits_for_a_frozen_node_can_be_stopped(
    mart: Mart, cluster: LiveCluster
) -> None:
    mart(MANY.format(users=USERS))
    primary = cluster.primaries()[2]
    for server in (cluster.replica_of(primary), primary):
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "etl.recommendations"]
    given = {**os.environ, "RETRY_SECONDS": "600", "LOG_FORMAT": "text"}

    with subprocess.Popen(command, cwd=ROOT, env=given, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any("mart.read" in line for line in run.stderr)
        time.sleep(1.5)
        with within(2):
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=60)

    assert run.returncode == 143


# Rights


@pytest.mark.few(1)
@pytest.mark.parametrize("ends", [False, True], ids=["is moving", "has moved"])
def test_the_rights_of_the_manual_for_a_cluster_are_enough(
    ends: bool, mart: Mart, cluster: LiveCluster, moved: Moved, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=USERS))

    with _user(cluster, monkeypatch, RIGHTS[1]) as refused, moved(ends=ends):
        assert recommendations.sync()["written"] == USERS
        assert recommendations.sync(dry_run=True)["unchanged"] == USERS

    assert refused == []


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("right", "said"),
    [
        ("+cluster|slots", r"the user needs .* \+cluster\|slots \+asking \+wait in a cluster"),
        ("+asking", "keys written: NOPERM"),
        ("+wait", "WAIT is refused, allow "),
        ("~reco:*", "the user needs ~reco"),
        ("+ping", "the user needs ~reco"),
        ("+set", "keys written: NOPERM"),
        ("+mget", "MGET, GET and EXISTS are refused"),
    ],
)
def test_none_of_the_rights_for_a_cluster_is_too_many(
    right: str,
    said: str,
    *,
    mart: Mart,
    cluster: LiveCluster,
    moved: Moved,
    monkeypatch: Patch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mart(MANY.format(users=USERS))
    rights = [each for each in RIGHTS[1].split() if each != right]
    assert len(rights) < len(RIGHTS[1].split())

    with _user(cluster, monkeypatch, " ".join(rights)), moved(ends=False):
        if right == "+wait":
            recommendations.sync()
        else:
            with pytest.raises(SyncError):
                recommendations.sync(dry_run=right == "+mget")

    assert re.search(said, caplog.text)


# Helpers


def _all_are_there(cluster: LiveCluster, users: int) -> None:
    """Every key has its value and its TTL, for readers that know the cluster."""
    names = [f"reco:user_{n}" for n in range(users)]
    with cluster.reader() as reader:
        values = reader.mget_nonatomic(names)
        assert set(values) == {b'{"destinations":["Rome"],"score":0.9}'}
        assert all(DAY - 90 < reader.ttl(name) <= DAY for name in names[::500])


def _has(cluster: LiveCluster, server: Any, slot: int) -> bool:
    ranges = cluster.node(server).execute_command("CLUSTER SLOTS")
    return any(first <= slot <= last and node[1] == server.port for first, last, node, *_ in ranges)


@contextmanager
def _user(cluster: LiveCluster, monkeypatch: Patch, rights: str) -> Iterator[list[Any]]:
    """Runs are by a user with these rights on every node; what was refused comes in the end."""
    refused: list[Any] = []
    nodes = [cluster.node(server) for server in cluster.servers]
    for node in nodes:
        node.execute_command("ACL", "SETUSER", "etl", "reset", "on", ">pw", *rights.split())
        node.acl_log_reset()
    with monkeypatch.context() as environment:
        environment.setenv("REDIS_USERNAME", "etl")
        environment.setenv("REDIS_PASSWORD", "pw")
        yield refused
    for node in nodes:
        refused += node.acl_log()
        node.acl_deluser("etl")
