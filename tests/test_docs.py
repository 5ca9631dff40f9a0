"""The documentation: what it tells to do works, and what it points at is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT, segments
from fixture_types import Mart, Select

from demo.embedded import Servers
from etl import user_segments

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_syncs_are_added_as_their_page_says(
    environment: Path, mart: Mart, keys: redis.Redis, tmp_path: Path
) -> None:
    copy = copy_of_the_tree(tmp_path)
    # Under names that nobody takes who tries the page out: this runs in that tree as well.
    page = (ROOT / "docs" / "adding-a-sync.md").read_text()
    for name in ("destination_stats", "destination_cards"):
        page = page.replace(name, name.replace("destination", "in_the_docs"))
    for file, kind, block in steps(page):
        write(copy / file, kind, block)
    mart(
        "CREATE TABLE mart_in_the_docs_stats AS SELECT 'Miami' AS destination,"
        " DATE '2026-05-01' AS month, 7 AS searches, 12.5 AS revenue, now() AS segmented_at"
    )

    run(copy, "pytest", "-m", "every_sync", "tests")
    run(copy, "pytest", "tests/test_in_the_docs_stats.py")
    run(copy, "ruff", "check")
    run(copy, "ruff", "format", "--check")
    run(copy, "mypy")
    run(copy, "sqlfluff", "lint", "--quiet", "sql")
    run(copy, "etl.init_db")
    assert "1 inserted" in run(copy, "etl.in_the_docs_stats", "--dry-run", "--delete-missing")
    assert "1 inserted" in run(copy, "etl.in_the_docs_stats", "--delete-missing")
    assert "1 inserted" in run(copy, "etl.in_the_docs_cards", "--dry-run")
    assert "1 written" in run(copy, "etl.in_the_docs_cards")
    assert keys.get("card:Miami|2026-05-01") == b'{"searches":7}'
    assert "in_the_docs_cards" in run(copy, "etl.status")


IN_LISTS = r"(?:(total_conversions = \w+\.)|([ts]\.)?)total_conversions,(\s+)"


def beside(one: re.Match[str]) -> str:
    """What step 4 of the recipe makes of total_conversions in a SET, a comparison or a list."""
    mine = one[0].replace("total_conversions", "loyalty_tier")
    return one[0] + (mine.replace("tier", 'tier COLLATE "C"') if one[2] == "t." else mine)


# What the recipe says is done in each file.
EDITS: dict[str, list[tuple[str, Any]]] = {
    "sql/postgres/schema.sql": [
        ("(?=    previous_segment +text)", "    loyalty_tier text,\n"),
        (
            "(?=-- makes: crm.email_queue\n)",
            "-- makes: crm.user_segments.loyalty_tier\nALTER"
            " TABLE crm.user_segments ADD COLUMN IF NOT EXISTS loyalty_tier text;\n",
        ),
    ],
    "sql/warehouse/user_segments.sql": [
        ("(?=segmented_at AS built_at)", "loyalty_tier, "),
        ("(?=NULL AS segmented_at)", "NULL::VARCHAR AS loyalty_tier, "),
    ],
    "sql/warehouse/email_triggers.sql": [
        ("(?=NULL AS segmented_at)", "NULL::VARCHAR AS loyalty_tier, ")
    ],
    "etl/user_segments.py": [
        ("(?=    built_at = )", "    loyalty_tier = dy.String(nullable=True)\n"),
        (r'(?<=        "segment",\n)', '        "loyalty_tier",\n'),
    ],
    **{
        f"sql/postgres/user_segments{name}.sql": [(IN_LISTS, beside)]
        for name in ("", "_insert", "_update", "_current", "_altered")
    },
    "sql/postgres/explain_segment.sql": [(IN_LISTS, beside)],
    "sql/postgres/user_segments_changes.sql": [
        (
            r"(?<=ARRAY\[)",
            'CASE WHEN s.loyalty_tier COLLATE "C" IS DISTINCT FROM t.loyalty_tier'
            " THEN 'loyalty_tier' END,",
        )
    ],
    "tests/test_init_db.py": [
        (r'(?=\("previous_segment", "text")', '("loyalty_tier", "text", "YES"),')
    ],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_column_is_added_as_the_readme_says(
    environment: Path, mart: Mart, tmp_path: Path
) -> None:
    recipe = (ROOT / "README.md").read_text().partition("**A new column**")[2].partition("**")[0]
    named = set(re.findall(r"\w+\.(?:sql|py)(?=`)", recipe)) - {"test_columns.py"}
    assert named == {Path(file).name.replace("user_segments_", "_") for file in EDITS}
    copy = copy_of_the_tree(tmp_path)
    for file, edits in EDITS.items():
        for old, new in edits:
            text, times = re.subn(old, new, (copy / file).read_text())
            assert times, (file, old)
            (copy / file).write_text(text)

    tests = [f"tests/test_{name}.py" for name in ("columns", "explain", "init_db", "show")]
    run(copy, "pytest", "-m", "not slow", *tests, "tests/test_user_segments.py")
    mart(segments("('a', 'at_risk', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    run(copy, "etl.init_db")
    assert "2 inserted" in run(copy, "etl.user_segments")  # the mart does not have it yet
    mart("ALTER TABLE mart_user_segments ADD COLUMN loyalty_tier VARCHAR DEFAULT 'gold'")
    shown = run(copy, "etl.user_segments", "--dry-run", "--show", "2")
    assert len(re.findall("loyalty.tier .*gold", shown)) == 2
    assert "2 updated" in run(copy, "etl.user_segments")
    assert "2 unchanged" in run(copy, "etl.user_segments")
    assert "1 inserted" in run(copy, "etl.email_triggers")


def test_a_partitioned_table_is_synced_like_any_other(
    servers: Servers, mart: Mart, select: Select
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0), ('b', 'regular', 1, 0, 0)"))
    user_segments.sync()
    page = (ROOT / "docs" / "scaling-out.md").read_text()
    _, sql = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    psql = [*shlex.split(servers.psql), "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1"]
    subprocess.run(psql, input=sql, text=True, check=True)
    before = select("SELECT * FROM crm.user_segments ORDER BY user_id")

    assert user_segments.sync()["unchanged"] == 2
    assert select("SELECT * FROM crm.user_segments ORDER BY user_id") == before
    mart(segments("('b', 'high_value', 1, 0, 0), ('c', 'regular', 1, 0, 0)"))
    result = user_segments.sync(delete_missing=True, force=True)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 1)
    parts = "SELECT FROM pg_inherits WHERE inhparent = 'crm.user_segments'::regclass"
    assert len(select(parts)) == 16


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^)make ((?:[a-z-]+ ?)+)", page.read_text(), re.MULTILINE)

    assert {word for words in named for word in words.split()} <= targets


def copy_of_the_tree(folder: Path) -> Path:
    copy = folder / "copy"
    not_ours = (".git", ".venv*", ".demo", ".hypothesis", ".*_cache", "__pycache__", "data", "dist")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*not_ours))
    return copy


def steps(page: str) -> list[tuple[str, str, str]]:
    """File, language and text of each step that has them."""
    step = r"^## \d+\. .*?`([^`]+)`\n.*?```(\w+)\n(.*?)```"
    found = re.findall(step, page, re.MULTILINE | re.DOTALL)
    assert len(found) == 13
    return found


def write(file: Path, kind: str, block: str) -> None:
    if kind == "diff":
        lines = block.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    else:
        with file.open("a") as end:
            end.write(block)


def run(copy: Path, *command: str) -> str:
    """Run it as a module in the copy, which must go well."""
    finished = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "LOG_FORMAT": "text"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout
