"""What a look at one thing brought: its state, what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from etl.errors import SyncError

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        name: what was looked at.
        state: ok; warn, which lets runs go on; fail, which would stop one; skipped.
        found: what there is.
        advice: what to do, "" where nothing is to be done.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def failed(name: str, error: SyncError, more: str = "", state: str = FAIL) -> Finding:
    """Return the error of a run as a finding: found and advice, with `; ` between, are its line."""
    found, _, advice = str(error).rpartition("; ")
    if not found:
        found, advice = advice, "correct that"
    return Finding(name, state, found, "; ".join(filter(None, (advice, more))))


def skipped(because: str, *names: str) -> list[Finding]:
    """Say what could not be looked at, and because of what."""
    return [Finding(name, SKIPPED, f"not looked at, because of {because}") for name in names]


def has_failed(findings: list[Finding]) -> bool:
    """Return whether one of them would stop a run."""
    return any(one.state == FAIL for one in findings)
