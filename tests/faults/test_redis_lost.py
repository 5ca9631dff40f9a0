"""Redis lost, frozen or not ready: a run goes on where it was, or ends with an exact count."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
from destinations import last_run
from fixture_types import Mart, Select
from pace import HANG, soon, within
from proxy import Proxy
from scenes import FULL, later, start
from tls import certificates

from demo.embedded import Servers
from etl import cache, recommendations
from etl.errors import SyncError
from etl.settings import Settings

Patch = pytest.MonkeyPatch
SLOW = pytest.mark.skipif(not FULL, reason="takes 5 to 10 seconds: ETL_FAULTS=all")

USERS = 20_000
MANY = f"""
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'user_' || n AS user_id, 'Rome' AS destination, 0.9 AS score
    FROM range({USERS}) AS r(n)
"""


# Lost and found again


@pytest.mark.slow
def test_a_server_that_is_away_is_waited_for_and_that_is_told_once(
    mart: Mart, servers: Servers, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    mart(MANY)
    monkeypatch.setenv("RETRY_SECONDS", "20")

    def come_back() -> None:
        assert soon(lambda: bool(_warnings(caplog)), HANG)
        time.sleep(3)
        servers.start_redis()

    with _away(servers):
        later(0, come_back)
        result = recommendations.sync()

    assert result["written"] == USERS
    assert len(_warnings(caplog)) == 1
    assert _warnings(caplog)[0].startswith("redis.lost ")
    assert "Connection refused" in _warnings(caplog)[0]


@pytest.mark.few(2)
@pytest.mark.parametrize("way", ["cut", "reset", "refuse", "unanswered"])
@pytest.mark.parametrize("command", ["MSETEX", "SET"])
def test_writing_goes_on_at_the_batch_that_was_lost(
    command: str, way: str, mart: Mart, keys: redis.Redis, patch: _Patched
) -> None:
    mart(MANY)
    with patch(command) as proxy:
        _in_the_middle(proxy, way)
        keys.config_resetstat()
        result = recommendations.sync()

    assert result["written"] == USERS == int(keys.dbsize())
    batches = keys.info("commandstats")["cmdstat_" + command.lower()]["calls"]
    once = USERS if command == "SET" else USERS // cache.BATCH_KEYS
    ahead = 6 * cache.BATCH_KEYS if command == "SET" else 6
    assert once <= batches <= once + ahead  # it did not begin again from the start


@pytest.mark.slow
def test_writing_goes_on_when_the_server_is_back_after_three_seconds(
    mart: Mart,
    keys: redis.Redis,
    servers: Servers,
    patch: _Patched,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mart(MANY)

    def restart() -> None:
        servers.stop_redis()  # which saves
        later(3, servers.start_redis)

    with patch("MSETEX") as proxy:
        proxy.when("client", b"reco:user_5", b"reco:user_7", do=restart)
        result = recommendations.sync()

    assert result["written"] == USERS == int(keys.dbsize())
    assert [text.partition(" ")[0] for text in _warnings(caplog)] == ["redis.lost"]


def test_a_dry_run_goes_on_as_well(mart: Mart, keys: redis.Redis, patch: _Patched) -> None:
    mart(MANY)
    recommendations.sync()

    with patch("MSETEX") as proxy:
        _in_the_middle(proxy, "refuse")
        result = recommendations.sync(dry_run=True)

    assert result["unchanged"] == USERS


@pytest.mark.slow
def test_a_server_that_loads_its_keys_is_waited_for(
    mart: Mart, keys: redis.Redis, servers: Servers, monkeypatch: Patch
) -> None:
    mart(MANY)
    keys.mset({f"old:{n}": "x" * 100 for n in range(3_000)})
    monkeypatch.setenv("RETRY_SECONDS", "20")
    slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]

    with _away(servers):
        loading = replace(servers.redis, command=[*servers.redis.command, *slow], process=None)
        starter = threading.Thread(target=loading.start)
        starter.start()
        try:
            assert soon(lambda: _says(servers.redis_port).startswith(b"-LOADING"), 10)
            with monkeypatch.context() as at_once:
                at_once.setenv("RETRY_SECONDS", "0")
                with pytest.raises(SyncError, match="loading the dataset in memory"):
                    recommendations.sync()
            assert recommendations.sync()["written"] == USERS
        finally:
            starter.join()
            loading.stop()


def test_a_server_that_is_busy_with_a_script_is_waited_for(
    mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY)
    with _endless_script(keys):
        with pytest.raises(SyncError, match="BUSY"):
            recommendations.sync()

        monkeypatch.setenv("RETRY_SECONDS", "20")
        kill: Any = keys.script_kill
        later(1.5, kill)
        assert recommendations.sync()["written"] == USERS


# Lost for good


@pytest.mark.few(1)
@pytest.mark.parametrize("command", ["MSETEX", "SET"])
def test_a_server_that_stays_away_is_given_up_in_time_with_what_is_known(
    command: str, mart: Mart, keys: redis.Redis, select: Select, patch: _Patched
) -> None:
    mart(MANY)
    with patch(command, seconds=2) as proxy:
        _in_the_middle(proxy, "gone")
        begun = time.monotonic()
        with within(6), pytest.raises(SyncError) as raised:
            recommendations.sync()

    assert time.monotonic() - begun >= 2
    row = last_run(select, "recommendations")
    assert 0 < row["written"] <= int(keys.dbsize()) < USERS
    assert f"stopped with at least {row['written']:,} of {USERS:,} keys" in str(raised.value)
    assert (row["status"], row["error"]) == ("failed", str(raised.value))
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (1, False)


@pytest.mark.few(1)
@pytest.mark.parametrize("moment", [pytest.param("connecting", marks=SLOW), "writing"])
def test_a_frozen_server_ends_in_a_timeout(
    moment: str, mart: Mart, servers: Servers, patch: _Patched
) -> None:
    mart(MANY)
    with patch("MSETEX", seconds=1) as proxy, _thawed(servers):
        freeze = partial(_redis_process(servers).send_signal, signal.SIGSTOP)
        if moment == "connecting":
            freeze()
        else:
            proxy.when("client", b"reco:user_7", do=freeze)
        # It is noticed, tried again, and given up.
        with within(5 + 1 + 5 + 2), pytest.raises(SyncError, match="Timeout"):
            recommendations.sync()


@SLOW
def test_a_server_that_thaws_is_written_to_the_end(
    mart: Mart, keys: redis.Redis, servers: Servers, patch: _Patched
) -> None:
    mart(MANY)
    with patch("MSETEX") as proxy, _thawed(servers):
        process = _redis_process(servers)
        proxy.when("client", b"reco:user_7", do=lambda: process.send_signal(signal.SIGSTOP))
        later(7, lambda: process.send_signal(signal.SIGCONT))
        result = recommendations.sync()

    assert result["written"] == USERS == int(keys.dbsize())


@SLOW
def test_a_server_without_tls_is_given_up(
    servers: Servers, environment: Path, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REDIS_TLS", "true")
    monkeypatch.setenv("REDIS_CA_FILE", str(certificates(tmp_path).ca_file))

    with pytest.raises(SyncError, match=r"Timeout .*REDIS_TLS right\?"):
        cache.connect(Settings.from_environment())


# What does not heal


@pytest.mark.few(2)
@pytest.mark.parametrize("fault", ["password", "user", "database", "keys", "full", "replica"])
def test_what_cannot_heal_is_not_tried_again(
    fault: str,
    mart: Mart,
    keys: redis.Redis,
    monkeypatch: Patch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mart(MANY)
    monkeypatch.setenv("RETRY_SECONDS", "600")

    with _fault(fault, keys, monkeypatch), within(HANG), pytest.raises(SyncError, match="Redis"):
        recommendations.sync()

    assert _warnings(caplog) == []


# Stopped while it waits


@pytest.mark.few(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("fault", ["frozen", "away"])
def test_a_run_that_waits_for_redis_can_be_stopped(
    fault: str,
    number: int,
    code: int,
    mart: Mart,
    servers: Servers,
) -> None:
    mart(MANY)
    with Proxy(servers.redis_port) as proxy:
        proxy.stall() if fault == "frozen" else proxy.refuse()
        environment = {"REDIS_PORT": str(proxy.port), "RETRY_SECONDS": "600", "LOG_FORMAT": "text"}
        with start("etl.recommendations", **environment) as process:
            assert process.stderr is not None
            sign = "mart.read" if fault == "frozen" else "redis.lost"
            for line in process.stderr:
                if sign in line:
                    break
            time.sleep(0.7)
            with within(2):
                process.send_signal(number)
                _, said = process.communicate(timeout=HANG)

    assert process.returncode == code
    assert "Traceback" not in said


# Helpers


class _Patched(Protocol):
    """Let runs go by a proxy, and write keys by this command."""

    def __call__(self, command: str, seconds: float = 20) -> AbstractContextManager[Proxy]: ...


@pytest.fixture
def patch(servers: Servers, keys: redis.Redis, monkeypatch: Patch) -> Iterator[_Patched]:
    @contextmanager
    def proxied(command: str, seconds: float = 20) -> Iterator[Proxy]:
        with Proxy(servers.redis_port) as proxy, monkeypatch.context() as environment:
            environment.setenv("REDIS_PORT", str(proxy.port))
            environment.setenv("RETRY_SECONDS", str(seconds))
            if command == "SET":
                environment.setenv("REDIS_USERNAME", "etl")
                environment.setenv("REDIS_PASSWORD", "pw")
            yield proxy

    rights = ["+ping", "+set", "+mget"]
    keys.acl_setuser("etl", enabled=True, passwords=["+pw"], keys=["*"], commands=rights)
    yield proxied
    keys.acl_deluser("etl")


def _in_the_middle(proxy: Proxy, way: str) -> None:
    """Lose the server after some batches; only `gone` is for good."""
    if way == "refuse":

        def fault() -> None:
            proxy.refuse()
            later(1, proxy.restore)
    else:
        fault = {"gone": proxy.refuse, "reset": proxy.reset}.get(way, proxy.cut)
    # `unanswered`: the server gets the batch, but its answer is lost.
    proxy.when("client", b"reco:user_5", b"reco:user_9", do=fault, deliver=way == "unanswered")


@contextmanager
def _away(servers: Servers) -> Iterator[None]:
    """The server is stopped, and runs again in the end."""
    servers.stop_redis()
    try:
        yield
    finally:
        servers.start_redis()


@contextmanager
def _thawed(servers: Servers) -> Iterator[None]:
    try:
        yield
    finally:
        _redis_process(servers).send_signal(signal.SIGCONT)


def _redis_process(servers: Servers) -> Any:
    assert servers.redis.process is not None
    return servers.redis.process


@contextmanager
def _endless_script(keys: redis.Redis) -> Iterator[None]:
    """A script keeps the server busy, until somebody kills it."""
    other: Any = redis.Redis(port=keys.connection_pool.connection_kwargs["port"], socket_timeout=60)

    def spin() -> None:
        with suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    keys.config_set("busy-reply-threshold", 50)
    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert soon(
            lambda: _says(other.connection_pool.connection_kwargs["port"])[:5] == b"-BUSY", 5
        )
        yield
    finally:
        with suppress(redis.ResponseError):
            keys.script_kill()
        thread.join()
        keys.config_set("busy-reply-threshold", 5_000)


@contextmanager
def _fault(fault: str, keys: redis.Redis, monkeypatch: Patch) -> Iterator[None]:
    """Something is wrong that no waiting helps."""
    settings = {
        "password": {"REDIS_PASSWORD": "wrong"},
        "user": {"REDIS_USERNAME": "nobody", "REDIS_PASSWORD": "wrong"},
        "database": {"REDIS_DB": "9999"},
        "keys": {"REDIS_USERNAME": "few", "REDIS_PASSWORD": "pw"},
    }
    keys.acl_setuser("few", enabled=True, passwords=["+pw"], commands=["+ping", "+set"])
    if fault == "password":
        keys.config_set("requirepass", "right")
    elif fault == "full":
        keys.config_set("maxmemory", 1)
    elif fault == "replica":
        keys.replicaof("127.0.0.1", "1")
    try:
        with monkeypatch.context() as environment:
            for name, value in settings.get(fault, {}).items():
                environment.setenv(name, value)
            yield
    finally:
        keys.config_set("requirepass", "")
        keys.config_set("maxmemory", 0)
        keys.replicaof("NO", "ONE")
        keys.acl_deluser("few")


def _says(port: int) -> bytes:
    """What the server answers to a PING."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
    except OSError:
        return b""


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
