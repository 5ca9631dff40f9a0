"""recommendations: mart_recommendations -> Redis reco:<user_id>, for a day."""

from __future__ import annotations

import json
import logging
from typing import Any, cast

import polars as pl
import pytest
import redis
from destinations import in_shards
from fixture_types import Mart, Select
from marts import MANY, recommended
from polars.testing import assert_frame_equal

from demo.embedded import Servers
from etl import cache, recommendations
from etl.errors import Refused, SyncError
from etl.recommendations import to_key_values, transform
from etl.settings import Settings
from etl.warehouse import stream

DAY = 24 * 60 * 60

ODD = [
    *("with space", "tab\there", "line\nfeed", "\r\nSET x 1\r\n", "*", "?", "[a-z]", "{tag}"),
    *("quote'", 'double"', "back\\slash", "a:b", "%s", "$6\r\nfoobar\r\n", " ", "😀", "käyttäjä"),
    *(
        "İstanbul",
        "e\u0301",
        "\u202eright to left",
        "x" * 255,
        "0",
        "null",
        "../..",
        "\u007f\u0001",
    ),
]


# What is written


def test_key_value_and_ttl_are_those_of_the_contract(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('u1', 'Miami', 0.9, 1), ('u1', 'Cancun', 0.8, 2), ('u2', 'Rome', 1.0, 1)"))

    result = recommendations.sync()

    assert keys.get("reco:u1") == b'{"destinations":["Miami","Cancun"],"score":0.85}'
    assert keys.get("reco:u2") == b'{"destinations":["Rome"],"score":1.0}'
    assert _names(keys) == [b"reco:u1", b"reco:u2"]
    assert all(DAY - 5 < ttl <= DAY for ttl in _ttls(keys).values())
    assert (result["status"], result["extracted"], result["rejected"]) == ("ok", 3, 0)
    assert result["written"] == 2
    assert result["inserted"] is result["updated"] is result["unchanged"] is None


@pytest.mark.parametrize(
    ("rows", "destinations"),
    [
        pytest.param("('A', 0.6, 2), ('B', 0.9, 3), ('C', 0.7, 1)", ["C", "A", "B"], id="rank"),
        pytest.param("('A', 0.6, 1), ('B', 0.9, 1)", ["B", "A"], id="same rank, score"),
        pytest.param("('B', 0.9, 1), ('A', 0.9, 1)", ["A", "B"], id="same score, name"),
        pytest.param("('A', 0.9, NULL), ('B', 0.6, 10)", ["B", "A"], id="some without rank"),
        pytest.param("('a', 0.9, 10), ('b', 0.8, 9)", ["b", "a"], id="ranks are numbers"),
    ],
)
def test_the_best_come_first(
    rows: str, destinations: list[str], mart: Mart, keys: redis.Redis
) -> None:
    mart(recommended(rows.replace("(", "('u', ")))

    recommendations.sync()

    assert _value(keys, "u")["destinations"] == destinations


def test_without_ranks_the_order_is_score_then_name(mart: Mart, keys: redis.Redis) -> None:
    mart(
        recommended("('u', 'C', 0.8, 1), ('u', 'B', 0.9, 2), ('u', 'A', 0.8, 3)"),
        "ALTER TABLE mart_recommendations DROP rank",
    )

    recommendations.sync()

    assert _value(keys, "u")["destinations"] == ["B", "A", "C"]


def test_at_most_ten_are_kept_and_scored(mart: Mart, keys: redis.Redis) -> None:
    rows = [f"('u', 'D{n:02}', {0.99 - n / 100}, {n})" for n in range(1, 13)]
    mart(recommended(", ".join(rows)))

    recommendations.sync()

    assert _value(keys, "u") == {
        "destinations": [f"D{n:02}" for n in range(1, 11)],
        "score": 0.935,  # the mean of 0.98 to 0.89
    }


def test_only_scores_above_one_half_count(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('u', 'A', 0.5, 1), ('u', 'B', 0.500001, 2), ('u', 'C', 0.499999, 3)"))

    recommendations.sync()

    assert _value(keys, "u") == {"destinations": ["B"], "score": 0.5}


def test_the_score_is_the_mean_to_four_places(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('u', 'A', 1.0, 1), ('u', 'B', 0.7, 2), ('u', 'C', 0.6, 3)"))

    recommendations.sync()

    assert keys.get("reco:u") == b'{"destinations":["A","B","C"],"score":0.7667}'


def test_a_user_with_nothing_above_one_half_gets_no_key(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('good', 'A', 0.9, 1), ('poor', 'A', 0.5, 1), ('poor', 'B', 0.1, 2)"))

    result = recommendations.sync()

    assert _names(keys) == [b"reco:good"]
    assert (result["extracted"], result["written"]) == (3, 1)


def test_a_mart_with_nothing_above_one_half_writes_nothing(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('poor', 'A', 0.5, 1)"))

    assert recommendations.sync(force=True)["written"] == 0
    assert recommendations.sync(force=True, dry_run=True)["inserted"] == 0
    assert _names(keys) == []


def test_ids_and_names_come_out_exactly(mart: Mart, keys: redis.Redis) -> None:
    rows = [f"({_sql(one)}, {_sql(one)}, 0.9, 1)" for one in ODD]
    mart(recommended(", ".join(rows)))

    result = recommendations.sync()

    assert (result["rejected"], result["written"]) == (0, len(ODD))
    assert set(_names(keys)) == {f"reco:{one}".encode() for one in ODD}
    for one in ODD:
        assert _value(keys, one) == {"destinations": [one], "score": 0.9}


@pytest.mark.parametrize("kind", ["DOUBLE", "FLOAT", "DECIMAL(5, 4)", "DECIMAL(38, 10)"])
def test_scores_may_be_of_any_number_type(kind: str, mart: Mart, keys: redis.Redis) -> None:
    mart(
        recommended("('u', 'A', 0.75, 1), ('u', 'B', 0.5, 2)"),
        f"ALTER TABLE mart_recommendations ALTER recommendation_score TYPE {kind}",
        "ALTER TABLE mart_recommendations ALTER rank TYPE INTEGER",
    )

    recommendations.sync()

    assert keys.get("reco:u") == b'{"destinations":["A"],"score":0.75}'


def test_a_view_with_the_required_columns_under_their_other_names_will_do(
    mart: Mart, keys: redis.Redis
) -> None:
    mart(
        "CREATE TABLE t AS SELECT 'u' AS user_id, 'A' AS destination, 0.9 AS score",
        "CREATE VIEW mart_recommendations AS SELECT * FROM t",
    )

    assert recommendations.sync()["written"] == 1
    assert keys.get("reco:u") == b'{"destinations":["A"],"score":0.9}'


def test_a_bad_row_costs_that_row_and_not_its_user(mart: Mart, keys: redis.Redis) -> None:
    bad = [
        *("('u', 'B', NULL, 2)", "('u', 'C', 'nan'::DOUBLE, 3)", "('u', 'D', 1.01, 4)"),
        *("('u', 'E', -0.1, 5)", "('u', NULL, 0.9, 6)", "('u', '', 0.9, 7)", "(NULL, 'F', 0.9, 1)"),
        *("('', 'F', 0.9, 1)", f"('{'x' * 256}', 'F', 0.9, 1)", "('u', 'G', 0.9, 0)"),
        *("('u', 'H', 0.9, 8)", "('u', 'H', 0.8, 9)", "(chr(0), 'A', 0.9, 1)"),
    ]
    mart(recommended(", ".join(["('u', 'A', 0.9, 1)", *bad])))

    result = recommendations.sync(force=True)

    assert (result["extracted"], result["rejected"], result["written"]) == (14, 13, 1)
    assert _names(keys) == [b"reco:u"]
    assert _value(keys, "u") == {"destinations": ["A"], "score": 0.9}


# Running again


def test_the_ttl_is_renewed_where_nothing_changed(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('u', 'A', 0.9, 1)"))
    recommendations.sync()
    keys.expire("reco:u", 10)

    result = recommendations.sync()

    assert DAY - 5 < _ttls(keys)[b"reco:u"] <= DAY
    assert result["written"] == 1


def test_values_are_overwritten_and_other_keys_left_alone(mart: Mart, keys: redis.Redis) -> None:
    mart(recommended("('changed', 'A', 0.9, 1), ('left', 'A', 0.9, 1), ('fell', 'A', 0.9, 1)"))
    recommendations.sync()
    keys.set("session:1", b"x")
    for key in ("reco:left", "reco:fell"):
        keys.expire(key, 100)

    mart(recommended("('changed', 'B', 0.8, 1), ('fell', 'A', 0.4, 1)"))
    recommendations.sync()

    assert _value(keys, "changed") == {"destinations": ["B"], "score": 0.8}
    assert _value(keys, "left") == _value(keys, "fell") == {"destinations": ["A"], "score": 0.9}
    assert 90 < _ttls(keys)[b"reco:left"] <= 100  # it expires by itself
    assert 90 < _ttls(keys)[b"reco:fell"] <= 100
    assert (keys.get("session:1"), keys.ttl("session:1")) == (b"x", -1)


def test_shards_come_to_the_same(mart: Mart, keys: redis.Redis, select: Select) -> None:
    mart(MANY.format(users=3_000))
    whole = recommendations.sync()
    written = _dump(keys)
    keys.flushall()

    walked = in_shards(recommendations.sync, 4)

    assert {key: value for key, (value, _) in _dump(keys).items()} == {
        key: value for key, (value, _) in written.items()
    }
    assert whole["written"] == walked["written"] == len(written) == 3_000
    assert whole["extracted"] == walked["extracted"] == 6_000
    per_shard = select("SELECT written FROM etl.sync_runs WHERE shards = 4")
    assert len(per_shard) == 4
    assert sum(shard["written"] for shard in per_shard) == 3_000


# In batches


@pytest.mark.slow
def test_a_large_mart_is_read_in_batches_and_comes_to_the_same(
    mart: Mart, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(MANY.format(users=9_000))
    whole = recommendations.sync()
    at_once = {key: value for key, (value, _) in _dump(keys).items()}
    keys.flushall()

    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)
    result = recommendations.sync()

    assert {key: value for key, (value, _) in _dump(keys).items()} == at_once
    counts = ("extracted", "rejected", "written")
    assert [dict(result)[name] for name in counts] == [dict(whole)[name] for name in counts]


def test_what_is_wrong_in_any_batch_is_rejected_and_counted(
    mart: Mart, keys: redis.Redis, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [
        *("(NULL, 'A', 0.9, 1)", "('', 'A', 0.9, 1)", "('user_7', 'Destination 0', 0.9, 1)"),
        *(f"('bad{n}', 'A', 2.0, 1)" for n in range(20)),
    ]
    mart(
        MANY.format(users=9_000),
        *(
            "INSERT INTO mart_recommendations SELECT user_id, destination, score, rank, now()"
            f" FROM (VALUES {row}) AS v(user_id, destination, score, rank)"
            for row in bad
        ),
    )
    monkeypatch.setenv("REJECT_LIMIT", "15")
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)

    result = recommendations.sync()

    # Both rows of the key that comes twice; user_7 has another.
    assert (result["extracted"], result["rejected"], result["written"]) == (18_023, 24, 9_000)
    assert _value(keys, "user_7")["destinations"] == ["Destination 1"]
    assert select("SELECT count(*) AS kept FROM etl.rejected_rows") == [{"kept": 15}]


def test_the_guards_judge_all_batches_before_the_first_key(
    mart: Mart, keys: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(
        MANY.format(users=9_000),
        # All of the last rows, in the order of the key.
        "INSERT INTO mart_recommendations"
        " SELECT 'z', 'Destination ' || n, 2.0, 1, now() FROM range(4500) AS r(n)",
    )
    monkeypatch.setattr(stream, "BATCH_ROWS", 2_048)

    with pytest.raises(Refused, match="4,500 of 22,500 rows"):
        recommendations.sync()

    assert _names(keys) == []


# Dry run


def test_a_dry_run_reads_only_and_foretells_the_counts(
    mart: Mart, keys: redis.Redis, select: Select
) -> None:
    mart(
        recommended(
            "('same1', 'A', 0.9, 1), ('same2', 'A', 0.9, 1), ('same3', 'A', 0.9, 1),"
            " ('changed', 'A', 0.9, 1), ('left', 'A', 0.9, 1)"
        )
    )
    recommendations.sync()
    for key in _names(keys):
        keys.pexpire(key, 50_000_000)
    mart(
        recommended(
            "('same1', 'A', 0.9, 1), ('same2', 'A', 0.9, 1), ('same3', 'A', 0.9, 1),"
            " ('changed', 'B', 0.9, 1), ('new1', 'A', 0.9, 1), ('new2', 'A', 0.9, 1),"
            " ('poor', 'A', 0.1, 1)"
        )
    )
    before, runs = _dump(keys), select("SELECT * FROM etl.sync_runs")
    keys.config_resetstat()

    dry = recommendations.sync(dry_run=True)

    used = {name.partition("|")[0] for name in keys.info("commandstats")}

    assert {name: dry[name] for name in ("inserted", "updated", "unchanged", "written")} == {
        "inserted": 2,
        "updated": 1,
        "unchanged": 3,
        "written": None,
    }
    unmoved = _dump(keys)
    assert {key: value for key, (value, _) in unmoved.items()} == {
        key: value for key, (value, _) in before.items()
    }
    assert all(49_000_000 < ttl <= 50_000_000 for _, ttl in unmoved.values())
    assert select("SELECT * FROM etl.sync_runs") == runs
    assert used <= {f"cmdstat_{name}" for name in ("config", "hello", "client", "ping", "mget")}

    real = recommendations.sync()

    after = _dump(keys)
    assert real["written"] == 6
    assert (real["extracted"], real["rejected"]) == (dry["extracted"], dry["rejected"])
    assert len(after.keys() - before.keys()) == dry["inserted"]
    changed = [key for key in before.keys() & after.keys() if before[key][0] != after[key][0]]
    assert len(changed) == dry["updated"]


# Redis says no


def test_out_of_memory_tells_how_many_keys_were_written(
    mart: Mart, keys: redis.Redis, select: Select
) -> None:
    mart(MANY.format(users=20_000))
    room = keys.info("memory")["used_memory"] + 2_000_000
    keys.config_set("maxmemory-policy", "noeviction")
    keys.config_set("maxmemory", room)
    try:
        with pytest.raises(SyncError) as raised:
            recommendations.sync()
    finally:
        keys.config_set("maxmemory", 0)

    written = int(keys.dbsize())
    assert 0 < written < 20_000
    assert f"stopped with {written:,} of 20,000 keys written" in str(raised.value)
    assert "raise maxmemory" in str(raised.value)
    _is_one_line(raised.value, written)
    (row,) = select("SELECT status, written, error FROM etl.sync_runs")
    assert row == {"status": "failed", "written": written, "error": str(raised.value)}

    assert recommendations.sync()["written"] == int(keys.dbsize()) == 20_000


@pytest.mark.parametrize(
    ("pattern", "written"), [("other:*", 0), ("reco:user_1*", 111)], ids=["none", "some"]
)
def test_keys_that_the_acl_forbids_are_counted_out(
    pattern: str, written: int, mart: Mart, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(MANY.format(users=1_000))
    rights = f"on >pw %R~reco:* %W~{pattern} +ping +set +mget"
    keys.execute_command("ACL", "SETUSER", "few", *rights.split())
    try:
        monkeypatch.setenv("REDIS_USERNAME", "few")
        monkeypatch.setenv("REDIS_PASSWORD", "pw")
        with pytest.raises(SyncError) as raised:
            recommendations.sync()
    finally:
        keys.acl_deluser("few")

    assert f"stopped with {written} of 1,000 keys written" in str(raised.value)
    assert "the user needs ~reco:* +ping +set +mget" in str(raised.value)
    assert "user_" not in str(raised.value)  # nor any other user data
    assert int(keys.dbsize()) == written
    _is_one_line(raised.value, written)


def test_a_replica_is_no_place_to_write(mart: Mart, keys: redis.Redis, servers: Servers) -> None:
    mart(recommended("('u', 'A', 0.9, 1)"))
    keys.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(SyncError, match="set REDIS_HOST to the primary") as raised:
            recommendations.sync()
    finally:
        keys.replicaof("NO", "ONE")

    _is_one_line(raised.value, 0)


def test_no_error_shows_the_command_that_redis_py_puts_into_it(servers: Servers) -> None:
    error = redis.ResponseError("Command # 1 (SET reco:u1 secret) of pipeline caused error: odd.")

    message = str(cache.to_sync_error(error, Settings.from_environment(servers.environment)))

    assert message == f"Redis (127.0.0.1:{servers.redis_port}/0): odd; run it again"


# Postgres is only the ledger here


def test_without_postgres_it_warns_once_and_still_writes(
    mart: Mart,
    keys: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mart(recommended("('u', 'A', 0.9, 1)"))
    caplog.set_level(logging.WARNING, "etl")

    with monkeypatch.context() as away:
        away.setenv("POSTGRES_PORT", "1")
        result = recommendations.sync()

    assert (result["status"], result["written"]) == ("ok", 1)
    assert _names(keys) == [b"reco:u"]
    (warning,) = caplog.records
    assert warning.getMessage().startswith("ledger.unreachable ")


def test_a_run_is_in_the_ledger(mart: Mart, select: Select) -> None:
    mart(recommended("('u', 'A', 0.9, 1), ('v', 'A', 0.9, 1)"))

    result = recommendations.sync()

    assert select(
        "SELECT run_id, sync, status, extracted, rejected, written FROM etl.sync_runs"
    ) == [
        {
            "run_id": result["run_id"],
            "sync": "recommendations",
            "status": "ok",
            "extracted": 2,
            "rejected": 0,
            "written": 2,
        }
    ]


# transform by itself


def test_transform_is_pure() -> None:
    mart = _frame(("b", "Rome", 0.6, 2), ("b", "Oslo", 0.9, 1), ("a", "Lima", 0.51, None))
    before = mart.clone()

    once, twice = transform(mart), transform(mart.reverse())

    expected = pl.DataFrame(
        {"user_id": ["a", "b"], "destinations": [["Lima"], ["Oslo", "Rome"]], "score": [0.51, 0.75]}
    )
    assert_frame_equal(once, expected)
    assert_frame_equal(twice, expected)
    assert_frame_equal(mart, before)


def test_transform_of_nothing_is_nothing() -> None:
    reshaped = transform(_frame())

    assert reshaped.schema == {
        "user_id": pl.String,
        "destinations": pl.List(pl.String),
        "score": pl.Float64,
    }
    assert list(to_key_values(reshaped)) == []


def test_values_come_in_batches() -> None:
    many = transform(_frame(*((f"u{n:04}", "Rome", 0.9, 1) for n in range(2_500))))

    batches = list(to_key_values(many))

    assert [len(batch) for batch in batches] == [1_000, 1_000, 500]
    assert batches[2][-1] == ("reco:u2499", b'{"destinations":["Rome"],"score":0.9}')


# Helpers


def _sql(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _value(keys: redis.Redis, user_id: str) -> Any:
    value = keys.get(f"reco:{user_id}")
    assert isinstance(value, bytes)
    return json.loads(value)


def _names(keys: redis.Redis) -> list[bytes]:
    return sorted(cast("list[bytes]", keys.keys()))


def _ttls(keys: redis.Redis) -> dict[bytes, int]:
    return {key: int(keys.ttl(key)) for key in _names(keys)}


def _dump(keys: redis.Redis) -> dict[bytes, tuple[Any, int]]:
    """Every key with its value and the milliseconds it has left."""
    return {key: (keys.dump(key), int(keys.pttl(key))) for key in _names(keys)}


def _is_one_line(error: SyncError, written: int) -> None:
    assert "\n" not in str(error)
    assert (error.exit_code, error.status) == (1, "failed")
    assert error.result is not None
    assert (error.result["written"], error.result["error"]) == (written, str(error))


def _frame(*rows: tuple[str, str, float, int | None]) -> pl.DataFrame:
    schema = {
        "user_id": pl.String,
        "destination": pl.String,
        "score": pl.Float64,
        "rank": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
