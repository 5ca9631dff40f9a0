"""One try at a job; where it fails in a way that may pass, the next begins with nothing of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from etl.postgres import Connection
from etl.run.job import Job
from etl.run.tally import Tally


@dataclass
class Attempt:
    """A session, what is counted in it, and how far its row in the ledger has come.

    `execute` and the ledger change it; a sync is handed a `Run`.
    """

    job: Job
    number: int = 0  # 0: nothing was begun
    session: Connection | None = None  # None: Postgres is away, and the sync can do without
    tally: Tally = field(init=False)
    in_ledger: bool = False  # the run is one to be recorded, and the ledger was within reach
    finishing: bool = False  # the ledger's row may be written and not committed
    committing: bool = False  # a commit was asked for, and its answer has not come

    def __post_init__(self) -> None:
        self.tally = Tally(self.job)

    def close(self) -> None:
        """End the session; what it did not commit is undone."""
        if self.session is not None:
            self.session.close()
