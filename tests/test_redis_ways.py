"""The ways to a Redis server: a Unix socket, several hosts, TLS to a cluster and to Sentinels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from fixture_types import Mart
from pace import soon, within
from redis_cluster import SLOTS
from redis_servers import Others, started
from test_redis import MANY, all_are_there

from demo.embedded import Servers
from demo.embedded.server import free_port, hand_over
from etl import recommendations
from etl.errors import SyncError, UsageError
from etl.settings import Settings

Patch = pytest.MonkeyPatch

# A node listens 10,000 above its port as well, which must lie below 32768, too (see free_port).
_CLUSTERED = range(22_001, 22_700)


# A Unix socket


def test_keys_go_through_a_unix_socket(
    mart: Mart, others: Others, folder: Path, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=2_500))
    path = str(folder / "redis.sock")

    with others.server("--unixsocket", path, "--unixsocketperm", "777") as port:
        monkeypatch.setenv("REDIS_PORT", "1")
        monkeypatch.setenv("REDIS_HOST", path)
        assert recommendations.sync()["written"] == 2_500
        assert recommendations.sync(dry_run=True)["unchanged"] == 2_500
        with redis.Redis(port=port) as keys:
            all_are_there(keys, 2_500)


def test_another_database_through_a_socket(
    mart: Mart, others: Others, folder: Path, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    path = str(folder / "redis.sock")

    with others.server("--unixsocket", path, "--unixsocketperm", "777") as port:
        monkeypatch.setenv("REDIS_HOST", path)
        monkeypatch.setenv("REDIS_DB", "3")
        recommendations.sync()
        with redis.Redis(port=port, db=3) as keys:
            assert keys.dbsize() == 10


def test_a_socket_that_is_not_there_is_one_line(mart: Mart, monkeypatch: Patch) -> None:
    mart(MANY.format(users=10))
    monkeypatch.setenv("REDIS_HOST", "/nowhere/redis.sock")

    with pytest.raises(SyncError) as raised:
        recommendations.sync()

    assert str(raised.value).startswith("Redis (/nowhere/redis.sock, database 0): ")
    assert "No such file or directory" in str(raised.value)
    assert str(raised.value).endswith("is it up, and is REDIS_HOST the path of its socket?")
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (1, False)


def test_a_socket_has_no_tls(mart: Mart, monkeypatch: Patch) -> None:
    mart(MANY.format(users=10))
    monkeypatch.setenv("REDIS_HOST", "/nowhere/redis.sock")
    monkeypatch.setenv("REDIS_TLS", "true")

    with pytest.raises(UsageError, match="a Unix socket, which has no TLS; set REDIS_TLS=false"):
        recommendations.sync()


def test_the_socket_of_a_clusters_node_is_refused(
    mart: Mart, others: Others, servers: Servers, folder: Path, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    path = str(folder / "redis.sock")
    monkeypatch.setenv("REDIS_HOST", path)

    with (
        others.server("--unixsocket", path, "--unixsocketperm", "777", "--cluster-enabled", "yes"),
        pytest.raises(SyncError, match="set REDIS_HOST to the host names of some nodes"),
    ):
        recommendations.sync()


# Several hosts


def test_the_first_host_that_answers_will_do(
    mart: Mart, others: Others, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))

    with others.server() as port, redis.Redis(port=port) as keys:
        monkeypatch.setenv("REDIS_HOST", f"127.0.0.1:1,no.invalid:{port}, localhost")
        assert recommendations.sync()["written"] == keys.dbsize() == 10


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("redis", [("redis", 6379)]),
        ("redis:7000", [("redis", 7000)]),
        ("a:7000,b:7001, c", [("a", 7000), ("b", 7001), ("c", 6379)]),
        ("::1", [("::1", 6379)]),
        ("[::1]:7000,[fe80::1]", [("::1", 7000), ("fe80::1", 6379)]),
        ("10.0.0.1,", [("10.0.0.1", 6379)]),
    ],
)
def test_hosts_come_with_their_port_or_with_the_port_of_the_setting(
    host: str, addresses: list[tuple[str, int]]
) -> None:
    assert Settings(redis_host=host).redis_addresses == addresses


# TLS


def test_keys_go_to_a_cluster_over_verified_tls(
    papers: Papers, servers: Servers, mart: Mart, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=2_500))
    ports = [free_port(_CLUSTERED) for _ in range(3)]

    with ExitStack() as stack:
        options = ["--cluster-enabled", "yes", "--tls-cluster", "yes", *_encrypted(papers)]
        nodes = []
        for number, port in enumerate(ports):
            own = [*options, "--tls-port", str(port)]
            node: Any = redis.Redis(
                port=stack.enter_context(started(servers, own, "redis-server")).port
            )
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
            nodes.append(node)
        assert soon(lambda: all(map(_is_whole, nodes)), 20)
        _point_at(f"127.0.0.1:1,127.0.0.1:{ports[1]}", papers, monkeypatch)

        assert recommendations.sync()["written"] == 2_500
        assert recommendations.sync(dry_run=True)["unchanged"] == 2_500
        assert sum(node.dbsize() for node in nodes) == 2_500
        assert "certificate verify failed" in _refusal(papers, monkeypatch)


def test_keys_go_to_the_sentinels_master_over_verified_tls(
    papers: Papers, servers: Servers, mart: Mart, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=2_500))
    port, watcher = free_port(_CLUSTERED), free_port(range(23_000, 24_000))
    encrypted = [*_encrypted(papers), "--tls-replication", "yes"]

    with (
        started(servers, [*encrypted, "--tls-port", str(port)], "redis-server") as master,
        started(
            servers,
            [*encrypted, "--tls-port", str(watcher)],
            "redis-sentinel",
            f"sentinel monitor mymaster 127.0.0.1 {port} 1\n",
        ),
        redis.Redis(port=master.port) as keys,
    ):
        monkeypatch.setenv("REDIS_SENTINEL", "mymaster")
        _point_at(f"127.0.0.1:{watcher}", papers, monkeypatch)

        assert recommendations.sync()["written"] == keys.dbsize() == 2_500
        assert "certificate verify failed" in _refusal(papers, monkeypatch)


# Helpers

Papers = dict[str, Path]


@pytest.fixture
def folder(servers: Servers) -> Iterator[Path]:
    """A folder that belongs to the user of a server."""
    with tempfile.TemporaryDirectory(prefix="etl-socket-") as name:
        hand_over(Path(name), servers.redis.account)
        yield Path(name)


@pytest.fixture(scope="module")
def papers(servers: Servers) -> Iterator[Papers]:
    """An authority, a certificate for 127.0.0.1 with its key, and a foreign authority."""
    with tempfile.TemporaryDirectory(prefix="etl-tls-") as name:
        ours = trustme.CA()
        leaf = ours.issue_cert("127.0.0.1")
        pems = {
            "ca": ours.cert_pem,
            "other": trustme.CA().cert_pem,
            "cert": leaf.cert_chain_pems[0],
            "key": leaf.private_key_pem,
        }
        files = {one: Path(name) / f"{one}.pem" for one in pems}
        for one, pem in pems.items():
            pem.write_to_path(files[one])
        for path in (Path(name), *files.values()):
            hand_over(path, servers.redis.account)
        yield files


def _encrypted(papers: Papers) -> list[str]:
    files = ("--tls-cert-file", "cert"), ("--tls-key-file", "key"), ("--tls-ca-cert-file", "ca")
    given = [text for option, name in files for text in (option, str(papers[name]))]
    return [*given, "--tls-auth-clients", "no"]


def _point_at(hosts: str, papers: Papers, monkeypatch: Patch) -> None:
    monkeypatch.setenv("REDIS_HOST", hosts)
    monkeypatch.setenv("REDIS_TLS", "true")
    monkeypatch.setenv("REDIS_CA_FILE", str(papers["ca"]))


def _refusal(papers: Papers, monkeypatch: Patch) -> str:
    """What is said when a foreign authority is trusted; at once."""
    monkeypatch.setenv("REDIS_CA_FILE", str(papers["other"]))
    monkeypatch.setenv("RETRY_SECONDS", "60")
    with within(10), pytest.raises(SyncError) as raised:
        recommendations.sync()
    assert "check REDIS_TLS, REDIS_HOST, REDIS_CA_FILE" in str(raised.value)
    return str(raised.value)


def _is_whole(node: Any) -> bool:
    return (
        len(node.execute_command("CLUSTER SLOTS")) == 3
        and node.cluster("INFO")["cluster_state"] == "ok"
    )
