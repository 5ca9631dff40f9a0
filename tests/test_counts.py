"""Counts are what the database answered; what it dropped in silence fails the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pytest
from conftest import segments
from destinations import digest, execute, last_run
from fixture_types import Mart, Select
from test_email_histories import during_the_merge

from etl import email_triggers, postgres, prune, user_segments, warehouse
from etl.errors import SyncError
from etl.plumbing import queries
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection

OLD = "now() - interval '90 days'"
CROWD = ", ".join(f"('crowd{n}', 'regular', 1, 0, 0)" for n in range(60))


# What the trigger is for, and a row of the mart to come.
SEGMENTS = {
    "INSERT": "('new', 'regular', 1, 0, 0)",
    "UPDATE": "('known', 'at_risk', 1, 0, 0)",
    "DELETE": "('other', 'regular', 1, 0, 0)",
}


@pytest.mark.few(1)
@pytest.mark.parametrize("event", SEGMENTS)
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_user_that_a_trigger_drops_fails_the_run(
    mart: Mart, select: Select, event: str, partitioned: bool
) -> None:
    if partitioned:
        partition()
    mart(segments(f"('known', 'regular', 1, 0, 0), {CROWD}"))
    user_segments.sync()
    table = "crm.user_segments_1" if partitioned else "crm.user_segments"
    drop_in(table, event, "('new', 'known')")
    mart(segments(f"{SEGMENTS[event]}, ('more', 'regular', 1, 0, 0), {CROWD}"))

    before = digest(select)
    mirror = event == "DELETE"
    said = failure(lambda: user_segments.sync(force=True, delete_missing=mirror))

    assert "crm.user_segments: 1 row to be written or deleted stayed as before" in said
    assert "trigger swallow (function crm.swallow)" in said
    assert digest(select) == before
    assert (last_run(select)["status"], last_run(select)["error"]) == ("failed", said)


STAMP = (
    "CREATE FUNCTION crm.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$"
)
ALTERED = {
    "another type rounds": [
        "ALTER TABLE crm.user_segments ALTER lifetime_value TYPE numeric(9, 0)"
    ],
    "a trigger changes": [
        STAMP.format("NEW.segment := upper(NEW.segment);"),
        "CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON crm.user_segments FOR EACH ROW"
        " EXECUTE FUNCTION crm.stamp()",
    ],
    "a trigger takes out again": [
        STAMP.format("DELETE FROM crm.user_segments WHERE user_id = 'b';"),
        "CREATE TRIGGER stamp AFTER INSERT ON crm.user_segments EXECUTE FUNCTION crm.stamp()",
    ],
    "a view hides": [
        "ALTER TABLE crm.user_segments RENAME TO users",
        "CREATE VIEW crm.user_segments AS SELECT * FROM crm.users WHERE user_id = 'a'",
    ],
}


@pytest.mark.few(2)
@pytest.mark.parametrize("cause", ALTERED)
def test_users_who_are_there_otherwise_than_written_fail_the_run(
    mart: Mart, select: Select, cause: str
) -> None:
    """They would be written again at every run, or be missing for ever."""
    execute(*ALTERED[cause])
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 9.5)"))

    said = failure(user_segments.sync)

    assert re.search(r"(1 row is|2 rows are) not there as written, so all was rolled back", said)
    assert said.endswith("trigger stamp (function crm.stamp)" if "trigger" in cause else "none")
    assert not select("SELECT FROM crm.user_segments")


def test_a_trigger_that_keeps_the_users_as_they_are_is_let_be(mart: Mart, select: Select) -> None:
    execute(
        STAMP.format("NEW.synced_at := clock_timestamp();"),
        "CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON crm.user_segments FOR EACH ROW"
        " EXECUTE FUNCTION crm.stamp()",
    )
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 9.5)"))

    assert user_segments.sync()["inserted"] == 2
    assert user_segments.sync()["unchanged"] == 2


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_dry_run_tells_it_too(mart: Mart, event: str) -> None:
    mart(segments("('known', 'regular', 1, 0, 0)"))
    user_segments.sync()
    drop_in("crm.user_segments", event, "('known', 'new')")
    mart(segments("('known', 'at_risk', 1, 0, 0), ('new', 'regular', 1, 0, 0)"))

    assert "trigger swallow" in failure(lambda: user_segments.sync(dry_run=True))


def test_a_partitioned_target_is_counted_by_kind(mart: Mart) -> None:
    partition()
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 2, 0, 0), ('c', 'x', 1, 0, 0)"))

    result = user_segments.sync()

    assert (result["inserted"], result["updated"], result["unchanged"]) == (1, 2, 0)


def test_a_user_who_appears_during_the_merge_counts_as_updated(database: Connection) -> None:
    """Its snapshot is older than the user, so that only what RETURNING answers can tell."""
    frame = pl.DataFrame({"user_id": ["a", "b"], "segment": "x"}).with_columns(
        pl.lit(1, pl.Int64).alias("total_searches"),
        pl.lit(0, pl.Int64).alias("total_conversions"),
        pl.lit(0).cast(pl.Decimal(14, 2)).alias("lifetime_value"),
    )
    table = frame.to_arrow()
    postgres.copy_to_temp(
        database, "staging", warehouse.Batches(table.schema, iter(table.to_batches()))
    )
    with postgres.session(Settings.from_environment(), "tests") as other:
        postgres.execute(
            other,
            "INSERT INTO crm.user_segments (user_id, segment, total_searches, total_conversions,"
            " lifetime_value, segment_changed_at)"
            " VALUES ('b', 'new_user', 1, 0, 0, now() - interval '1 day')",
        )
        with ThreadPoolExecutor() as pool:
            merging = pool.submit(postgres.merge, database, user_segments._MERGE, False)
            waits = "SELECT FROM pg_catalog.pg_locks WHERE NOT granted"
            while not postgres.select(other, waits):
                assert not merging.done()
            other.commit()
            counts = merging.result()

    assert (counts["inserted"], counts["updated"]) == (1, 1)


MAILS = {
    "queued": ("INSERT", "('a', 'at_risk', 1, 0, 0), ('b', 'at_risk', 1, 0, 0)"),
    "cancelled": ("UPDATE", "('a', 'regular', 1, 0, 0)"),
    "refreshed": ("UPDATE", "('a', 'at_risk', 2, 0, 0)"),
    "pending again": ("UPDATE", "('a', 'at_risk', 1, 0, 0)"),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("outcome", MAILS)
def test_a_mail_that_a_trigger_drops_fails_the_run(
    mart: Mart, select: Select, outcome: str
) -> None:
    event, after = MAILS[outcome]
    mart(segments("('a', 'at_risk', 1, 0, 0)"), *visit())
    email_triggers.sync()
    if outcome == "pending again":
        execute("UPDATE crm.email_queue SET status = 'cancelled', updated_at = now()")
    drop_in("crm.email_queue", event, "('a', 'b')")
    mart(segments(after), *visit())

    before = digest(select)
    said = failure(email_triggers.sync)

    assert "crm.email_queue: 1 row to be written or deleted stayed as before" in said
    assert "trigger swallow (function crm.swallow)" in said
    assert digest(select) == before
    assert last_run(select, "email_triggers")["status"] == "failed"


ALTERED_MAILS = {
    "taken out again": (
        "AFTER INSERT",
        "DELETE FROM crm.email_queue WHERE user_id = NEW.user_id;",
        "('a', 'at_risk', 1, 0, 0), ('b', 'at_risk', 1, 0, 0)",
    ),
    "queued as sent": (
        "BEFORE INSERT",
        "NEW.status := 'sent';",
        "('a', 'at_risk', 1, 0, 0), ('b', 'at_risk', 1, 0, 0)",
    ),
    "not cancelled": ("BEFORE UPDATE", "NEW.status := OLD.status;", "('a', 'regular', 1, 0, 0)"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("outcome", ALTERED_MAILS)
def test_a_mail_that_is_there_otherwise_than_written_fails_the_run(
    mart: Mart, select: Select, outcome: str
) -> None:
    event, change, after = ALTERED_MAILS[outcome]
    mart(segments("('a', 'at_risk', 1, 0, 0)"), *visit())
    email_triggers.sync()
    execute(
        STAMP.format(change),
        f"CREATE TRIGGER stamp {event} ON crm.email_queue FOR EACH ROW"
        " EXECUTE FUNCTION crm.stamp()",
    )
    mart(segments(after), *visit())
    before = digest(select)

    said = failure(email_triggers.sync)

    assert said.startswith("crm.email_queue: 1 row is not there as written")
    assert said.endswith("trigger stamp (function crm.stamp)")
    assert digest(select) == before


def test_a_mail_held_out_that_a_trigger_drops_fails_the_run(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row nobody could tell what the mails do."""
    monkeypatch.setenv("EMAIL_HOLDOUT", "0.5")
    mart(segments(", ".join(f"('u{n}', 'at_risk', 1, 0, 0)" for n in range(10))), *visit())
    drop_in("crm.email_queue", "INSERT", "('holdout')", key="reason")

    said = failure(email_triggers.sync)

    assert "trigger swallow (function crm.swallow)" in said
    assert not select("SELECT FROM crm.email_queue")


