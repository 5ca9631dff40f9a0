"""A run that reads its mart through, and ends before it would write."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import polars as pl
import pyarrow as pa

from etl import postgres, warehouse
from etl.check.postgres import READ_ONLY
from etl.run import Run, ledger
from etl.run.contract import Validator
from etl.run.reading import MartReading
from etl.warehouse import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import dataframely as dy

    from etl.postgres import Call, Connection

# Rows whose keys are looked up in Redis, and that tell how large values are.
SAMPLE = 1_000

# Hashes of keys that are kept in memory, with as much again while they are compared: 160 MB.
_MOST_HASHES = 10_000_000


class Enough(Exception):  # noqa: N818  (it ends a look)
    """What comes next would write, or needs a server that is away."""


class Unsure(Exception):  # noqa: N818
    """Two rows may have the same key: the warehouse has to look, and to bring them together."""


@dataclass
class Look(Run):
    """A run that reads its mart through, and ends before it would write.

    Its transaction is READ ONLY, so that what is not foreseen here writes nothing either.
    """

    cache_answers: bool = False
    ordered: bool | None = None  # see `warehouse.open_mart`
    contract: tuple[str, ...] = ()  # its columns
    sample: pl.DataFrame | None = None  # of what would be loaded

    @property
    def session(self) -> Connection:
        """The session, if there is one."""
        if self.attempt.session is None:
            raise Enough
        return self.attempt.session

    def begin(self) -> None:
        """Begin a transaction that only reads, and look back at the last ok run."""
        self.session.try_rollback()
        postgres.execute(self.session, READ_ONLY)
        self.previous = ledger.last_ok_run(self.session, self.job.sync)

    def read(
        self,
        schema: type[dy.Schema],
        reshape: Callable[[pl.DataFrame], pl.DataFrame],
        key: Sequence[str] | None = None,
        *,
        ordered: bool = False,
        stage_as: str | None = None,
    ) -> Spool:
        """Read the mart as `Run.read` does, in any order, and keep a sample; see there.

        Raises:
            Unsure: the rows came in no order, and two of them may have the same key.
        """
        job, key = self.job, key or schema.primary_key()
        begin = partial(
            warehouse.open_mart, job.sync, schema, job.settings, job.shard, now=job.started_at
        )
        sample, hashes = reshape(schema.create_empty()), [pl.Series([], dtype=pl.UInt64)]
        primary, read = schema.primary_key(), list(hashes)
        with (
            begin(spill=self.folder, key=key, ordered=self.ordered) as mart,
            contextlib.closing(mart.frames()) as frames,
        ):
            self.contract = (*schema.columns(),)
            stored = mart.source.stored
            unsure = self.ordered is None and stored is not None
            if unsure and (stored or 0) > _MOST_HASHES:
                raise Unsure
            unique = unsure or mart.unique
            validator = Validator(schema, 0, job.started_at, key, unique=unique)
            for frame in frames:
                if unsure:
                    read.append(frame.select(primary).hash_rows())
                rows = reshape(validator.valid_rows(frame))
                hashes.append(rows.select(key).hash_rows())
                # From everywhere: a run that was stopped has written the keys of the first rows.
                some = pl.concat([sample, rows])
                sample = some.filter(some.select(key).hash_rows().rank("ordinal") <= SAMPLE)
        if unsure and pl.concat(read).n_unique() < validator.rows:
            raise Unsure
        self.sample = sample
        spool = warehouse.write(warehouse.to_batches([sample]), self.folder / "mart", key)
        spool = replace(spool, rows=pl.concat(hashes).n_unique())
        return self.take(MartReading.of(mart, validator, spool, self._nothing("rejected")))

    def read_target(self, *_: object) -> None:
        """Read nothing: what differs from the target is for a dry run to tell."""

    def start_reading(self, _: object, name: str) -> Call[Any]:
        """Read nothing, for the same reason; end where only decisions need it."""
        if self._reading is not None:
            raise Enough
        return self.session.submit(lambda _: self._nothing(name))

    def _nothing(self, name: str) -> Spool:
        return Spool(self.folder / name, pa.schema([]), [], 0)

    def copy(self, *_: object) -> None:
        """Stage nothing."""

    def stage(self, *_: object) -> NoReturn:
        """End here."""
        raise Enough

    def merge(self, *_: object) -> NoReturn:
        """End here."""
        raise Enough

    def savepoint(self) -> NoReturn:
        """End here."""
        raise Enough

    def check_guards(self) -> None:
        """Go on to Redis where it answers; what guards say is asked apart."""
        if not self.cache_answers:
            raise Enough
