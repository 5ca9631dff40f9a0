"""Tell people by Apprise (ALERT_URLS) that a run failed, was refused, or went well again.

One message for all that a command did. It takes at most five seconds and changes nothing of how the
command ends; what could not be sent is logged.
"""

from __future__ import annotations

import os
import re
import socket
from concurrent.futures import wait
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from etl.cli import report
from etl.cli.advice import next_command
from etl.errors import SyncError
from etl.plumbing import log
from etl.plumbing.redact import one_line
from etl.plumbing.threads import in_thread
from etl.settings import Settings, alert_urls, env_secrets, hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from apprise import Apprise

    from etl.result import SyncResult

# All in all, and of it what asking the ledger and sending may take: Postgres may be what failed.
_SECONDS = 5.0
_ASKING_SECONDS = 1.5
_SENDING_SECONDS = 3.0

_UNKNOWN = "is none that Apprise knows"


_NOT_INSTALLED = "ALERT_URLS is set; pip install 'searchflow-etl[alerts]'"


def check() -> None:
    """Log it where alerts are asked for and Apprise is not installed."""
    if alert_urls() and find_spec("apprise") is None:
        log.warning("alerts.not_installed", reason=_NOT_INSTALLED)


def problems() -> list[str]:
    """Say what is wrong with ALERT_URLS, as far as that shows without a message."""
    if find_spec("apprise") is None:
        return [_NOT_INSTALLED]
    return [f"{where} {_UNKNOWN}" for url, where in _named(alert_urls()) if not _service(url)]


def try_out() -> list[str]:
    """Send a test message to every URL at once; say what did not take it."""
    if find_spec("apprise") is None:
        return [_NOT_INSTALLED]
    body = f"A test, sent by python -m etl.check --alert on host {hidden(socket.gethostname())}."
    return _notify(alert_urls(), "searchflow-etl: a test", body, good=True)


def send(results: Sequence[SyncResult]) -> None:
    """Tell what failed, was refused or went well again, where ALERT_URLS says so.

    Args:
        results: of the syncs that ran; dry and cancelled ones are left out.
    """
    told = [one for one in results if not one["dry_run"] and one["status"] != "cancelled"]
    if told and alert_urls():
        _in_time(lambda: _tell(told))


def send_error(error: SyncError) -> None:
    """Tell that nothing was begun, because the settings make no sense."""
    if urls := alert_urls():
        line = one_line(f"etl: {error}", env_secrets(os.environ))
        body = f"{line}\nhost {hidden(socket.gethostname())}\nnext: python -m etl --help"
        _in_time(lambda: _log(_notify(urls, "searchflow-etl failed", body, good=False)))


def _in_time(work: Callable[[], object]) -> None:
    """Do it without waiting for long, and log what goes wrong: it must not hide how a run ended."""
    done = in_thread(work)
    if not wait([done], _SECONDS).done:
        log.warning("alert.not_sent", reason=f"no answer within {_SECONDS:g} s")
    elif error := done.exception():
        log.warning("alert.not_sent", reason=type(error).__name__)


def _tell(results: list[SyncResult]) -> None:
    due: dict[str, bool] = {}
    wait([in_thread(partial(_ask, results, due))], _ASKING_SECONDS)
    # Where the ledger does not answer, a failure is told and a success is not.
    known = dict(due)
    chosen = [one for one in results if known.get(one["run_id"], one["status"] != "ok")]
    if not chosen:
        return
    failed = [one for one in chosen if one["status"] != "ok"]
    urls = alert_urls()
    unsent = _log(_notify(urls, _title(chosen), _body(chosen), good=not failed))
    if len(unsent) < len(urls) and known:
        _remember(failed)


def _ask(results: list[SyncResult], due: dict[str, bool]) -> None:
    """Ask the ledger which of them to tell; the answers are in `due`, by run id."""
    from etl import postgres

    with postgres.trusted_session(Settings.from_environment(), "etl.alerts") as ledger:
        for one in results:
            for row in postgres.query(ledger, "alert_due", one["sync"], one["run_id"]):
                due[one["run_id"]] = row["due"]


def _remember(failed: list[SyncResult]) -> None:
    """Say in the ledger that these were told, so that the next ones wait a day."""
    import orjson

    from etl import postgres

    ids = orjson.dumps([one["run_id"] for one in failed]).decode()
    with postgres.trusted_session(Settings.from_environment(), "etl.alerts") as ledger:
        postgres.query(ledger, "alert_sent", ids)
        ledger.commit()


def _title(results: list[SyncResult]) -> str:
    failed = [one["sync"] for one in results if one["status"] != "ok"]
    names = failed or [one["sync"] for one in results]
    verb = "did not go through" if failed else "went well again"
    return f"searchflow-etl: {', '.join(names)} {verb}"


def _body(results: list[SyncResult]) -> str:
    lines = []
    for one in results:
        run = f"run {one['run_id']}"
        if one["status"] == "ok":
            lines.append(f"{one['sync']} ok again: {report.outcome(one)} ({run})")
        else:
            following = next_command(one["sync"], one["status"], one.get("error"))
            lines.append(f"{report.reason(one)} ({run})\nnext: {following}")
    return hidden("\n".join([*lines, f"host {socket.gethostname()}"]))


def _log(problems: list[str]) -> list[str]:
    for problem in problems:
        if problem != _NOT_INSTALLED:  # which `check` has told
            log.warning("alert.not_sent", reason=problem)
    return problems


def _notify(urls: Sequence[str], title: str, body: str, *, good: bool) -> list[str]:
    """Send to every URL at once; return what went wrong with which."""
    if find_spec("apprise") is None:
        return [_NOT_INSTALLED] * len(urls)
    posts = [in_thread(partial(_post, url, title, body, good=good)) for url in urls]
    wait(posts, _SENDING_SECONDS)
    return [
        f"{where} {problem}"
        for post, (_, where) in zip(posts, _named(urls), strict=True)
        if (problem := _answer(post))
    ]


def _answer(post: Future[str]) -> str:
    """What went wrong; an exception is not repeated, because it may quote the secret address."""
    return post.result() if post.done() and not post.exception() else "did not answer"


def _named(urls: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each URL and what it may be called in public."""
    for number, url in enumerate(urls, start=1):
        scheme = re.sub(r"[^a-z0-9+.-]", "", url.partition("://")[0].lower())
        yield url, f"URL {number} of ALERT_URLS ({scheme})"


def _post(url: str, title: str, body: str, *, good: bool) -> str:
    """Send to one URL; return what went wrong, "" for nothing."""
    import apprise

    kind = apprise.NotifyType.SUCCESS if good else apprise.NotifyType.FAILURE
    if (service := _service(url)) is None:
        return _UNKNOWN
    return "" if service.notify(body, title, kind, body_format="text") else "did not take it"


def _service(url: str) -> Apprise | None:
    """Return what sends to a URL, None where Apprise does not know it."""
    import apprise

    service = apprise.Apprise()
    return service if service.add(url) else None
