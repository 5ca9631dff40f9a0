"""Ask the package index what it knows of vulnerabilities in what is pinned: `make audit`.

pip-audit ends with 0 also where the index knew none of the packages, and with 1 also where it
could not ask. This ends with 0 when no vulnerability is known, with 1 when one is or when
pip-audit fails, and with 3 when the index cannot be asked: .ci/run goes on then, because not every
machine reaches one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What .ci/run installs; the locks of benchmarks/ and tests/dbt_project/ are for by hand.
LOCKS = [*sorted(ROOT.glob("requirements*.lock")), ROOT / "tests" / "airflow" / "requirements.lock"]
OPTIONS = ("--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json")
UNREACHABLE = (
    r"requests\.exceptions\.(\w*ConnectionError|ProxyError|SSLError|\w*Timeout)\b|Could not connect"
)


def main(pip_audit: str) -> int:
    """Ask about one lock after the other; print what is wrong, one line each."""
    codes = set()
    for lock in LOCKS:
        command = [pip_audit, *OPTIONS, "--requirement", str(lock)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        code, lines = judge(ran.stdout, ran.stderr)
        codes.add(code)
        print("\n".join(f"audit: {lock.relative_to(ROOT)}: {line}" for line in lines))
        if code == 3:
            break
    return 1 if 1 in codes else max(codes)


def judge(output: str, errors: str) -> tuple[int, list[str]]:
    """Return the exit code for what pip-audit said, and what to tell."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except ValueError:
        why = (errors.strip().splitlines() or ["it said nothing"])[-1][:300]
        if re.search(UNREACHABLE, why):
            return 3, [f"not checked, the package index cannot be asked: {why}"]
        return 1, [f"not checked, pip-audit failed: {why}"]
    known = [
        f"{package['name']} {package['version']}: {found['id']}, mended in"
        f" {', '.join(found['fix_versions']) or 'no version'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return 3, ["not checked, the package index knows none of these packages"]
    if unknown:
        known.append(f"the package index does not know {', '.join(unknown)}")
    return (1, known) if known else (0, [f"nothing known of {len(packages)} packages"])


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.executable).with_name("pip-audit"))))