def test_a_trigger_that_keeps_the_mails_as_they_are_is_let_be(mart: Mart) -> None:
    execute(
        STAMP.format("NEW.updated_at := clock_timestamp();"),
        "CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON crm.email_queue FOR EACH ROW"
        " EXECUTE FUNCTION crm.stamp()",
    )
    mart(segments("('a', 'at_risk', 1, 0, 0)"), *visit())
    assert email_triggers.sync()["inserted"] == 1
    mart(segments("('a', 'regular', 1, 0, 0)"), *visit())
    assert email_triggers.sync()["cancelled"] == 1


def test_a_mail_that_another_program_queued_meanwhile_is_held_back(
    mart: Mart, select: Select
) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'at_risk', 1, 0, 0)"), *visit())
    theirs = (
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload)"
        " VALUES ('a', 'newsletter', now(), 1, '{}') ON CONFLICT DO NOTHING"
    )

    with during_the_merge(before=lambda _: execute(theirs)):
        result = email_triggers.sync()

    assert (result["inserted"], result["held_back"]) == (1, 1)
    assert len(select("SELECT FROM crm.email_queue")) == 2


def test_a_mail_that_another_program_took_meanwhile_is_left_to_it(
    mart: Mart, select: Select
) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0)"), *visit())
    email_triggers.sync()
    mart(segments("('a', 'regular', 1, 0, 0)"), *visit())
    take = "UPDATE crm.email_queue SET status = 'processing', updated_at = clock_timestamp()"

    with during_the_merge(before=lambda _: execute(take)):
        result = email_triggers.sync()

    assert result["cancelled"] == 0
    assert select("SELECT status FROM crm.email_queue") == [{"status": "processing"}]


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_run_whose_ledger_row_is_dropped_fails(mart: Mart, select: Select, event: str) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    drop_in("etl.sync_runs", event, "('user_segments')", key="sync")

    said = failure(user_segments.sync)

    assert "etl.sync_runs: 1 row to be" in said
    assert "trigger swallow" in said
    assert not select("SELECT FROM crm.user_segments")


def test_a_run_whose_rejects_are_dropped_fails(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    mart(segments("('a', 'regular', 1, 0, 0), ('b', NULL, 1, 0, 0), ('c', NULL, 1, 0, 0)"))
    drop_in("etl.rejected_rows", "INSERT", "('b')", key="key")

    said = failure(user_segments.sync)

    assert "etl.rejected_rows: 1 row to be" in said
    assert not select("SELECT FROM crm.user_segments")


@pytest.mark.parametrize("table", ["crm.user_segments", "etl.rejected_rows", "etl.sync_runs"])
def test_a_rule_that_drops_rows_fails_the_run_and_is_named(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setenv("GUARD_MAX_REJECTED", "1")
    mart(segments("('a', 'regular', 1, 0, 0), ('b', NULL, 1, 0, 0)"))
    execute(f"CREATE RULE quiet AS ON INSERT TO {table} DO INSTEAD NOTHING")

    said = failure(user_segments.sync)

    assert "rule quiet" in said
    assert not select("SELECT FROM crm.user_segments")


@pytest.mark.parametrize(
    ("table", "fill"),
    [
        (
            "etl.rejected_rows",
            "INSERT INTO etl.rejected_rows (run_id, sync, key, reasons, row, rejected_at)"
            f" SELECT 'r', 's', n, '{{}}', '{{}}', {OLD} FROM unnest('{{a,b}}'::text[]) AS n",
        ),
        (
            "etl.sync_runs",
            "INSERT INTO etl.sync_runs (run_id, sync, shard, shards, status, started_at,"
            " finished_at, forced, version, host, started_by)"
            f" SELECT n, 's', 0, 1, 'ok', {OLD} + make_interval(secs => ascii(n)), {OLD}, false,"
            " '', '', '' FROM unnest('{a,b,c}'::text[]) AS n",
        ),
        (
            "crm.email_queue",
            "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload,"
            " status, created_at, updated_at, sent_at)"
            " SELECT n, 'abandoned_search', d, 1, '{}', 'sent', d, d, d"
            f" FROM unnest('{{a,b}}'::text[]) AS n, (SELECT {OLD}) AS o(d)",
        ),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_what_prune_cannot_drop_fails_it(select: Select, table: str, fill: str) -> None:
    execute(fill)
    key = {"etl.rejected_rows": "key", "etl.sync_runs": "run_id"}.get(table, "user_id")
    drop_in(table, "DELETE", "('a')", key=key)
    before = len(select(f"SELECT FROM {table}"))

    said = failure(lambda: prune.prune(30))

    assert f"{table}: 1 row to be written or deleted stayed as before" in said
    assert "trigger swallow" in said
    assert len(select(f"SELECT FROM {table}")) == before


# File, what it says, what it would say, and what the run says to that.
RENAMED = [
    ("user_segments", "AS changed_segment", "AS moving", "changed_segment is missing, moving is"),
    ("user_segments", "AS updated,", "AS updated, 1 AS more,", "more is not known"),
    ("user_segments", "AS unwritten", "AS gone", "unwritten is missing"),
    ("user_segments", ") AS updated,\n    count", ") AS changed,\n    count", "updated is missing"),
    ("user_segments_mirror", "AS deleted", "AS removed", "deleted is missing"),
    ("email_triggers", "AS queued", "AS adding", "queued is missing"),
    (
        "email_triggers",
        "    cancelled_by_mart,\n",
        "    NULL AS cancelled_by_mart,\n",
        "cancelled_by_mart is null",
    ),
]


@pytest.mark.few(3)
@pytest.mark.parametrize("renamed", RENAMED, ids=lambda renamed: renamed[2].strip())
def test_counts_have_the_names_that_the_run_expects(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch, renamed: tuple[str, str, str, str]
) -> None:
    file, was, now, said = renamed
    mart(segments("('z', 'at_risk', 1, 0, 0)"))
    user_segments.sync()
    mart(segments("('z', 'at_risk', 1, 0, 0), ('a', 'at_risk', 1, 0, 0)"))
    change(monkeypatch, file, was, now)

    error = failure(
        email_triggers.sync
        if file == "email_triggers"
        else lambda: user_segments.sync(delete_missing=True)
    )

    assert f"sql/postgres/{file}.sql: wrong counts: " in error
    assert said in error
    assert select("SELECT user_id FROM crm.user_segments") == [{"user_id": "z"}]
    assert not select("SELECT user_id, template, status, created_at FROM crm.email_queue")


def test_more_or_fewer_rows_than_were_sent_are_noticed(
    database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pa.record_batch({"user_id": ["a"]})

    def twice(sent: Any) -> Any:
        """The driver is handed one more than was counted."""
        yield from (*sent, batch)

    from_batches = pa.RecordBatchReader.from_batches
    reader = SimpleNamespace(from_batches=lambda schema, sent: from_batches(schema, twice(sent)))
    monkeypatch.setattr("etl.postgres.copy.pa", SimpleNamespace(RecordBatchReader=reader))

    with pytest.raises(SyncError, match="1 row was sent and 2 taken"):
        postgres.copy_to_temp(database, "staging", warehouse.Batches(batch.schema, iter([batch])))


# Helpers


def failure(run: Callable[[], object]) -> str:
    with pytest.raises(SyncError) as failed:
        run()
    assert failed.value.exit_code == 1
    return str(failed.value)


def drop_in(table: str, event: str, keys: str, key: str = "user_id") -> None:
    """A trigger as an unlucky admin writes it: for some rows it returns NULL."""
    row = "OLD" if event == "DELETE" else "NEW"
    execute(
        f"""
        CREATE FUNCTION crm.swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF {row}.{key} IN {keys} THEN RETURN NULL; END IF;
            RETURN {row};
        END $$
        """,
        f"CREATE TRIGGER swallow BEFORE {event} ON {table} FOR EACH ROW"
        " EXECUTE FUNCTION crm.swallow()",
    )


def partition() -> None:
    """Make crm.user_segments a table of one partition, which has the triggers of the tests."""
    execute(
        "ALTER TABLE crm.user_segments RENAME TO user_segments_1",
        "CREATE TABLE crm.user_segments (LIKE crm.user_segments_1 INCLUDING ALL)"
        " PARTITION BY HASH (user_id)",
        "ALTER TABLE crm.user_segments ATTACH PARTITION crm.user_segments_1"
        " FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )


def visit() -> list[str]:
    """One visit for all, the same whenever the mart is built."""
    return ["UPDATE mart_user_segments SET last_seen_at = date_trunc('day', now())"]


def change(monkeypatch: pytest.MonkeyPatch, file: str, was: str, now: str) -> None:
    """Let one of the service's SQL files say something else."""
    load = queries.load

    def changed(*parts: str) -> str:
        text = load(*parts)
        if parts != ("postgres", file):
            return text
        assert was in text
        return text.replace(was, now)

    monkeypatch.setattr(queries, "load", changed)
