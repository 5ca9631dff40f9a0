"""The rules of the house that a reader of etl/ counts on (CONTRIBUTING)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# What may import what: a room takes from its own line and from those before it. The commands beside
# the syncs (etl.status, etl.check, ...) take from every room.
ORDER = (
    ("errors", "result", "options", "syncs", "settings", "plumbing"),
    ("warehouse", "postgres", "cache"),
    ("run",),
    ("mail",),
    ("user_segments", "email_triggers", "recommendations"),
)
RANKS = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def test_imports_run_one_way() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imports in IMPORTS.items()
        for imported in imports
        if room(module) in RANKS
        and RANKS.get(room(imported), len(ORDER)) > RANKS[room(module)]
        and imported != "etl"  # its version
    ]

    assert wrong == []


def test_no_imports_go_in_a_circle_not_even_for_types_or_inside_functions() -> None:
    assert [module for module in IMPORTS if module in reached_from(module)] == []


def test_no_module_is_over_250_lines_and_no_function_over_45() -> None:
    modules = [path for path, tree in TREES.items() if len(tree.lines) > 250]
    functions = [
        f"{path}: {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree.code)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 45
    ]

    assert (modules, functions) == ([], [])


@pytest.mark.parametrize("owned", ["run", "attempt", "tally", "job"])
def test_what_a_run_knows_is_changed_by_its_owners_alone(owned: str) -> None:
    """`run.count(...)` is a sync's way to tell; `run.tally.counts = ...` is nobody's outside."""
    changed = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        if not {"run", "plumbing", "look.py"} & set(path.parts)  # look.py has a kind of run
        for node in ast.walk(tree.code)
        if isinstance(node, ast.Attribute | ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and root_of(node) == owned
    ]

    assert changed == []


# The code of etl/


class Tree:
    """One module."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        self.lines = text.splitlines()
        self.code = ast.parse(text)


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(code: ast.Module) -> Iterator[str]:
    """Everything of ours that is imported anywhere, less what a module does as a program."""
    programs = [
        node for node in code.body if isinstance(node, ast.If) and "__main__" in ast.dump(node)
    ]
    for node in ast.walk(ast.Module([one for one in code.body if one not in programs], [])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "etl":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def reached_from(module: str) -> set[str]:
    seen: set[str] = set()
    todo = list(IMPORTS[module])
    while todo:
        if (one := todo.pop()) not in seen:
            seen.add(one)
            todo += IMPORTS[one]
    return seen


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


TREES = {path.relative_to(ROOT): Tree(path) for path in sorted((ROOT / "etl").rglob("*.py"))}
MODULES = {name_of(path) for path in TREES}
IMPORTS = {
    name_of(path): {one for one in imports_of(tree.code) if one != name_of(path)}
    for path, tree in TREES.items()
}
