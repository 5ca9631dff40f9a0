"""`python -m etl.status --html`: one page, looked at in a real Chromium."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, chromium
from conftest import command
from destinations import execute

from etl.errors import UsageError
from etl.status import html
from etl.syncs import SYNCS

HOSTILE = "<script>console.error(1)</script><img src=//example.com/x>" + "a_long_word" * 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "screen",
    [(390, "light"), (390, "dark"), (840, "light"), (1600, "light"), (1600, "dark")],
)
@pytest.mark.parametrize("runs", [0, 3, 300])
def test_a_browser_shows_all_of_it_without_a_complaint(
    runs: int, screen: tuple[int, str], browser: Page, environment: object, tmp_path: Path
) -> None:
    put(runs)
    file = tmp_path / "page.html"
    finished = command("etl.status", "--html", str(file))
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr

    browser.show(file, screen[0], dark=screen[1] == "dark")

    assert browser.complaints == []
    assert browser.requests == [file.as_uri()]
    assert browser.evaluate(WIDER) == []
    assert browser.evaluate(FAINT) == []
    # Or the measures measure nothing.
    spoil = "document.body.insertAdjacentHTML('beforeend', '<p style=\"width: 2000px;"
    browser.evaluate(spoil + " color: #888; background: #999\">x</p>')")
    assert len(browser.evaluate(WIDER)) == len(browser.evaluate(FAINT)) == 1


@pytest.mark.every_sync
def test_it_says_first_whether_all_is_well(environment: object, tmp_path: Path) -> None:
    assert title(tmp_path) == "Nothing has run yet"
    put(len(SYNCS))
    assert title(tmp_path) == "All is well"
    put(1, "failed")
    assert title(tmp_path) == f"1 of {len(SYNCS)} syncs needs a look"
    text = (tmp_path / "page.html").read_text()
    assert "Next: <code>python -m etl.user_segments</code>" in text


@pytest.mark.every_sync
def test_it_shows_thirty_runs_and_the_queue_by_template(
    environment: object, tmp_path: Path
) -> None:
    put(300)
    title(tmp_path)

    text = (tmp_path / "page.html").read_text()

    assert text.count("<g>") == len(SYNCS) * 2 * 30
    runs = text.partition("<h2>Last runs</h2>")[2]
    assert runs.count("<tr>") == 31
    assert len(re.findall('<path class="mark failed"', text)) == 2
    assert re.search(r'welcome</th><td data-name="pending" class="number named">2</td>', text)
    assert "4 mails wait to be sent, the oldest was queued 3 hours ago." in text


def test_what_the_ledger_holds_is_text_and_no_markup(environment: object, tmp_path: Path) -> None:
    put(1, "failed")
    execute(f"UPDATE etl.sync_runs SET error = '{HOSTILE} airflow-secret-1'")
    title(tmp_path, REDIS_PASSWORD="airflow-secret-1")

    text = (tmp_path / "page.html").read_text()

    assert "&lt;script&gt;" in text
    assert not re.search(r"<script|<img|https?:", text)
    assert "airflow-secret-1" not in text


def test_a_file_that_cannot_be_written_is_one_line(environment: object, tmp_path: Path) -> None:
    finished = command("etl.status", "--html", str(tmp_path / "none" / "page.html"))

    assert finished.returncode == 1
    assert re.fullmatch(
        r"etl: --html /\S+: cannot write it \(No such file or directory\).*\n", finished.stderr
    )


def test_a_missing_jinja_is_named_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with pytest.raises(UsageError, match=r"pip install 'searchflow-etl\[html\]'"):
        html.check()


def put(runs: int, status: str = "ok") -> None:
    """Put so many runs into the ledger, and mails into the queue; of 300 some are not ok."""
    execute(
        "INSERT INTO etl.sync_runs (run_id, sync, shard, shards, status, started_at, finished_at,"
        " mart_built_at, seconds, extracted, inserted, unchanged, rejected, cancelled, forced,"
        " warning, error, version, host, started_by)"
        " SELECT gen_random_uuid()::text, s.sync, 0, 1, s.status, s.at, s.at, s.at, 1.5 + n % 7,"
        f" 1000000, n, 1000000 - n, n % 5, n, false, CASE WHEN n = 3 THEN '{HOSTILE}' END,"
        f" CASE WHEN s.status <> 'ok' THEN '{HOSTILE}' END, '1', 'h', 'me'"
        f" FROM generate_series(1, {runs}) AS n, LATERAL (SELECT"
        f" ('{{{','.join(SYNCS)}}}'::text[])[1 + (n - 1) % {len(SYNCS)}] AS sync,"
        f" CASE WHEN {runs} < 300 THEN '{status}' WHEN n = 1 THEN 'failed' WHEN n = 2 THEN"
        " 'running' WHEN n = 6 THEN 'refused' WHEN n = 8 THEN 'cancelled' ELSE 'ok' END AS status,"
        " now() - make_interval(mins => 10 * n - 9) AS at) AS s",
        "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, status,"
        " created_at) SELECT n::text, (ARRAY['welcome', 'win_back', 'abandoned_search'])[n], now(),"
        f" 1, '{{}}', s, now() - interval '3 hours' FROM generate_series(1, {min(runs, 3)}) AS n,"
        " unnest('{pending,processing,sent,failed,cancelled}'::text[]) AS s"
        " ON CONFLICT DO NOTHING",
    )
    if runs == 300:
        execute(
            "INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload,"
            " created_at) SELECT 'u', 'welcome', now(), 1, '{}', now()"
        )


def title(folder: Path, **environment: str) -> str:
    """Write the page; return its first heading."""
    file = folder / "page.html"
    assert command("etl.status", "--html", str(file), **environment).returncode == 0
    (found,) = re.findall(r"<h1>(.*?)</h1>", file.read_text())
    return str(found)


# Elements that reach beyond the screen.
WIDER = """
[...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.outerHTML.slice(0, 200))
"""

# Elements with a text whose contrast is below 4.5, WCAG's AA.
FAINT = """
(() => {
    const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
    const light = c => rgb(c).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor;
            if (rgb(c)[3] !== 0) return c;
        }
        return 'rgb(255, 255, 255)';
    };
    return [...document.querySelectorAll('body *')].filter(e =>
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
        && e.getClientRects().length
    ).filter(e => {
        const pair = [light(getComputedStyle(e).color), light(behind(e))].sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05) < 4.5;
    }).map(e => e.outerHTML.slice(0, 200));
})()
"""
