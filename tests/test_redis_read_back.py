"""Some of the keys are looked up when all are written: those that are gone fail the run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import redis
from destinations import last_run
from fixture_types import Mart, Select
from pace import within
from redis_servers import Others
from test_redis import MANY, redis_user

from etl import cache, recommendations
from etl.errors import SyncError

Patch = pytest.MonkeyPatch
Meddle = Callable[[list[str]], object]


@pytest.mark.few(1)
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
@pytest.mark.parametrize("rights", ["+ping +set +mget", "+ping +set +mget +info", "+@all"])
def test_a_server_that_evicts_fails_the_run(
    rights: str, policy: str, *, mart: Mart, others: Others, select: Select
) -> None:
    mart(MANY.format(users=15_000))

    # With less tenacity it says at times that it is full.
    with (
        others.server(
            *("--maxmemory", "2mb", "--maxmemory-policy", policy),
            *("--maxmemory-eviction-tenacity", "100"),
        ) as port,
        redis.Redis(port=port) as server,
        redis_user(server, others.monkeypatch, f"~reco:* {rights}"),
        pytest.raises(SyncError, match=r"written keys: they were evicted") as raised,
    ):
        recommendations.sync()

    said = str(raised.value)
    row = last_run(select, "recommendations")
    assert (row["status"], row["error"]) == ("failed", said)
    assert "raise maxmemory" in said
    assert (f"maxmemory_policy {policy}" in said) is (rights != "+ping +set +mget")
    assert "user_" not in said


@pytest.mark.few(1)
@pytest.mark.parametrize("way", [redis.Redis.delete, lambda keys, key: keys.pexpire(key, 0)])
def test_one_key_that_is_gone_fails_the_run(
    way: Any, mart: Mart, keys: redis.Redis, before_it: Callable[[Meddle], list[int]]
) -> None:
    mart(MANY.format(users=10))
    before_it(lambda sample: way(keys, sample[5]))

    with pytest.raises(SyncError, match="gone are 1 of a sample of 10 written keys"):
        recommendations.sync()


def test_another_writers_value_is_no_loss(
    mart: Mart, keys: redis.Redis, before_it: Callable[[Meddle], list[int]]
) -> None:
    mart(MANY.format(users=10))
    before_it(lambda sample: keys.mset(dict.fromkeys(sample, b"other")))

    assert recommendations.sync()["status"] == "ok"


@pytest.mark.parametrize("total", [0, 1, 999, 1_000, 1_001, 2_500, 300_000])
def test_the_sample_is_spread_over_all_keys_and_no_more_than_a_thousand(total: int) -> None:
    batches = [
        [(str(n), b"") for n in range(start, min(start + 1_000, total))]
        for start in range(0, total, 1_000)
    ]
    sample: list[str] = []

    assert list(cache.sampled(batches, total, 1_000, sample)) == batches

    chosen = list(map(int, sample))
    assert min(total, 500) <= len(chosen) <= 1_000
    assert len({later - one for one, later in pairwise(chosen)}) <= 1


# How they are looked up


@pytest.mark.few(1)
@pytest.mark.parametrize("other", ["+get", "+exists"])
def test_a_user_without_mget_looks_keys_up_by_what_is_allowed(
    other: str,
    mart: Mart,
    keys: redis.Redis,
    before_it: Callable[[Meddle], list[int]],
    monkeypatch: Patch,
) -> None:
    mart(MANY.format(users=1_500))

    with redis_user(keys, monkeypatch, f"~reco:* +ping +set {other}"):
        assert recommendations.sync()["written"] == 1_500
        before_it(lambda sample: keys.delete(sample[5]))
        with pytest.raises(SyncError, match="gone are 1 of a sample of 750 written keys"):
            recommendations.sync()


def test_a_dry_run_compares_by_get_and_not_by_exists(
    mart: Mart, keys: redis.Redis, monkeypatch: Patch
) -> None:
    mart(MANY.format(users=10))
    keys.set("reco:user_1", "another")

    with redis_user(keys, monkeypatch, "~reco:* +ping +get"):
        result = recommendations.sync(dry_run=True)
    with (
        redis_user(keys, monkeypatch, "~reco:* +ping +exists"),
        pytest.raises(SyncError, match=r"a dry run compares values.*allow \+mget"),
    ):
        recommendations.sync(dry_run=True)

    assert (result["inserted"], result["updated"]) == (9, 1)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("way", ["no right", "hangs up"])
def test_no_key_is_written_that_could_not_be_looked_up(
    way: str, dry_run: bool, mart: Mart, keys: redis.Redis, others: Others
) -> None:
    mart(MANY.format(users=10))
    known = dict.fromkeys(("MGET", "GET", "EXISTS")) if way == "hangs up" else {}
    rights = "~reco:* +ping +set" + (" +mget" if known else "")
    others.monkeypatch.setenv("RETRY_SECONDS", "600")  # for nothing

    with (
        redis_user(keys, others.monkeypatch, rights),
        others.proxy(known),
        within(10),
        pytest.raises(SyncError, match="MGET, GET and EXISTS are refused") as raised,
    ):
        recommendations.sync(dry_run=dry_run)

    assert ("allow MGET" if known else "+mget") in str(raised.value)
    assert keys.dbsize() == 0


# Helpers


@pytest.fixture
def before_it(monkeypatch: Patch) -> Callable[[Meddle], list[int]]:
    """Do something with the sample before it is looked up; what comes back are the sizes."""

    def prepare(meddle: Meddle) -> list[int]:
        read_back, sizes = cache.read_back, []

        def meddled(client: Any, sample: list[str], settings: Any) -> None:
            sizes.append(len(sample))
            meddle(sample)
            read_back(client, sample, settings)

        monkeypatch.setattr(cache, "read_back", meddled)
        return sizes

    return prepare
