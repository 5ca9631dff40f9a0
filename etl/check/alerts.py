"""ALERT_URLS: whether people are told of failed runs; with `--alert` one message tries it."""

from __future__ import annotations

from etl.check.findings import FAIL, OK, WARN, Finding
from etl.cli import alerts
from etl.settings import alert_urls

_NAME = "alerts"


def look(*, send: bool) -> list[Finding]:
    """Look at the URLs; `send` one message to each."""
    urls = alert_urls()
    if not urls:
        unset = "ALERT_URLS is not set: nobody is told of a failed run"
        return [Finding(_NAME, FAIL if send else OK, unset, "set it where nobody watches the runs")]
    problems = alerts.try_out() if send else alerts.problems()
    if problems:
        advice = "correct ALERT_URLS (docs/operations.md)"
        state = FAIL if send else WARN
        return [Finding(_NAME, state, problem, advice) for problem in problems]
    told = "took a test message" if send else "known to Apprise; --alert sends a test message"
    return [Finding(_NAME, OK, f"ALERT_URLS: {len(urls)} {told}")]
