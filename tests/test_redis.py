"""How the keys get into Redis: the command, the rights, TLS, and what is said when it fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT, command, results
from fixture_types import Mart
from pace import HANG, within
from redis_servers import Others
from tls import Certificates, certificates, tls_proxy

from demo.embedded import Servers
from etl import cache, recommendations
from etl.errors import SyncError, UsageError
from etl.settings import Settings

Patch = pytest.MonkeyPatch

DAY = 24 * 60 * 60

MANY = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'user_' || n AS user_id, 'Rome' AS destination, 0.9 AS score
    FROM range({users}) AS r(n)
"""

# The lines of docs/deployment.md: for one server, and for a cluster.
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
RIGHTS = re.findall(r"user etl on >\S+ (.+)", DEPLOYMENT)


# MSETEX where there is one


def test_keys_are_set_a_thousand_at_a_time_where_the_server_can(
    mart: Mart, keys: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=2_500))
    caplog.set_level(logging.INFO, "etl")
    keys.config_resetstat()

    result = recommendations.sync()

    assert _calls(keys) == {"msetex": 3}
    assert "cache.written" in caplog.text
    assert "keys=2500 by=MSETEX" in caplog.text
    all_are_there(keys, 2_500)
    assert result["written"] == 2_500


def test_a_server_without_msetex_gets_the_same_keys_one_by_one(
    mart: Mart, others: Others, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY.format(users=2_500))
    caplog.set_level(logging.INFO, "etl")

    with (
        others.server("--rename-command", "MSETEX", "") as port,
        redis.Redis(port=port) as keys,
    ):
        result = recommendations.sync()

        assert _calls(keys) == {"set": 2_500}
        all_are_there(keys, 2_500)
    assert "keys=2500 by=SET" in caplog.text
    assert result["written"] == 2_500


def test_a_user_who_may_not_msetex_sets_the_keys_one_by_one(
    mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=1_500))

    with redis_user(keys, monkeypatch, "~reco:* +ping +set +mget"):
        result = recommendations.sync()

    assert _calls(keys) == {"set": 1_500}
    assert result["written"] == 1_500


@pytest.mark.parametrize(
    ("rights", "written"),
    [("+ping +set +mget", 1_112), ("+ping +set +mget +msetex", 1_000)],
    ids=["SET", "MSETEX"],
)
def test_every_batch_on_its_way_is_counted_when_one_is_refused(
    rights: str,
    written: int,
    mart: Mart,
    keys: redis.Redis,
    monkeypatch: Patch,
) -> None:
    # The batches are of user_0 to user_1105 and so on, in the order of the text.
    mart(MANY.format(users=12_000))

    rights = f"%R~reco:* %W~reco:user_1* {rights}"
    with redis_user(keys, monkeypatch, rights), pytest.raises(SyncError) as raised:
        recommendations.sync()

    there = int(keys.dbsize())
    assert there >= written
    used = keys.info("commandstats")
    tried = sum(
        used[f"cmdstat_{name}"]["calls"] + used[f"cmdstat_{name}"]["rejected_calls"]
        for name in ("set", "msetex")
        if f"cmdstat_{name}" in used
    )
    assert tried <= 1 + 6 * (1 if "+msetex" in rights else cache.BATCH_KEYS)  # no more was sent
    assert f"stopped with {there:,} of 12,000 keys written" in str(raised.value)
    assert raised.value.result is not None
    assert raised.value.result["written"] == there


@pytest.mark.parametrize(
    "rights", ["+ping +set +mget", "+ping +set +mget +msetex"], ids=["SET", "MSETEX"]
)
def test_a_full_server_is_counted_exactly(
    rights: str, mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=30_000))
    keys.config_set("maxmemory", keys.info("memory")["used_memory"] + 1_500_000)
    try:
        with redis_user(keys, monkeypatch, f"~reco:* {rights}"), pytest.raises(SyncError) as raised:
            recommendations.sync()
    finally:
        keys.config_set("maxmemory", 0)

    there = int(keys.dbsize())
    assert 0 < there < 30_000
    assert f"stopped with {there:,} of 30,000 keys written" in str(raised.value)
    assert "raise maxmemory" in str(raised.value)


