"""The check for known vulnerabilities: none is passed over, and no index is no failure."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import pytest
from conftest import ROOT

judge = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["judge"]

FINE = {"name": "redis", "version": "8.1.0", "vulns": []}
BAD = {
    "name": "pluggy",
    "version": "1.7.0",
    "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.8"], "aliases": [], "description": ""}],
}
NOT_TOLD = {
    "name": "orjson",
    "skip_reason": "Dependency not found on PyPI and could not be audited",
}
UNRESOLVED = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='index', port=443)"
REFUSED = "requests.exceptions.ProxyError: HTTPSConnectionPool(host='index', port=443)"
SLOW = "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed"
BROKEN = "ERROR:pip_audit._cli:package certifi has duplicate requirements"


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([FINE], 0, "nothing known of 1 packages"),
        ([FINE, BAD], 1, "pluggy 1.7.0: CVE-2026-1, mended in 1.8"),
        ([BAD, NOT_TOLD], 1, "pluggy 1.7.0: CVE-2026-1, mended in 1.8"),
        ([FINE, NOT_TOLD], 1, "the package index does not know orjson"),
        ([NOT_TOLD], 3, "not checked, the package index knows none of these packages"),
    ],
)
def test_what_is_known_fails_and_what_is_not_told_is_said(
    packages: list[dict[str, Any]], code: int, told: str
) -> None:
    got, lines = judge(json.dumps({"dependencies": packages, "fixes": []}), "")

    assert (got, lines[0]) == (code, told)


@pytest.mark.parametrize("error", [UNRESOLVED, REFUSED, SLOW])
def test_an_index_that_cannot_be_reached_is_no_failure(error: str) -> None:
    assert judge("", f"Traceback\n{error}") == (
        3,
        [f"not checked, the package index cannot be asked: {error}"],
    )


def test_a_check_that_breaks_is_a_failure() -> None:
    assert judge("", BROKEN) == (1, [f"not checked, pip-audit failed: {BROKEN}"])


@pytest.mark.parametrize(
    "name", [".ci/run", "Makefile", "Dockerfile", "tests/dbt_project/README.md"]
)
def test_nothing_is_installed_but_by_its_hash(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    installs = re.findall(r"pip\b[^\n&]* (?:install|wheel) [^\n&]*", text)

    open_ends = [one for one in installs if not re.search(r"--require-hashes|--no-deps", one)]
    assert open_ends == []
    assert installs or name == ".ci/run"


def test_everything_that_is_pinned_has_hashes_and_names_no_address() -> None:
    for lock in ROOT.rglob("requirements*.lock"):
        if ".venv" not in str(lock.relative_to(ROOT)):
            text = lock.read_text()
            assert text.count("==") <= text.count("--hash=sha256:"), lock
            assert "://" not in text, lock
