"""What git holds of the notebooks; tests/notebook runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_is_a_notebook_to_check() -> None:
    assert [path.name for path in NOTEBOOKS] == ["explore.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_cell_shows_a_question_and_its_picture_and_sets_nothing_up(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]

    long = [cell["id"] for cell in cells if len("".join(cell["source"]).splitlines()) > 12]

    assert long == [], "what sets a cell up is in demo/notebook.py and demo/pictures.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_output_is_committed(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]

    dirty = [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]

    fix = f".venv-notebook/bin/jupyter nbconvert --clear-output --inplace notebooks/{path.name}"
    assert dirty == [], f"cells with the outcome of a run in them; clear them with: {fix}"
