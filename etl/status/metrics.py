"""What `python -m etl.status --prometheus` prints, for the node exporter's textfile collector."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from etl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import GaugeMetricFamily

# What became of rows in the last run, by the label that says so.
_OUTCOMES = (
    *("inserted", "updated", "unchanged", "deleted", "cancelled"),
    *("suppressed", "held_back", "rejected", "below_threshold"),
)

# Figures of each sync, from its status: name, meaning and value.
_PER_SYNC: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    (
        "last_run_timestamp_seconds",
        "When the last run began.",
        lambda sync: _of(sync["last"], "started_at"),
    ),
    (
        "last_ok_timestamp_seconds",
        "When the last ok run ended.",
        lambda sync: sync["ok_at"],
    ),
    (
        "ok",
        "1 where the last run that ended was ok and its sync is not overdue.",
        lambda sync: not sync["problem"],
    ),
    (
        "last_run_duration_seconds",
        "How long the last run that ended took.",
        lambda sync: _of(sync["judged"], "seconds"),
    ),
    (
        "mart_built_timestamp_seconds",
        "When the mart of the last run that ended was built, by its rows.",
        lambda sync: _of(sync["judged"], "mart_built_at"),
    ),
    (
        "last_run_keys",
        "Redis keys that the last run that ended wrote.",
        lambda sync: _of(sync["judged"], "written"),
    ),
)


def check() -> None:
    """Say what is missing before anything is asked.

    Raises:
        UsageError: prometheus-client is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        message = "--prometheus needs prometheus-client: pip install 'searchflow-etl[prometheus]'"
        raise UsageError(message) from None


def render(known: dict[str, Any]) -> str:
    """Return what `status()` returned as exposition text; all are gauges, times in seconds."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Status:
        def collect(self) -> Iterator[GaugeMetricFamily]:
            yield from _of_syncs(known["syncs"])
            yield from _of_queue(known)

    registry = CollectorRegistry()
    registry.register(Status())
    return generate_latest(registry).decode().rstrip("\n")


def _of_syncs(syncs: list[dict[str, Any]]) -> Iterator[GaugeMetricFamily]:
    for name, meaning, value in _PER_SYNC:
        yield _gauge(name, meaning, ("sync",), [((sync["sync"],), value(sync)) for sync in syncs])
    ended = {sync["sync"]: sync["judged"] for sync in syncs if sync["judged"]}
    yield _gauge(
        "last_run_rows",
        "Rows of the last run that ended, by what became of them.",
        ("sync", "outcome"),
        [((name, word), run[word]) for name, run in ended.items() for word in _OUTCOMES],
    )
    yield _gauge(
        "last_run_rejects",
        "Rows that the last run rejected and kept, by reason; a row may have several.",
        ("sync", "reason"),
        [((s["sync"], reason), rows) for s in syncs for reason, rows in s["rejects"].items()],
    )


def _of_queue(known: dict[str, Any]) -> Iterator[GaugeMetricFamily]:
    queue, now = known["queue"], known["at"]
    yield _gauge(
        "mails",
        "Mails in the queue.",
        ("status", "template"),
        [
            ((status, template), mails["mails"])
            for status, one in queue.items()
            for template, mails in one["templates"].items()
        ],
    )
    waiting = queue.get("pending", {}).get("templates", {})
    yield _gauge(
        "oldest_waiting_mail_age_seconds",
        "Since when the oldest mail waits that nobody has claimed.",
        ("template",),
        [((name,), (now - one["oldest_at"]).total_seconds()) for name, one in waiting.items()],
    )


def _of(run: dict[str, Any] | None, figure: str) -> Any:
    return run and run[figure]


def _gauge(
    name: str, meaning: str, labels: tuple[str, ...], samples: list[tuple[tuple[str, ...], Any]]
) -> GaugeMetricFamily:
    """Make a gauge, of moments in seconds; what is not known (None) has no sample."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"searchflow_etl_{name}", meaning, labels=labels)
    for values, value in samples:
        if value is not None:
            seconds = value.timestamp() if isinstance(value, dt.datetime) else value
            family.add_metric(values, float(seconds))
    return family
