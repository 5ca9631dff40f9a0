"""A warehouse for the demo and the tests: the marts as a dbt project would leave them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from etl.plumbing import queries

# Every mart of sql/sample; the others draw their users from this one.
FIRST = "mart_user_segments"
MARTS = [FIRST, *sorted({file.stem for file in (queries.ROOT / "sample").glob("mart_*")} - {FIRST})]


def build(
    path: Path,
    users: int = 10_000,
    *,
    epoch: datetime | None = None,
    built_at: datetime | None = None,
) -> None:
    """Write a DuckDB file with `users` users in the schema main_marketing.

    The file appears at `path` complete or not at all, in place of one that is there.

    Args:
        path: the file; its folder must exist.
        users: a smaller warehouse holds the first users of a larger one.
        epoch: the moment before which everybody visited; now when not given. The same epoch
            gives the same users, visits, figures and recommendations again, so whoever wants
            a second sync to find nothing changed keeps it between builds.
        built_at: what segmented_at, generated_at and the ages say; now when not given.

    Raises:
        ValueError: a time without a zone, which could be anybody's.
    """
    now = datetime.now(UTC)
    epoch, built_at = epoch or now, built_at or now
    if epoch.tzinfo is None or built_at.tzinfo is None:
        raise ValueError("epoch and built_at need a time zone")
    with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as folder:
        draft = Path(folder, path.name)
        with duckdb.connect(str(draft)) as connection:
            connection.execute("CREATE SCHEMA main_marketing")
            fill(connection, MARTS, users, epoch, built_at)
        os.replace(draft, path)
    # The log of the file that was replaced must not be replayed into this one.
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def fill(
    connection: duckdb.DuckDBPyConnection,
    marts: Sequence[str],
    users: int,
    epoch: datetime,
    built_at: datetime,
) -> None:
    """Make marts of sql/sample in the schema main_marketing; see `build`."""
    naive = epoch.astimezone(UTC).replace(tzinfo=None)
    given = {"users": users, "epoch": naive, "built_at": built_at}
    for mart in marts:
        sql = queries.load("sample", mart)
        used = {name: value for name, value in given.items() if f"${name}" in sql}
        connection.execute(sql, used)
