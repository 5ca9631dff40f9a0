"""`python -m etl.status --prometheus`: metrics that the real parsers take."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from typing import Any

import pytest
from conftest import command, segments
from destinations import execute, last_run
from fixture_types import Mart, Select
from needs import needs
from prometheus_client.parser import text_string_to_metric_families

from etl import email_triggers, recommendations, user_segments
from etl.errors import Refused, UsageError
from etl.status import Flags, metrics

RECOMMENDED = """
    CREATE OR REPLACE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS recommended_destination, 0.9::DOUBLE AS recommendation_score,
        5::BIGINT AS supporting_users, 1::BIGINT AS rank, now() AS generated_at
"""


def test_every_figure_of_the_last_run_is_a_metric(mart: Mart, select: Select) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0)"), RECOMMENDED)
    for sync in (user_segments, email_triggers, recommendations):
        sync.sync()
    execute("UPDATE crm.email_queue SET created_at = now() - interval '2 hours'")
    mart(segments("('a', NULL, 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    with pytest.raises(Refused):
        user_segments.sync()

    told = metrics_of(command("etl.status", "--prometheus").stdout)

    run = last_run(select, "recommendations")
    assert told["ok", "user_segments"] == 0
    assert told["ok", "recommendations"] == 1
    began, ended = run["started_at"].timestamp(), run["finished_at"].timestamp()
    assert told["last_run_timestamp_seconds", "recommendations"] == pytest.approx(began)
    assert told["last_ok_timestamp_seconds", "recommendations"] == pytest.approx(ended)
    assert told["last_run_duration_seconds", "recommendations"] == pytest.approx(run["seconds"])
    assert told["last_run_keys", "recommendations"] == 1
    built = told["mart_built_timestamp_seconds", "email_triggers"]
    assert dt.datetime.now(dt.UTC).timestamp() - built < 3600
    assert told["last_run_rows", "inserted", "email_triggers"] == 1
    assert told["last_run_rows", "rejected", "user_segments"] == 1
    assert told["last_run_rejects", "segment:null", "user_segments"] == 1
    assert told["mails", "pending", "win_back"] == 1
    assert told["oldest_waiting_mail_age_seconds", "win_back"] == pytest.approx(7200, abs=600)


@pytest.mark.parametrize("ran", [False, True])
def test_promtool_has_nothing_to_say(ran: bool, mart: Mart) -> None:
    promtool = needs("promtool", "apt-get install prometheus")
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    if ran:
        user_segments.sync()
        email_triggers.sync()
    text = command("etl.status", "--prometheus").stdout

    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_labels_of_the_ledger_break_nothing(mart: Mart) -> None:
    mart(segments("('a', 'at_risk', 1, 0, 0)"))
    email_triggers.sync()
    execute("UPDATE crm.email_queue SET template = E'a\"b\\\\c\\nd\\u202e'")

    told = metrics_of(command("etl.status", "--prometheus").stdout)

    assert told["mails", "pending", 'a"b\\c\\nd\\u202e'] == 1


def test_a_missing_client_is_named_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(UsageError, match=r"pip install 'searchflow-etl\[prometheus\]'"):
        metrics.check()


def test_only_one_form_is_printed() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        Flags(prometheus=True, json=True)


def metrics_of(text: str) -> dict[tuple[str, ...], float]:
    """Each sample by its name and its labels' values, as Prometheus's parser reads them."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text + "\n"):
        assert family.type == "gauge"
        for sample in family.samples:
            name = sample.name.removeprefix("searchflow_etl_")
            found[name, *sample.labels.values()] = sample.value
    return found
