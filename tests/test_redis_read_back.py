"""Some of the keys are looked up when all are written: those that are gone fail the run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import redis
from destinations import Mart, Select, in_shards, last_run
from redis_servers import Others
from test_redis import MANY, redis_user

from etl import cache, recommendations
from etl.errors import SyncError

Patch = pytest.MonkeyPatch
Meddle = Callable[[list[str]], object]


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
@pytest.mark.parametrize("rights", ["+ping +set +mget", "+ping +set +mget +info", "+@all"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_server_that_evicts_fails_the_run(
    shards: int, rights: str, policy: str, *, mart: Mart, others: Others, select: Select
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
        pytest.raises(SyncError, match=r"written keys are gone: they were evicted") as raised,
    ):
        in_shards(recommendations.sync, shards)

    said = str(raised.value)
    row = last_run(select, "recommendations")
    assert (row["status"], row["error"]) == ("failed", said)
    assert "raise maxmemory" in said
    assert (f"maxmemory_policy {policy}" in said) is (rights != "+ping +set +mget")
    assert "user_" not in said


def test_keys_of_an_earlier_shard_are_looked_up_as_well(
    mart: Mart, keys: redis.Redis, before_it: Callable[[Meddle], list[int]]
) -> None:
    mart(MANY.format(users=6_000))
    samples = before_it(lambda sample: len(sample) > 500 and keys.delete(*sample[:400]))

    with pytest.raises(SyncError, match=r"400 of a sample of \d+ written keys are gone"):
        in_shards(recommendations.sync, 2)

    assert 400 < samples[0] <= 500
    assert 800 < samples[1] <= 1_000


@pytest.mark.parametrize("way", [redis.Redis.delete, lambda keys, key: keys.pexpire(key, 0)])
def test_one_key_that_is_gone_fails_the_run(
    way: Any, mart: Mart, keys: redis.Redis, before_it: Callable[[Meddle], list[int]]
) -> None:
    mart(MANY.format(users=10))
    before_it(lambda sample: way(keys, sample[5]))

    with pytest.raises(SyncError, match="1 of a sample of 10 written keys are gone"):
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


@pytest.mark.parametrize("way", ["no right", "hangs up"])
def test_keys_that_cannot_be_looked_up_are_written_with_a_warning(
    way: str,
    *,
    mart: Mart,
    keys: redis.Redis,
    others: Others,
    caplog: pytest.LogCaptureFixture,
    select: Select,
) -> None:
    mart(MANY.format(users=10))
    rights = "~reco:* +ping +set" + (" +mget" if way == "hangs up" else "")

    with (
        redis_user(keys, others.monkeypatch, rights),
        others.proxy({"MGET": None} if way == "hangs up" else {}),
    ):
        result = recommendations.sync()

    assert (result["written"], len(result["warnings"])) == (10, 1)
    assert "allow +mget" in result["warnings"][0]
    assert [one.getMessage().partition(" ")[0] for one in caplog.records] == ["keys.unseen"]
    assert last_run(select, "recommendations")["warning"] == result["warnings"][0]


# Helpers


@pytest.fixture
def before_it(monkeypatch: Patch) -> Callable[[Meddle], list[int]]:
    """Do something with the sample before it is looked up; what comes back are the sizes."""

    def prepare(meddle: Meddle) -> list[int]:
        read_back, sizes = cache.read_back, []

        def meddled(client: Any, sample: list[str], settings: Any) -> str | None:
            sizes.append(len(sample))
            meddle(sample)
            return read_back(client, sample, settings)

        monkeypatch.setattr(cache, "read_back", meddled)
        return sizes

    return prepare
