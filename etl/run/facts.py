"""What a sync may ask of its run: how to run, the session, what was read and counted."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

from etl.errors import SyncError
from etl.options import Options
from etl.postgres import Connection
from etl.run.attempt import Attempt
from etl.run.job import Job, PreviousRun
from etl.run.reading import MartReading
from etl.run.tally import Tally
from etl.settings import Settings


@dataclass
class Facts:
    """Fields are set by the run itself; a sync asks, and tells by the verbs of `Run`."""

    attempt: Attempt
    folder: Path = Path()  # for what is spooled
    previous: PreviousRun | None = None
    staged: list[str] = field(default_factory=list)
    into_nothing: bool = False  # nothing was ever in the target
    _reading: MartReading | None = None
    _guarded: bool = False  # the guards have looked

    @property
    def job(self) -> Job:
        """What never changes in a run."""
        return self.attempt.job

    @property
    def options(self) -> Options:
        """How to run."""
        return self.job.options

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.job.settings

    @property
    def tally(self) -> Tally:
        """What was read and counted."""
        return self.attempt.tally

    @property
    def session(self) -> Connection:
        """The session of Postgres that holds the lock and the open transaction."""
        if self.attempt.session is None:
            raise SyncError(f"{self.job.sync}: not connected to Postgres")
        return self.attempt.session

    @property
    def mart(self) -> MartReading:
        """The mart, once it was read."""
        if self._reading is None:
            raise SyncError(f"{self.job.sync}: the mart was not read")
        return self._reading

    @property
    def as_of(self) -> dt.datetime:
        """When the mart was built, by its rows; when they do not say so, now."""
        return self.mart.as_of or self.job.started_at
