"""Behind Sentinels: keys go to the master they name, also when that is another one meanwhile."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from destinations import last_run
from fixture_types import Mart, Meanwhile, Select
from needs import needs
from pace import soon, within
from redis_sentinel import Watched, watched
from test_redis import DEPLOYMENT, MANY, RIGHTS, all_are_there

from demo.embedded import Servers
from etl import recommendations
from etl.errors import SyncError

Patch = pytest.MonkeyPatch

USERS = 20_000


@pytest.fixture
def group(servers: Servers, environment: object, monkeypatch: Patch) -> Iterator[Watched]:
    """A master, a replica and Sentinels, and the service pointed at the Sentinels."""
    needs("redis-server")
    needs("redis-sentinel")
    with watched(servers) as group:
        for name, value in group.environment.items():
            monkeypatch.setenv(name, value)
        yield group


def test_keys_go_to_the_master_that_the_sentinels_name(mart: Mart, group: Watched) -> None:
    mart(MANY.format(users=2_500))

    foretold = recommendations.sync(dry_run=True)
    result = recommendations.sync()

    assert (foretold["inserted"], result["written"]) == (2_500, 2_500)
    all_are_there(group.node(group.master()), 2_500)
    assert recommendations.sync(dry_run=True)["unchanged"] == 2_500


def test_a_master_that_is_killed_in_mid_run_is_replaced_and_nothing_is_lost(
    mart: Mart, group: Watched, meanwhile: Meanwhile, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=USERS))
    master, replica = group.servers
    meanwhile(8, master.kill)

    assert recommendations.sync()["written"] == USERS
    assert soon(partial(group.has_master, replica), 20)  # the other Sentinel hears of it later
    all_are_there(group.node(replica), USERS)
    assert "redis.lost" in caplog.text


@pytest.mark.slow
def test_a_master_that_hands_over_in_mid_run_costs_nothing(
    mart: Mart, group: Watched, meanwhile: Meanwhile
) -> None:
    mart(MANY.format(users=USERS))
    replica = group.servers[1]

    def hand_over() -> None:
        group.sentinel(group.sentinels[0]).execute_command("SENTINEL FAILOVER", "mymaster")
        assert soon(partial(group.has_master, replica), 20)

    meanwhile(8, hand_over)

    assert recommendations.sync()["written"] == USERS
    all_are_there(group.node(replica), USERS)


@pytest.mark.slow
def test_keys_that_the_replica_does_not_have_when_it_takes_over_are_sent_again(
    mart: Mart, group: Watched, meanwhile: Meanwhile
) -> None:
    mart(MANY.format(users=USERS))
    master, replica = group.servers
    node = group.node(master)

    def lag() -> None:
        """Let the replica begin from scratch, in half a minute."""
        node.config_set("repl-diskless-sync-delay", 30)
        node.execute_command("DEBUG", "CHANGE-REPL-ID")
        node.execute_command("CLIENT", "KILL", "TYPE", "replica")
        threading.Timer(0.5, master.kill).start()

    meanwhile(8, lag)

    assert recommendations.sync()["written"] == USERS
    assert soon(partial(group.has_master, replica), 20)  # also where the run was done before
    all_are_there(group.node(replica), USERS)


@pytest.mark.slow
def test_a_master_without_a_successor_ends_the_run_in_one_line(
    mart: Mart, group: Watched, meanwhile: Meanwhile, monkeypatch: Patch, select: Select
) -> None:
    mart(MANY.format(users=USERS))
    monkeypatch.setenv("RETRY_SECONDS", "2")
    master, replica = group.servers
    replica.kill()
    meanwhile(8, master.kill)

    with within(10), pytest.raises(SyncError) as raised:
        recommendations.sync()

    said, row = str(raised.value), last_run(select, "recommendations")
    assert (row["status"], row["error"], raised.value.exit_code) == ("failed", said, 1)
    assert said.startswith("Redis (mymaster@127.0.0.1:1,127.0.0.1:")
    assert f"stopped with at least {row['written']:,} of {USERS:,} keys written: " in said
    assert "look at SENTINEL MASTERS" in said or f":{master.port}. Connection refused" in said


@pytest.mark.few(1)
@pytest.mark.parametrize("lacks", ["", "+wait"])
def test_behind_sentinels_a_user_needs_to_wait_for_replicas(
    lacks: str, mart: Mart, group: Watched, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=2_500))
    rights = [*RIGHTS[0].replace("+msetex", "").split(), *(["+wait"] if not lacks else [])]
    for server in group.servers:
        user = ["ACL", "SETUSER", "etl", "reset", "on", ">pw", *rights]
        group.node(server).execute_command(*user)
        group.node(server).acl_log_reset()
    monkeypatch.setenv("REDIS_USERNAME", "etl")
    monkeypatch.setenv("REDIS_PASSWORD", "pw")

    assert recommendations.sync()["written"] == 2_500
    assert recommendations.sync(dry_run=True)["unchanged"] == 2_500
    assert ("WAIT is refused, allow +wait" in caplog.text) is bool(lacks)
    refused = {one["object"] for one in group.node(group.master()).acl_log()}
    assert refused == ({"wait"} if lacks else set())


@pytest.mark.few(1)
@pytest.mark.parametrize("lacks", ["", "+sentinel|masters", "+sentinel|slaves"])
def test_of_sentinels_two_commands_are_needed_and_no_more(
    lacks: str, mart: Mart, group: Watched
) -> None:
    mart(MANY.format(users=10))
    (line,) = re.findall(r"user default on >\S+ (.+)", DEPLOYMENT)
    rights = [each for each in line.split() if each != lacks]
    assert len(rights) == len(line.split()) - bool(lacks)
    for one in group.sentinels:
        group.sentinel(one).execute_command("ACL", "SETUSER", "default", *rights)

    if not lacks:
        assert recommendations.sync()["written"] == 10
    else:
        with pytest.raises(SyncError, match=r"SENTINEL SLAVES is refused: .* needs \+sentinel"):
            recommendations.sync()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"REDIS_SENTINEL": "nobody"}, "the Sentinels watch no master of that name; set REDIS_SEN"),
        ({"REDIS_SENTINEL_PASSWORD": "no"}, "refuse the login; check REDIS_SENTINEL_PASSWORD"),
        ({"REDIS_SENTINEL_PASSWORD": ""}, "refuse the login; check REDIS_SENTINEL_PASSWORD"),
        ({"REDIS_HOST": "127.0.0.1:1,127.0.0.1:2"}, "is it up, and are REDIS_HOST, REDIS_PORT"),
        ({"REDIS_HOST": "127.0.0.1:{server}"}, "REDIS_PORT must be those of Sentinels"),
        ({"REDIS_SENTINEL": ""}, "this is a Sentinel, which keeps no keys; set REDIS_SENTINEL"),
        ({"REDIS_PASSWORD": "wrong"}, "check REDIS_USERNAME and REDIS_PASSWORD"),
    ],
)
def test_settings_that_lead_to_no_master_are_told_in_one_line(
    given: dict[str, str], said: str, mart: Mart, group: Watched, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    monkeypatch.setenv("RETRY_SECONDS", "0")
    if given.get("REDIS_SENTINEL") == "":
        monkeypatch.setenv("REDIS_PASSWORD", group.environment["REDIS_SENTINEL_PASSWORD"])
    if "{server}" in given.get("REDIS_HOST", ""):
        monkeypatch.delenv("REDIS_SENTINEL_PASSWORD")
    for name, value in given.items():
        monkeypatch.setenv(name, value.format(server=group.servers[0].port))

    with pytest.raises(SyncError) as raised:
        recommendations.sync()

    assert said in str(raised.value)
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (1, False)
    assert "of the sentinels" not in str(raised.value)
