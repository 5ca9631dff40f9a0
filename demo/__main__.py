"""`make demo`: every sync on a real Postgres, a real Valkey and a sample warehouse."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.table import Table

from demo import sample
from demo.embedded import Servers, running
from etl import cache, postgres, recommendations
from etl.cli import report
from etl.errors import Cancelled, SyncError
from etl.init_db import init_db
from etl.settings import Settings
from etl.syncs import SYNCS

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(".demo")
USERS = 10_000

# How long the sample's visits stay where they are: running the demo again shows everything
# unchanged, and running it next week shows new visits.
_EPOCH_HOURS = 12

_console = Console(highlight=False)


def main() -> NoReturn:
    """Run the demo; `--keep` leaves the servers up until Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with running(FOLDER) as servers:
            _demo(servers, keep="--keep" in sys.argv[1:])
    except SyncError as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except Cancelled as stop:
        print(f"demo: stopped by {stop}; the servers are down", file=sys.stderr)  # noqa: T201
        sys.exit(stop.exit_code)
    sys.exit(0)


def _stop(number: int, _: object) -> NoReturn:
    raise Cancelled(signal.Signals(number))


def _demo(servers: Servers, *, keep: bool) -> None:
    warehouse = FOLDER / "warehouse.duckdb"
    unset = servers.set_up(os.environ)
    os.environ["DUCKDB_PATH"] = str(warehouse)
    init_db()
    _console.print(f"Building {warehouse}: {USERS:,} users, as dbt would leave them.\n")
    sample.build(warehouse, USERS, epoch=_epoch())
    # A live run overwrites keys without reading them; only a dry one can tell old from new.
    before = recommendations.sync(dry_run=True)
    report.show(
        [importlib.import_module(f"etl.{sync}").sync() for sync in SYNCS],
        as_json=False,
    )
    new, changed, same = (before[name] or 0 for name in ("inserted", "updated", "unchanged"))
    _console.print(f"Of the keys written, {new:,} are new, {changed:,} changed, {same:,} the same.")
    _show_postgres()
    _show_redis()
    if keep:
        _wait(servers, unset)
    else:
        _console.print("\nRun it again: everything is unchanged. To look around: make demo-shell")


def _epoch() -> dt.datetime:
    """The moment up to which the sample's users have visited, kept between runs."""
    kept = FOLDER / "epoch"
    if kept.exists() and time.time() - kept.stat().st_mtime < _EPOCH_HOURS * 3600:
        return dt.datetime.fromisoformat(kept.read_text())
    epoch = dt.datetime.now(dt.UTC).replace(microsecond=0)
    kept.write_text(epoch.isoformat())
    return epoch


def _show_postgres() -> None:
    connection = postgres.connect(Settings.from_environment(), "etl.demo")
    for title, sql in (
        (
            "crm.user_segments",
            "SELECT user_id, segment, total_searches AS searches, total_conversions AS bookings,"
            " lifetime_value, to_char(synced_at, 'HH24:MI:SS') AS synced_at"
            " FROM crm.user_segments ORDER BY lifetime_value DESC LIMIT 5",
        ),
        (
            "crm.email_queue",
            "SELECT user_id, template, status, to_char(episode_at, 'MM-DD HH24:MI') AS episode_at,"
            " payload ->> 'country' AS country, payload ->> 'lifetime_value' AS lifetime_value"
            " FROM crm.email_queue ORDER BY priority, created_at, id LIMIT 5",
        ),
    ):
        _print(f"Postgres {title}", postgres.select(connection, sql))
    connection.close()


def _show_redis() -> None:
    with cache.connect(Settings.from_environment()) as client:
        keys = [client.randomkey() for _ in range(4)]
        rows = [
            {
                "key": key.decode(),
                "seconds left": client.ttl(key),
                "value": client.get(key).decode(),
            }
            for key in keys
        ]
    _print("Redis", rows)


def _print(title: str, rows: Iterable[dict[str, object]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title=title)
    table.title_style = "bold"
    rows = list(rows)
    for name in rows[0]:
        table.add_column(name, no_wrap=name == "key", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    _console.print()
    _console.print(table)


def _wait(servers: Servers, unset: list[str]) -> None:
    settings = "".join(
        f"{name}={os.environ[name]} " for name in ("DUCKDB_PATH", *servers.environment)
    )
    # The other terminal's shell may have the settings that this one had.
    env = "env " + "".join(f"-u {name} " for name in unset) if unset else ""
    _console.print(
        f"\nThe servers are up until Ctrl-C. In another terminal:\n\n"
        f"  {env}{servers.psql}\n\n  {servers.redis_cli}\n\n"
        f"  {env}{settings}.venv/bin/python -m etl",
        soft_wrap=True,
    )
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
