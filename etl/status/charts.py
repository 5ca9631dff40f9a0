"""Bars of the last runs, as figures that the page's template draws as SVG."""

from __future__ import annotations

from typing import Any

from etl.status.flags import HTML_RUNS

# In units of the page: how wide a bar is, and with its gap, and how high a chart is.
RUNS = HTML_RUNS
BAR, STEP, HEIGHT = 9, 12, 56

# Names and values, from the bottom of a bar up.
_Parts = list[tuple[str, float]]

# A part that is there is seen, however small beside the others.
_LEAST = 2

# What became of rows, from the bottom of a bar up. Rows below a score are left out: beside
# them stand keys, and a key is made of several rows.
OUTCOMES = {
    "written": ("inserted", "updated", "written"),
    "removed": ("deleted", "cancelled"),
    "unchanged": ("unchanged", "suppressed", "held_back"),
    "rejected": ("rejected",),
}


def of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return two charts of some runs, the oldest first.

    Returns:
        `seconds` and `rows`: a bar of each run, empty where it was not ok; `longest` and `most`:
        what the highest bar of each stands for; `outcomes`: the names that occur in `rows`.
    """
    seconds: list[_Parts] = [[("seconds", run["seconds"] or 0)] for run in runs]
    rows: list[_Parts] = [
        [(name, sum(run[count] or 0 for count in counts)) for name, counts in OUTCOMES.items()]
        for run in runs
    ]
    ok = [run["status"] == "ok" for run in runs]
    seconds, rows = _only(seconds, ok), _only(rows, ok)
    longest, most = _highest(seconds), _highest(rows)
    return {
        "seconds": _bars(runs, seconds, longest),
        "rows": _bars(runs, rows, most),
        "longest": longest,
        "most": most,
        "outcomes": {name for parts in rows for name, _ in parts},
    }


def _only(bars: list[_Parts], ok: list[bool]) -> list[_Parts]:
    return [
        [part for part in parts if part[1] > 0] if is_ok else []
        for parts, is_ok in zip(bars, ok, strict=True)
    ]


def _highest(bars: list[_Parts]) -> float:
    return max((sum(value for _, value in parts) for parts in bars), default=0)


def _bars(runs: list[dict[str, Any]], bars: list[_Parts], highest: float) -> list[dict[str, Any]]:
    first = RUNS - len(runs)  # the newest stands at the right
    return [
        {"x": (first + number) * STEP, "run": run, "parts": _stacked(parts, highest)}
        for number, (run, parts) in enumerate(zip(runs, bars, strict=True))
    ]


def _stacked(parts: _Parts, highest: float) -> list[dict[str, Any]]:
    """Return the parts of a bar from the bottom up; the largest makes room for the least."""
    if not parts:
        return []
    heights = [max(value / highest * HEIGHT, _LEAST) for _, value in parts]
    if (excess := sum(heights) - HEIGHT) > 0:
        heights[heights.index(max(heights))] -= excess
    bottom = float(HEIGHT)
    stacked = []
    for (name, value), height in zip(parts, heights, strict=True):
        bottom -= height
        stacked.append(
            {"name": name, "value": value, "y": round(bottom, 1), "height": round(height, 1)}
        )
    return stacked
