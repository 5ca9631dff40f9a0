"""ALERT_URLS: who is told what and when, by a real HTTP server and a real SMTP server."""

from __future__ import annotations

import email
import email.policy
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from conftest import ROOT, command, process, results, segments
from destinations import execute, stuck
from fixture_types import Mart, Select
from pace import HANG, within

from etl import user_segments
from etl.cli import alerts
from etl.errors import SyncError

GOOD = "('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"
BAD = "('a', NULL, 1, 0, 0), ('b', 'regular', 1, 0, 0)"


class Inbox(ThreadingHTTPServer):
    """A webhook: what was posted to it, and what it answers."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.messages: list[dict[str, Any]] = []
        self.url = f"json://user:hush-hush-1@127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    """Keep what is posted."""

    server: Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def inbox(environment: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """A webhook that takes alerts, however long a busy machine takes to send one."""
    for limit in ("_SECONDS", "_ASKING_SECONDS", "_SENDING_SECONDS"):
        monkeypatch.setattr(alerts, limit, HANG)
    with Inbox() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ALERT_URLS", server.url)
        yield server
        server.shutdown()


@pytest.mark.every_sync
def test_a_failure_is_told_with_its_line_its_host_its_run_and_the_next_command(
    mart: Mart, inbox: Inbox
) -> None:
    mart(segments(BAD))

    finished = command("etl", "--json", LOG_FORMAT="text")

    ran = results(finished)
    (message,) = inbox.messages
    assert finished.returncode == 1  # there is no mart of recommendations
    assert message["type"] == "failure"
    failed = [result["sync"] for result in ran if result["status"] != "ok"]
    assert failed[:3] == ["user_segments", "email_triggers", "recommendations"]
    assert message["title"] == f"searchflow-etl: {', '.join(failed)} did not go through"
    told = message["message"]
    for line in finished.stderr.splitlines():
        if line.startswith("etl: "):
            assert line.removeprefix("etl: ") in told
    runs = {result["sync"]: result["run_id"] for result in ran}
    assert [sync for sync in failed if runs[sync] not in told] == []
    assert "next: python -m etl.user_segments --dry-run\n" in told
    assert "next: python -m etl\n" in told
    assert f"host {socket.gethostname()}" in told
    assert "hush-hush-1" not in told + finished.stderr


@pytest.mark.slow
def test_a_failure_is_told_also_where_stdout_takes_nothing(mart: Mart, inbox: Inbox) -> None:
    mart(segments(BAD))
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "etl.user_segments"],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=full,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    assert ended.returncode == 1
    assert len(inbox.messages) == 1


def test_what_fails_every_hour_is_told_once_and_after_a_day_again_and_so_is_its_end(
    mart: Mart, inbox: Inbox
) -> None:
    def runs(rows: str, hours_later: float = 1) -> int:
        """Run it so much later; the number of messages so far."""
        moved = [
            f"{name} = {name} - make_interval(mins => {round(60 * hours_later)})"
            for name in ("started_at", "finished_at", "alerted_at")
        ]
        execute(f"UPDATE etl.sync_runs SET {', '.join(moved)}")
        mart(segments(rows))
        command("etl.user_segments")
        return len(inbox.messages)

    assert [runs(GOOD), runs(BAD), runs(BAD), runs(BAD), runs(BAD, 10)] == [0, 1, 1, 1, 1]
    assert [runs(BAD, 12), runs(BAD)] == [2, 2]
    assert [runs(GOOD), runs(GOOD)] == [3, 3]
    assert inbox.messages[2]["type"] == "success"
    assert inbox.messages[2]["title"] == "searchflow-etl: user_segments went well again"
    assert "user_segments ok again: 2 unchanged (run " in inbox.messages[2]["message"]
    assert runs(BAD) == 4


def test_what_was_not_told_is_told_by_the_next_run(mart: Mart, inbox: Inbox) -> None:
    mart(segments(BAD))
    inbox.status = 500
    finished = command("etl.user_segments", LOG_FORMAT="text")
    assert (finished.returncode, len(inbox.messages)) == (3, 1)
    assert re.search(r"alert\.not_sent .*URL 1 of ALERT_URLS \(json\) did not", finished.stderr)

    inbox.status = 200
    command("etl.user_segments")
    command("etl.user_segments")
    assert len(inbox.messages) == 2


def test_dry_runs_and_stops_and_python_tell_nobody(
    mart: Mart, inbox: Inbox, select: Select
) -> None:
    mart(segments(GOOD))
    user_segments.sync()
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    with stuck(select, "a") as process:
        process.terminate()
        process.communicate(timeout=HANG)
    assert process.returncode == 143
    mart(segments(BAD))

    assert command("etl.user_segments", "--dry-run").returncode == 3
    with pytest.raises(SyncError):
        user_segments.sync()
    assert command("etl", "--bogus").returncode == 2

    assert inbox.messages == []


def test_where_postgres_is_away_that_is_told(mart: Mart, inbox: Inbox) -> None:
    mart(segments(GOOD))

    finished = command("etl.user_segments", POSTGRES_HOST="127.0.0.1", POSTGRES_PORT="1")

    assert finished.returncode == 1
    assert "cannot connect" in inbox.messages[0]["message"]


def test_settings_that_make_no_sense_are_told(inbox: Inbox) -> None:
    finished = command("etl.user_segments", REDIS_PORT="x")

    assert finished.returncode == 2
    assert "etl: settings: REDIS_PORT: 'x' is not a whole number" in inbox.messages[0]["message"]


@pytest.mark.few(1)  # each waits 5 s for a server that says nothing
@pytest.mark.parametrize("between", [" ", "\n", ",", ", "])
def test_several_are_told_and_one_that_does_not_listen_keeps_none_from_it(
    between: str, mart: Mart, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments(BAD))
    with socket.create_server(("127.0.0.1", 0)) as deaf, silent() as port:
        dead = deaf.getsockname()[1]
        deaf.close()
        urls = (
            f"json://127.0.0.1:{dead}",
            f"json://127.0.0.1:{port}",
            "nonsense://hush-hush-2",
            inbox.url,
        )
        monkeypatch.setenv("ALERT_URLS", between.join(urls))
        monkeypatch.setattr(alerts, "_SENDING_SECONDS", 3)
        import_module("apprise")  # which is no part of sending
        without = command("etl.user_segments", "--json", ALERT_URLS="")
        with within(4 + 10):
            finished = command("etl.user_segments", "--json", LOG_FORMAT="text")

    assert finished.returncode == without.returncode == 3
    assert len(inbox.messages) == 1
    told = finished.stderr
    assert "URL 1 of ALERT_URLS (json) did not take it" in told
    assert "URL 2 of ALERT_URLS (json) did not answer" in told
    assert "URL 3 of ALERT_URLS (nonsense) is none that Apprise knows" in told
    assert "hush-hush" not in told


def test_a_mail_is_told_in_the_words_of_the_terminal(mart: Mart, environment: object) -> None:
    mails: list[Any] = []

    class Keep:
        async def handle_DATA(self, _: object, __: object, envelope: Any) -> str:
            mails.append(envelope)
            return "250 OK"

    mart(segments(BAD))
    controller = Controller(Keep(), hostname="127.0.0.1", port=0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        controller.port = free.getsockname()[1]
    controller.start()
    try:
        url = f"mailto://127.0.0.1:{controller.port}?from=etl@example.org&to=ops@example.org"
        finished = command("etl.user_segments", ALERT_URLS=url, LOG_FORMAT="text")
    finally:
        controller.stop()

    (envelope,) = mails
    assert envelope.rcpt_tos == ["ops@example.org"]
    mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert mail["subject"] == "searchflow-etl: user_segments did not go through"
    body = mail.get_body(("plain",))
    assert body is not None
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("etl: ")]
    assert line.removeprefix("etl: ") in " ".join(body.get_content().split())


def test_a_missing_apprise_is_named_in_one_line_and_nothing_else_changes(
    mart: Mart, inbox: Inbox, tmp_path: Path
) -> None:
    mart(segments(BAD))
    (tmp_path / "sitecustomize.py").write_text(HIDES_APPRISE)

    finished = process("etl.user_segments", LOG_FORMAT="text", PYTHONPATH=str(tmp_path))

    assert finished.returncode == 3
    (line,) = [line for line in finished.stderr.splitlines() if "alert" in line]
    assert "ALERT_URLS is set; pip install 'searchflow-etl[alerts]'" in line


def test_who_was_told_is_in_the_ledger(mart: Mart, inbox: Inbox, select: Select) -> None:
    mart(segments(BAD))
    command("etl.user_segments")

    (row,) = select("SELECT alerted_at IS NOT NULL AS told FROM etl.sync_runs")
    assert row["told"]


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


HIDES_APPRISE = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name == "apprise" else find_spec(name, *rest)
)
"""
