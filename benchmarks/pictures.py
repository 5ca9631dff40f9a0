"""The bench's two pictures, drawn from the rows of its table.

usage: pictures.py results/NAME.json draws them again from the figures of a run.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent

CASES = [
    "user_segments, first load",
    "user_segments, nothing changed",
    "user_segments, 1 % changed",
    "user_segments, all changed",
    "recommendations, first load",
    "email_triggers, first load",
    "email_triggers, nothing changed",
    "email_triggers, every mail sent",
]
CLIP = 3.5  # times ours: longer bars are cut off there and say so
BAR, PANEL = 17, 470  # height of a bar with its gap; width of a panel
LABELS, VALUES = 180, 108  # widths of a panel's names and figures
LENGTH = PANEL - LABELS - VALUES

SYNCS = {
    "user_segments, first load": "a",
    "user_segments, nothing changed": "b",
    "email_triggers, first load": "c",
    "recommendations, first load": "d",
}
WIDTH, HEIGHT = 240, 250  # of each chart over sizes
APART = 14  # of two labels at the right of a chart, at least

Row = dict[str, Any]


def draw(rows: list[Row], users: int, path: Path) -> None:
    """Write <path>-cases.svg, and <path>-sizes.svg where more than one size was measured."""
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True)

    def write(name: str, **figures: object) -> None:
        svg = templates.get_template(f"{name}.svg.j2").render(users=users, **figures)
        path.with_name(f"{path.stem}-{name}.svg").write_text(svg)

    write("cases", panels=_panels(rows), bar=BAR, labels=LABELS, length=LENGTH, width=PANEL)
    charts = [
        _chart(rows, users, "seconds", "seconds (logarithmic)", is_logarithmic=True),
        _chart(rows, users, "megabytes", "peak memory of the process, MB"),
    ]
    if len(charts[0]["xs"]) > 1:
        write("sizes", charts=charts, width=WIDTH, height=HEIGHT)


def _panels(rows: list[Row]) -> list[Row]:
    """A panel of bars for each case, two abreast."""
    panels: list[Row] = []
    top = 0
    for number, case in enumerate(CASES):
        bars = _bars([row for row in rows if row["case"] == case], _limit(rows, case))
        if number % 2 == 0:
            top = max((panel["bottom"] for panel in panels), default=76)
        limit = next((bar["length"] for bar in bars if bar["kind"] == "limit"), None)
        bottom = top + 30 + BAR * len(bars) + 22
        x = 16 + number % 2 * (PANEL + 12)
        panels.append(
            {"case": case, "x": x, "y": top, "bottom": bottom, "bars": bars} | {"limit": limit}
        )
    return panels


def _limit(rows: list[Row], case: str) -> Row | None:
    """The limit that the table compares a case with."""
    same = (case, f"{case.split(',', maxsplit=1)[0]}, first load", "user_segments, first load")
    limits = {row["case"]: row for row in rows if row["contender"] == "the limit"}
    return next((limits[name] for name in same if name in limits), None)


def _bars(rows: list[Row], limit: Row | None) -> list[Row]:
    ours = next(row["seconds"] for row in rows if row["contender"] == "searchflow")
    others = [row for row in rows if row["contender"] != "the limit"]
    shown = sorted(others, key=lambda row: row["seconds"])
    shown = [limit, *shown] if limit else shown
    longest = max(row["seconds"] for row in shown)
    end = min(longest, CLIP * ours)
    return [
        {
            "name": row["contender"],
            "seconds": row["seconds"],
            "times": row["seconds"] / ours,
            "length": round(min(row["seconds"] / end, 1) * LENGTH, 1),
            "is_cut": row["seconds"] > end,
            "kind": _kind(row, ours),
        }
        for row in shown
    ]


def _kind(row: Row, ours: float) -> str:
    known = {"the limit": "limit", "searchflow": "ours"}
    return known.get(row["contender"], "faster" if row["seconds"] < ours else "slower")


def _chart(
    rows: list[Row], users: int, figure: str, title: str, *, is_logarithmic: bool = False
) -> Row:
    """A line for each sync over the sizes that were measured; sizes are logarithmic."""
    lines = {name: _points(rows, users, name, figure) for name in SYNCS}
    xs = sorted({size for points in lines.values() for size, _ in points})
    values = [value for points in lines.values() for _, value in points]
    ticks = _powers(values) if is_logarithmic else list(range(0, int(max(450, *values)) + 100, 100))
    left, right, low, high = math.log10(xs[0]), math.log10(xs[-1]), ticks[0], ticks[-1]

    def x(size: float) -> float:
        return round((math.log10(size) - left) / ((right - left) or 1) * WIDTH, 1)

    def y(value: float) -> float:
        if is_logarithmic:
            low10, high10 = math.log10(low), math.log10(high)
            return round(HEIGHT - (math.log10(value) - low10) / (high10 - low10) * HEIGHT, 1)
        return round(HEIGHT - (value - low) / (high - low) * HEIGHT, 1)

    drawn = [
        {
            "name": name,
            "colour": SYNCS[name],
            "points": [(x(size), y(value)) for size, value in points],
            "last": points[-1][1],
        }
        for name, points in lines.items()
        if points
    ]
    return {
        "title": title,
        "xs": [(x(size), f"{size:,}") for size in xs],
        "ys": [(y(tick), f"{tick:g}") for tick in ticks],
        "lines": _with_labels_apart(drawn),
        "form": "{:.1f} s" if is_logarithmic else "{:.0f} MB",
        "bars": [] if is_logarithmic else [(y(400), "400"), (y(450), "450")],
    }


def _points(rows: list[Row], users: int, name: str, figure: str) -> list[tuple[int, float]]:
    sync, step = name.split(", ")
    found = {}
    for row in rows:
        size = row["users"]
        names = [f"{sync} of {size:,}, {step}", *([name] if size == users else [])]
        if row["contender"] == "searchflow" and row["case"] in names:
            found[size] = row[figure]
    return sorted(found.items())


def _powers(values: list[float]) -> list[float]:
    first, last = (
        round_(math.log10(of(values))) for round_, of in ((math.floor, min), (math.ceil, max))
    )
    return [10.0**power for power in range(first, last + 1)]


def _with_labels_apart(lines: list[Row]) -> list[Row]:
    """Set each line's label at its end, and below the one above where they would touch."""
    lowest = -math.inf
    lines = sorted(lines, key=lambda line: line["points"][-1][1])
    for line in lines:
        line["label"] = lowest = max(line["points"][-1][1], lowest + APART)
    return lines


if __name__ == "__main__":
    results = Path(sys.argv[1])
    run = json.loads(results.read_text())
    draw(run["cases"], run["users"], results.with_suffix(""))