# The least rights


def test_the_rights_of_the_manual_are_enough(
    mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    rights = RIGHTS[0]

    with redis_user(keys, monkeypatch, rights):
        written = recommendations.sync()["written"]
        unchanged = recommendations.sync(dry_run=True)["unchanged"]
        refused = keys.acl_log()

    assert (written, unchanged) == (10, 10)
    assert _calls(keys) == {"msetex": 1}
    assert refused == []  # nor is anything asked for that the line does not give


@pytest.mark.few(3)
@pytest.mark.parametrize("right", ["~reco:*", "+ping", "+set", "+mget", "+msetex"])
def test_none_of_the_rights_of_the_manual_is_too_many(
    right: str, mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    line = RIGHTS[0]
    rights = [each for each in line.split() if each != right]
    if right == "+set":  # what remains where there is no MSETEX
        rights.remove("+msetex")

    assert len(rights) < len(line.split())
    with redis_user(keys, monkeypatch, " ".join(rights)):
        if right == "+msetex":
            recommendations.sync()
            assert _calls(keys) == {"set": 10}
        else:
            with pytest.raises(SyncError, match=r"the user needs ~reco:\* \+ping"):
                recommendations.sync()


def test_another_database_takes_the_right_to_select_it(
    mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    line = RIGHTS[0]
    monkeypatch.setenv("REDIS_DB", "3")

    with redis_user(keys, monkeypatch, line), pytest.raises(SyncError, match=r"\+select"):
        recommendations.sync()
    with redis_user(keys, monkeypatch, f"{line} +select"):
        assert recommendations.sync()["written"] == 10


# TLS


def test_a_whole_sync_goes_over_verified_tls(
    papers: Certificates, servers: Servers, mart: Mart, keys: redis.Redis
) -> None:
    mart(MANY.format(users=2_500))

    with tls_proxy(servers.redis_port, papers) as port:
        finished = command("etl", "--sync", "recommendations", "--json", **_tls(port, papers))

    assert finished.returncode == 0, finished.stderr
    assert results(finished)[0]["written"] == 2_500
    all_are_there(keys, 2_500)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        pytest.param(
            {"REDIS_CA_FILE": "{other_ca_file}"},
            "certificate verify failed",
            id="another authority",
        ),
        pytest.param({"REDIS_CA_FILE": ""}, "certificate verify failed", id="no authority"),
        pytest.param({"REDIS_HOST": "127.0.0.1"}, "not valid for '127.0.0.1'", id="another name"),
        pytest.param(
            {"REDIS_CA_FILE": "{key_file}"}, "no certificate or crl found", id="no certificate"
        ),
        pytest.param(
            {"REDIS_CERT_FILE": "{client_cert}", "REDIS_KEY_FILE": "{key_file}"},
            "key values mismatch",
            id="another's key",
        ),
    ],
)
def test_who_cannot_be_trusted_is_not_talked_to(
    wrong: dict[str, str], said: str, papers: Certificates, servers: Servers, monkeypatch: Patch
) -> None:
    given = {name: text.format(**vars(papers)) for name, text in wrong.items()}

    with tls_proxy(servers.redis_port, papers) as port:
        message = _refusal(_tls(port, papers) | given, monkeypatch)

    assert said in message.lower()
    assert "check REDIS_TLS, REDIS_HOST, REDIS_CA_FILE" in message


def test_a_server_that_asks_for_a_certificate_gets_ours(
    papers: Certificates,
    servers: Servers,
    mart: Mart,
    monkeypatch: Patch,
) -> None:
    mart(MANY.format(users=10))
    ours = {"REDIS_CERT_FILE": str(papers.client_cert), "REDIS_KEY_FILE": str(papers.client_key)}

    with tls_proxy(servers.redis_port, papers, ask_client=True) as port:
        # To be hung up on may also be the network's fault, so it is tried again.
        message = _refusal(_tls(port, papers) | {"RETRY_SECONDS": "0"}, monkeypatch)
        _set(monkeypatch, _tls(port, papers) | ours)
        result = recommendations.sync()

    assert "REDIS_CERT_FILE" in message
    assert result["written"] == 10


def test_a_server_with_tls_says_nothing_without(
    papers: Certificates,
    servers: Servers,
    environment: Path,
    monkeypatch: Patch,
) -> None:
    with tls_proxy(servers.redis_port, papers) as port:
        given = {"REDIS_HOST": "localhost", "REDIS_PORT": str(port), "RETRY_SECONDS": "0"}
        message = _refusal(given, monkeypatch)

    assert "REDIS_TLS right?" in message


@pytest.mark.parametrize("name", ["REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"])
def test_a_file_that_cannot_be_read_is_named(
    name: str,
    papers: Certificates,
    servers: Servers,
    environment: Path,
    monkeypatch: Patch,
) -> None:
    given = _tls(servers.redis_port, papers) | {name: "/nowhere/a.pem"}

    message = _refusal(given, monkeypatch, start=name)

    assert message == f"{name}: /nowhere/a.pem: No such file or directory; correct it"


def test_certificates_without_tls_are_not_passed_over(
    papers: Certificates, environment: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("REDIS_CA_FILE", str(papers.ca_file))

    with pytest.raises(UsageError, match="REDIS_CA_FILE is set but REDIS_TLS is not true"):
        cache.connect(Settings.from_environment())


# Helpers


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


@contextmanager
def redis_user(keys: Any, monkeypatch: Patch, rights: str) -> Iterator[None]:
    """Runs are by a Redis user with these rights, and nothing was counted or refused so far."""
    keys.execute_command("ACL", "SETUSER", "etl", "reset", "on", ">pw", *rights.split())
    keys.acl_log_reset()
    keys.config_resetstat()
    try:
        with monkeypatch.context() as environment:
            _set(environment, {"REDIS_USERNAME": "etl", "REDIS_PASSWORD": "pw"})
            yield
    finally:
        keys.acl_deluser("etl")


def _calls(keys: redis.Redis) -> dict[str, int]:
    """How often keys were set, by the command; what was refused does not count."""
    used = keys.info("commandstats")
    calls = {
        name: used[f"cmdstat_{name}"]["calls"] - used[f"cmdstat_{name}"]["failed_calls"]
        for name in ("set", "msetex")
        if f"cmdstat_{name}" in used
    }
    return {name: count for name, count in calls.items() if count}


def all_are_there(keys: redis.Redis, count: int) -> None:
    """Every key is there, with its value and its TTL."""
    names: Any = keys.keys()
    assert {name.decode() for name in names} == {f"reco:user_{n}" for n in range(count)}
    assert set(keys.mget(names)) == {b'{"destinations":["Rome"],"score":0.9}'}
    assert all(DAY - 60 < int(keys.ttl(name)) <= DAY for name in names)


def _tls(port: int, papers: Certificates) -> dict[str, str]:
    return {
        "REDIS_HOST": "localhost",
        "REDIS_PORT": str(port),
        "REDIS_TLS": "true",
        "REDIS_CA_FILE": str(papers.ca_file),
        "RETRY_SECONDS": "600",  # for nothing
    }


def _refusal(given: dict[str, str], monkeypatch: Patch, start: str = "Redis (") -> str:
    """What is said where there is to be no connection: one line, at once."""
    with monkeypatch.context() as environment:
        _set(environment, given)
        with within(HANG), pytest.raises(SyncError) as raised:
            cache.connect(Settings.from_environment())
    message = str(raised.value)
    assert message.startswith(start)
    assert "\n" not in message
    return message


def _set(environment: Patch, given: dict[str, str]) -> None:
    for name, value in given.items():
        environment.setenv(name, value)
