"""What a run knows of itself: how it was asked to run, and what it counted so far."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from etl import postgres, warehouse
from etl.errors import SyncError
from etl.options import Options
from etl.plumbing import cancellation, log
from etl.result import Outcome, SyncResult, counted
from etl.run import contract, guards
from etl.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    import dataframely as dy
    import pyarrow as pa

    from etl.postgres import Connection
    from etl.warehouse.parts import Parts


# Rows of a mart that is synced for the first time.
UNKNOWN_ROWS = 1_000_000


@dataclass(frozen=True)
class Previous:
    """The last ok run of a sync."""

    mart_rows: int
    began_at: dt.datetime
    shards: int = 1
    written: Mapping[int, int] = field(default_factory=dict)  # keys, by shard
    warning: str | None = None  # what email_triggers said beside its counts; None: not known

    def keys(self, shard: tuple[int, int]) -> int:
        """About how many keys this shard had; fewer, where that is not known exactly."""
        index, shards = shard
        if shards == self.shards and index in self.written:
            return self.written[index]
        if not self.written:
            return 0
        expected = sum(self.written.values()) * self.shards / len(self.written) / shards
        if shards == 1 and len(self.written) == self.shards:
            return round(expected)
        # A hash does not cut evenly: shards differ by the root of what is in them.
        return max(round(expected - 3 * math.sqrt(expected)), 0)


@dataclass
class Run:
    """The state of one run, handed to the sync's `load`."""

    sync: str
    settings: Settings
    options: Options
    needs_postgres: bool = True
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    connection: Connection | None = None
    in_ledger: bool = False  # the run is one to be recorded, and the ledger was within reach
    previous: Previous | None = None
    attempts: int = 0  # more than one: a server was lost
    started: float = field(default_factory=time.perf_counter)

    # of a walk over shards: what it read once, and where
    folder: Path | None = None
    cut_mart: warehouse.CutMart | None = None
    cut_known: Callable[[], Parts] | None = None

    # the mart that is being read, whose file is open meanwhile
    marts: Generator[warehouse.Mart, None, None] | None = None

    # of the shard at hand
    shard: tuple[int, int] = (0, 1)
    shard_started: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    figures: guards.Figures = field(default_factory=guards.Figures)
    counts: dict[str, int] = field(default_factory=dict)
    rejects: contract.Rejects | None = None
    columns: frozenset[str] = frozenset()  # of the query, less those that are NULL by its text
    judged: bool = False
    committing: bool = False  # a commit was asked for, and its answer has not come

    # of all shards that are done
    done: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    rejects_kept: int = 0
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)  # by the event they are logged as

    # of email_triggers: users by segment, and mails to cancel by template
    segments: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)
    cancels: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)
    unmapped: dict[str, int] = field(default_factory=dict)
    queue_rows: int = 0  # before the run, as far as it matters

    # of recommendations
    keys: int = 0  # of this shard and those before it
    sample: list[str] = field(default_factory=list)  # written keys to be read back

    def begin(self, shard: tuple[int, int]) -> None:
        """Turn to the next shard."""
        self.shard, self.shard_started = shard, dt.datetime.now(dt.UTC)
        self.figures, self.counts = guards.Figures(shards=shard[1]), {}
        self.rejects, self.judged, self.committing = None, False, False

    def read(
        self, schema: type[dy.Schema], reshape: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> Iterator[pa.Table]:
        """Fetch this sync's mart part by part, and yield what becomes of each.

        That is, of the rows which keep the contract. The others are kept in `rejects`; what the
        guards want to know goes to `figures`; both are there when all parts have been read.

        Args:
            schema: the contract.
            reshape: what to make of a part. It has all rows of its users, and the users come in
                the order of their ids from part to part, though not within one.

        Yields:
            Frames as `reshape` made them, one at least. As Arrow and copied: columns and strings
            of a Polars frame may be views of the part they come from, and all of the mart would
            stay in memory.
        """
        begun, rows = time.perf_counter(), 0
        found: list[contract.Rejects] = []
        newest: list[Any] = []
        if self.folder is None:
            self.marts = warehouse.read_parts(self.sync, schema, self.settings, self.shard)
        else:
            self.marts = self._cut_mart(schema).read_parts(self.shard[0])
        with contextlib.closing(self.marts):
            for mart in self.marts:
                cancellation.check()
                self._note(mart)
                room = max(self._room - sum(len(rejects.rows) for rejects in found), 0)
                good, rejects = contract.accept(schema, mart.table, room, mart.read_at)
                newest.append(good["built_at"].max())
                rows += mart.table.num_rows
                found.append(rejects)
                del mart  # so that no more than one part is held at a time
                reshaped = reshape(good).rechunk().to_arrow()
                del good
                yield reshaped
                del reshaped
        log.event("mart.read", rows=rows, seconds=_since(begun))
        self._count(rows, contract.together(found))
        if self.shard == (0, 1):  # a shard cannot tell which rows of the others are accepted
            self.figures.built_at = max(filter(None, newest), default=None)

    def let_go_of_the_mart(self) -> None:
        """Close the warehouse's file, should a stop have come between two parts."""
        if self.marts is not None:
            self.marts.close()

    @property
    def _room(self) -> int:
        """How many rejected rows may still be kept."""
        return max(self.settings.reject_limit - self.rejects_kept, 0)

    def _note(self, mart: warehouse.Mart) -> None:
        self.figures.mart_rows, self.figures.built_at = mart.rows, mart.built_at
        self.figures.now = mart.read_at
        self.figures.previous_mart_rows = self.previous.mart_rows if self.previous else None
        self.columns = mart.columns

    def _count(self, rows: int, rejects: contract.Rejects) -> None:
        if rejects.total:
            log.warning("rows.rejected", rows=rejects.total, **rejects.reasons)
        self.rejects = rejects
        self.counts.update(extracted=rows, rejected=rejects.total, deleted=0)
        self.figures.extracted, self.figures.rejected = rows, rejects.total

    def known(self, table: str) -> Callable[[], pl.DataFrame] | None:
        """Start reading what the target holds of the shard at hand, by sql/postgres/<sync>_known.

        Returns:
            What waits for it. None where reading costs more than it saves: for one shard alone,
            since the server would have to hash every key, and of a target that has many more
            rows than the mart, or none.
        """
        (about,) = postgres.ask(self.postgres, "rows_about", table)
        expected = self.previous.mart_rows if self.previous else UNKNOWN_ROWS
        if self.options.part or about["rows"] > 2 * expected:
            return None
        query = f"{self.sync}_known"
        if self.folder is None:
            return postgres.fetch(self.postgres, query) if about["bytes"] else None
        if self.cut_known is None:
            folder = self.folder / "known"
            self.cut_known = postgres.fetch_parts(self.postgres, query, self.shard[1], folder)
        known, shard = self.cut_known, self.shard[0]
        return lambda: pl.DataFrame(pl.from_arrow(known().read(shard)))

    def _cut_mart(self, schema: type[dy.Schema]) -> warehouse.CutMart:
        if self.cut_mart is None and self.folder is not None:
            self.cut_mart = warehouse.cut(
                self.sync, schema, self.settings, self.shard[1], self.folder / "mart"
            )
        return cast("warehouse.CutMart", self.cut_mart)

    @contextlib.contextmanager
    def walking(self) -> Iterator[None]:
        """Give a walk over shards a folder for what it reads once."""
        if len(self.options.walk) == 1:
            yield
            return
        self.cut_mart = self.cut_known = None
        spill = tempfile.TemporaryDirectory(prefix="etl-duckdb-", ignore_cleanup_errors=True)
        with spill as folder:
            self.folder = Path(folder)
            try:
                yield
            except BaseException:
                if self.connection is not None:  # it may still be writing there
                    self.connection.undo()
                raise

    @property
    def postgres(self) -> Connection:
        """The connection that holds the lock and the open transaction."""
        if self.connection is None:
            raise SyncError(f"{self.sync}: not connected to Postgres")
        return self.connection

    @property
    def as_of(self) -> dt.datetime:
        """When the mart was built, by its accepted rows; when they do not say so, now."""
        return self.figures.built_at or self.figures.now

    def count(self, counts: Mapping[str, int]) -> None:
        """Take over what a merge counted: into the result, the guards' figures, or both.

        Raises:
            SyncError: neither knows a count by that name, which would switch off a guard.
        """
        for name, count in counts.items():
            in_result, in_figures = name in counted(self.sync), hasattr(self.figures, name)
            if not (in_result or in_figures):
                raise SyncError(f"{self.sync}: nobody knows what to do with the count {name}")
            if in_result:
                self.counts[name] = count
            if in_figures:
                setattr(self.figures, name, count)

    def tell(self, outcomes: list[Outcome]) -> None:
        """Add what would become of the mails of this shard."""
        for one in outcomes:
            key = one["template"], one["outcome"]
            same = self.outcomes.setdefault(
                key, {"template": key[0], "outcome": key[1], "mails": 0}
            )
            same["mails"] += one["mails"]
            if self.options.name_users:  # not for a scheduler, which keeps what it is given
                same["users"] = (same.get("users", []) + one["users"])[:5]

    def rejected_users(self) -> pl.DataFrame:
        """user_id str: those whose rows were set aside; they have not left the mart."""
        users: Any = self.rejects.keys if self.rejects else []
        return pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}).filter(
            contract.no_nul(pl.col("user_id"))
        )

    def lasts(self, seconds: int) -> None:
        """Say that what a run writes expires: a refused stale mart is then told with when."""
        written_at = self.previous.began_at if self.previous else None
        self.figures.expires = guards.expiry(written_at, seconds, self.figures.now)

    def expect(self, keys: int) -> None:
        """Tell the guards how many keys the shard at hand would write."""
        self.keys += keys
        self.figures.keys = keys
        self.figures.previous_keys = self.previous.keys(self.shard) if self.previous else 0
        # One of several shards may have none; of all of them none was written by then.
        if self.shard == self.options.walk[-1] and not self.keys:
            rows = self.so_far()
            self.figures.rows_without_keys = rows["extracted"] - rows["rejected"]

    def judge(self) -> None:
        """Let the guards look at the figures, once a shard; `--force` goes past them."""
        if self.judged:
            return
        self.judged = True
        if not self.options.force:
            guards.judge(self.figures, self.settings)
        elif fired := guards.fired(self.figures, self.settings):
            log.warning("guards.forced", reason="; ".join(fired))

    def so_far(self) -> Counter[str]:
        """The counts of all shards, with that at hand."""
        known = Counter(self.totals)
        known.update(self.counts)
        return known

    def warn(self) -> None:
        """Log the warnings, and the segments without a template, once a run."""
        if self.unmapped:
            log.event("segments.unmapped", users=self.unmapped)
        for name, reason in self.warnings.items():
            log.warning(name, reason=reason)

    def result(self, status: str, error: str | None = None) -> SyncResult:
        """The counts so far, as the caller gets them."""
        known = self.so_far()
        result = {
            "sync": self.sync,
            "run_id": self.run_id,
            "status": status,
            "dry_run": self.options.dry_run,
            **{name: known.get(name) for name in counted(self.sync)},
            "seconds": _since(self.started),
            **({"unmapped_segments": self.unmapped} if self.unmapped else {}),
            **({"warnings": list(self.warnings.values())} if self.warnings else {}),
            **({"outcomes": list(self.outcomes.values())} if self.outcomes else {}),
            **({"error": error} if error else {}),
        }
        return cast("SyncResult", result)


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 3)
