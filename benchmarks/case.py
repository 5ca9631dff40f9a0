"""A case of the bench: one process, measured and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from contenders import HERE, ROOT, WrongError, output


@dataclass
class Case:
    """One thing measured: the process, what makes ready for it, and what must be true after."""

    name: str
    contender: str
    command: list[str]
    environment: dict[str, str]
    prepare: Callable[[], object]
    check: Callable[[str], object]  # of what it printed
    rows: int = 0  # that it brings to its target
    share: int = 1  # it does one row in so many
    folder: Path = ROOT
    runs: list[dict[str, float]] = field(default_factory=list)

    def run(self, figures: Path) -> None:
        """Prepare, run the process, check what it did, and keep what it took."""
        measured = [sys.executable, "-S", str(HERE / "measure.py"), str(figures), *self.command]
        try:
            self.prepare()
            self.check(output(measured, self.environment, self.folder))
        except WrongError as error:
            raise WrongError(f"{self.name}, {self.contender}: {error}") from error
        self.runs.append(json.loads(figures.read_text()))
        print(f"{self.runs[-1]['seconds']:8.2f} s  {self.name}, {self.contender}", flush=True)


def require(holds: bool, otherwise: str) -> None:
    """Fail a check, saying what was found."""
    if not holds:
        raise WrongError(otherwise)
