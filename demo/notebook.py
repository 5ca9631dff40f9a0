"""What notebooks/explore.ipynb looks at: marts, the CRM, and a demo where none is named."""

from __future__ import annotations

import atexit
import datetime as dt
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl

from demo import sample
from demo.embedded import Servers, running
from etl import email_triggers, postgres, recommendations, user_segments, warehouse
from etl.init_db import init_db
from etl.mail.rules import RULES
from etl.plumbing import queries
from etl.run.contract import Validator
from etl.settings import Settings

if TYPE_CHECKING:
    import dataframely as dy

_DAY = dt.timedelta(days=1)
_started: list[Servers] = []  # kept when the cell is run again


def start() -> Servers | None:
    """Start a demo unless DUCKDB_PATH names a warehouse; it ends with the kernel.

    It has today's sample, and a CRM that was synced two weeks and one week ago.
    """
    pl.Config(fmt_str_lengths=80, tbl_hide_column_data_types=True, thousands_separator=",")
    if not _started and "DUCKDB_PATH" in os.environ:
        return None
    if not _started:
        demo = ExitStack()
        atexit.register(demo.close)
        folder = Path(demo.enter_context(TemporaryDirectory(prefix="searchflow-notebook-")))
        folder.chmod(0o755)  # as root, the servers run as another user, who must get in
        _started.append(demo.enter_context(running(folder, settings={"fsync": "off"})))
        _started[0].set_up(os.environ)
        _sync_as_in_the_weeks_before(folder)
    return _started[0]


def _sync_as_in_the_weeks_before(folder: Path) -> None:
    init_db()
    today = folder / "today.duckdb"
    sample.build(today)
    for days in (14, 7):
        os.environ["DUCKDB_PATH"] = str(folder / f"{days}_days_ago.duckdb")
        with duckdb.connect(os.environ["DUCKDB_PATH"]) as connection:
            connection.execute(f"ATTACH '{today}' AS today (READ_ONLY)")
            connection.execute(f"SET VARIABLE days = {days}")
            connection.execute(queries.load("sample", "earlier"))
        user_segments.sync()
    recommendations.sync()
    os.environ["DUCKDB_PATH"] = str(today)


def settings() -> Settings:
    """Read the settings and print which warehouse and servers they name."""
    found = Settings.from_environment()
    print(f"{found.duckdb_path}\n{found.postgres_address}\n{found.redis_address}")  # noqa: T201
    return found


def read(sync: str, contract: type[dy.Schema]) -> tuple[pl.DataFrame, pl.DataFrame, dt.datetime]:
    """Return a mart's good rows, the keys of the rejected ones, and when dbt built it."""
    now, known = dt.datetime.now(dt.UTC), Settings.from_environment()
    keys: list[pl.DataFrame] = []
    checked = Validator(contract, known.reject_limit, now, add_rejected=keys.append)
    rows = checked.valid_rows(warehouse.read(sync, contract, known))
    total, built_at = checked.rejects().total, checked.built_at or now
    said = f"{len(rows):,} rows, {total:,} rejected, built {built_at:%d %b %H:%M} UTC"
    print(f"{sync}: {said}")  # noqa: T201
    return rows, pl.concat([rows.select(contract.primary_key()).clear(), *keys]), built_at


def crm(segments: pl.DataFrame) -> pl.DataFrame:
    """Read crm.user_segments with the types of `segments`, and previous_segment."""
    types: dict[str, Any] = {
        **segments.schema,
        "lifetime_value": pl.String,
        "previous_segment": pl.String,
    }
    with postgres.session(Settings.from_environment(), "notebook") as connection:
        rows = postgres.select(
            connection,
            "SELECT user_id, segment, total_searches, total_conversions,"
            " lifetime_value::text AS lifetime_value, previous_segment FROM crm.user_segments",
        )
    return pl.DataFrame(rows, schema=types).cast(
        {"lifetime_value": segments.schema["lifetime_value"]}
    )


def compare(segments: pl.DataFrame, crm: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    """One row a user: `state` (new, changed, ...), `differs` (columns), values of mart and CRM."""
    compared = [name for name in segments.columns if name != "user_id"]
    differs = [
        pl.when(pl.col(name).ne_missing(pl.col(f"{name}_crm"))).then(pl.lit(name))
        for name in compared
    ]
    return (
        segments.with_columns(in_mart=True)
        .join(crm.with_columns(in_crm=True), on="user_id", how="full", coalesce=True, suffix="_crm")
        .with_columns(differs=pl.concat_list(differs).list.drop_nulls())
        .with_columns(
            state=pl.when(pl.col("in_crm").is_null())
            .then(pl.lit("new"))
            .when(pl.col("user_id").is_in(rejected["user_id"].implode()))
            .then(pl.lit("row rejected"))
            .when(pl.col("in_mart").is_null())
            .then(pl.lit("left the mart"))
            .when(pl.col("differs").list.len() > 0)
            .then(pl.lit("changed"))
            .otherwise(pl.lit("unchanged"))
        )
    )


def old_and_new(changed: pl.DataFrame) -> pl.DataFrame:
    """Those who differ most first: which columns, and what is in the CRM -> in the mart."""
    return changed.sort(pl.col("differs").list.len(), "user_id", descending=[True, False]).select(
        "user_id",
        pl.col("differs").list.join(", "),
        *(
            pl.format("{} -> {}", f"{name}_crm", name).alias(name)
            for name in ("segment", "total_searches", "lifetime_value")
        ),
    )


def mails(audience: pl.DataFrame, as_of: dt.datetime) -> pl.DataFrame:
    """The mails that transform finds an occasion for, with its `age` in days."""
    found = email_triggers.transform(audience, as_of)
    return found.with_columns(age=(as_of - pl.col("episode_at")) / _DAY)


def by_template(mails: pl.DataFrame) -> pl.DataFrame:
    """One row a template: mails that are due, too old, or of an unknown visit."""
    return (
        mails.group_by("priority", "template")
        .agg(
            due=pl.col("due").sum(),
            too_old=(pl.col("due").not_() & pl.col("age").is_not_null()).sum(),
            visit_unknown=pl.col("age").is_null().sum(),
        )
        .sort("priority")
    )


def oldest() -> pl.DataFrame:
    """One row a template: how many days its occasion may be old."""
    rows = [(rule.template, rule.max_age / _DAY) for rule in RULES]
    return pl.DataFrame(rows, schema=["template", "oldest"], orient="row")
