"""The pictures of notebooks/explore.ipynb: each a PNG with alternative text made of its figures."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import polars as pl
import vl_convert
from IPython.display import Image

from demo import notebook

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#B8B8B8"  # told apart by colour-blind readers too
_LIGHT = "#56B4E9"
_NAMES = alt.Axis(ticks=False, domain=False, labelPadding=6, labelAngle=0)


@alt.theme.register("searchflow", enable=True)  # type: ignore[untyped-decorator]
def theme() -> Any:
    """Larger text, no frames, titles on the left."""
    axis = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "grid": False}
    title = {"anchor": "start", "fontSize": 15, "subtitleFontSize": 12, "subtitleColor": "#555"}
    header = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    header |= {"labelAnchor": "start", "labelOrient": "top", "labelPadding": 2}
    legend = {"labelFontSize": 12, "orient": "top", "offset": 6}
    config = {"axis": axis, "title": title, "header": header, "legend": legend}
    return {"config": {**config, "view": {"stroke": None}}}


def what_a_run_would_do(states: pl.DataFrame, changed: pl.DataFrame) -> Image:
    """Users by state (columns state, users), and the changed ones by column that differs."""
    which = changed["differs"].explode().value_counts(name="users", sort=True)
    chart = _bars(states, "state", "Users, by what a run would do", BLUE) | _bars(
        which, "differs", "Changed users, by column that differs", ORANGE
    )
    return _picture(
        chart,
        f"Bars of users by what a run would do: {_told(states)}."
        f" Bars of the changed users by column that differs: {_told(which)}.",
    )


def sizes(crm: pl.DataFrame, segments: pl.DataFrame) -> Image:
    """Users of each segment, in the CRM and in the mart."""
    counts = {
        place: frame["segment"].value_counts(name="users", sort=True)
        for place, frame in (("CRM now", crm), ("mart", segments))
    }
    both = pl.concat(frame.with_columns(place=pl.lit(place)) for place, frame in counts.items())
    base = alt.Chart(both, title="Users in each segment").encode(
        x=alt.X("users", axis=None),
        y=alt.Y("segment", sort=_order(crm, segments), title=None, axis=_NAMES),
        yOffset="place",
    )
    colour = alt.Color("place", title=None, scale=alt.Scale(range=[GREY, BLUE]))
    chart = base.mark_bar().encode(color=colour) + _figures(base)
    told = "; ".join(f"{place}: {_told(frame)}" for place, frame in counts.items())
    return _picture(
        chart.properties(width=600, height=alt.Step(16)), f"Bars of users in each segment. {told}."
    )


def moves(crm: pl.DataFrame, changed: pl.DataFrame, segments: pl.DataFrame) -> Image:
    """Who went from which segment to which, with earlier runs and with the next."""
    names = _order(crm, segments)
    names += sorted(set(crm["previous_segment"].drop_nulls()) - set(names))  # names of the past
    earlier = _moves(crm, "previous_segment", "segment")
    now = _moves(changed, "segment_crm", "segment")
    chart = _grid(earlier, names, "Moved with earlier runs") | _grid(
        now, names, "Would move with this run"
    )
    told = [
        f"{title}: {', '.join(f'{users:,} from {old} to {new}' for old, new, users in rows)}."
        for title, rows in (
            ("Moved with earlier runs", earlier.iter_rows()),
            ("Would move with this run", now.iter_rows()),
        )
    ]
    return _picture(chart, f"Two grids of users from segment to segment. {' '.join(told)}")


def values(segments: pl.DataFrame) -> Image:
    """How lifetime value is spread over the users of each segment who paid something."""
    step = 0.1  # of a power of ten
    rows = segments.select(
        "segment",
        value=pl.col("lifetime_value").cast(pl.Float64),
        paid=pl.col("lifetime_value") > 0,
    )
    facts = (
        rows.group_by("segment")
        .agg(
            users=pl.len(),
            unpaid=1 - pl.col("paid").mean(),
            median=pl.col("value").filter("paid").median(),
        )
        .drop_nulls("median")
        .sort("median", descending=True)
    )
    labels = [
        f"{segment}: {users:,} users, {unpaid:.0%} paid nothing, median of the others {median:,.0f}"
        for segment, users, unpaid, median in facts.iter_rows()
    ]
    spread = (
        rows.filter("paid")
        .group_by("segment", bin=(pl.col("value").log10() / step).floor())
        .agg(count=pl.len())
        .join(facts.with_columns(label=pl.Series(labels)), on="segment")
        .with_columns(
            share=pl.col("count") / pl.col("users"),
            low=10 ** (step * pl.col("bin")),
            high=10 ** (step * (pl.col("bin") + 1)),
        )
    )
    money = _money([spread["low"].min(), spread["high"].max()])
    share = alt.Y("share", title=None, axis=alt.Axis(format="%", tickCount=3))
    columns = alt.Chart().mark_bar(color=BLUE).encode(money, share, x2="high", y2=alt.datum(0))
    median = alt.Chart().mark_rule(color=ORANGE, strokeWidth=2).encode(x="median")
    chart = alt.layer(columns, median, data=spread, width=640, height=62).facet(
        row=alt.Row("label", sort=labels, title="share of the segment's users"),
        spacing=28,
        bounds="flush",
        title=alt.Title("Lifetime value of paying users", subtitle="orange: the median"),
    )
    return _picture(chart, f"Lifetime value of paying users by segment. {'; '.join(labels)}.")


def ages(mails: pl.DataFrame) -> Image:
    """Mails of each template by the age of their occasion (columns template, age, due)."""
    rules = notebook.oldest().join(
        notebook.by_template(mails), on="template", maintain_order="left"
    )
    labels = [
        f"{template}: {due:,} due, none after {oldest:g} days"
        for template, oldest, due in rules.select("template", "oldest", "due").iter_rows()
    ]
    width = pl.col("oldest") / 18  # of a column: a round part of the longest age
    found = (
        mails.drop_nulls("age")
        .join(rules.with_columns(label=pl.Series(labels)), on="template")
        .group_by("label", "oldest", "due", low=(pl.col("age") / width).floor() * width)
        .agg(mails=pl.len())
        .with_columns(
            high=pl.col("low") + width,
            occasion=pl.when("due").then(pl.lit("due")).otherwise(pl.lit("too old")),
        )
    )
    colours = alt.Scale(domain=["due", "too old"], range=[BLUE, GREY])
    columns = (
        alt.Chart()
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "low", bin="binned", title="age of the occasion, days", scale=alt.Scale(zero=True)
            ),
            x2="high",
            y=alt.Y("mails", title="mails", axis=alt.Axis(labelFlush=True, tickCount=5)),
            color=alt.Color("occasion", title=None, scale=colours),
        )
    )
    title = alt.Title(
        "Mails by age of their occasion", subtitle="dashed: older occasions get no mail"
    )
    chart = (
        alt.layer(columns, _limit().encode(x="oldest"), data=found, width=300, height=130)
        .facet(
            alt.Facet("label", sort=labels, title=None),
            columns=2,
            bounds="flush",
            spacing={"row": 75, "column": 60},
        )
        .resolve_scale(x="independent", y="independent")
        .properties(title=title)
    )
    return _picture(
        chart, f"Mails by age of their occasion, a panel a template. {'; '.join(labels)}."
    )


def scores(scores: pl.DataFrame, threshold: float) -> Image:
    """Recommendations by score (columns score, rank), and which of them are sent."""
    step, sent = 0.05, pl.col("score") > threshold
    kinds = {"not sent": GREY, "sent": BLUE, "sent, the user's best": _LIGHT}
    found = (
        scores.with_columns(
            high=(pl.col("score") / step).round(6).ceil() * step,  # its end is in a bin: the rule
            kind=pl.when(sent & (pl.col("rank") == 1))
            .then(pl.lit("sent, the user's best"))
            .when(sent)
            .then(pl.lit("sent"))
            .otherwise(pl.lit("not sent")),
        )
        .group_by("high", "kind")
        .agg(destinations=pl.len())
        .with_columns(low=pl.col("high") - step)
    )
    part = scores.select(sent.mean()).item()
    title = f"{part:.0%} of the recommendations score above {threshold} and are sent"
    colours = alt.Scale(domain=[*kinds], range=[*kinds.values()])
    axis = alt.Axis(format=",d")
    columns = (
        alt.Chart(found, title=title)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low", bin="binned", title="score", axis=alt.Axis(format=".1f", tickCount=10)),
            x2="high",
            y=alt.Y("destinations", title="recommendations (user and destination)", axis=axis),
            color=alt.Color("kind", title=None, scale=colours),
        )
    )
    chart = columns + _limit().encode(x=alt.datum(threshold))
    return _picture(
        chart.properties(width=640, height=220),
        f"Columns of {len(scores):,} recommendations by score. {title}; the dashed line is the"
        " threshold.",
    )


def _picture(chart: Any, told: str) -> Image:
    """Draw it here: the browser needs no network."""
    png = vl_convert.vegalite_to_png(json.dumps(chart.to_dict()), ppi=144)
    return Image(data=png, retina=True, alt=told)


def _told(counts: pl.DataFrame) -> str:
    return ", ".join(f"{users:,} {name}" for name, users in counts.iter_rows()) or "none"


def _bars(counts: pl.DataFrame, name: str, title: str, colour: str) -> Any:
    """One bar per row, longest first, with its figure."""
    room = alt.Scale(domain=[0, 1.25 * (counts["users"].max() or 1)], nice=False)  # type: ignore[operator]
    base = alt.Chart(counts, title=title).encode(
        x=alt.X("users", axis=None, scale=room), y=alt.Y(name, sort="-x", title=None, axis=_NAMES)
    )
    return (base.mark_bar(color=colour) + _figures(base)).properties(width=260, height=alt.Step(26))


def _figures(base: Any) -> Any:
    return base.mark_text(align="left", dx=5).encode(text=alt.Text("users", format=","))


def _order(crm: pl.DataFrame, segments: pl.DataFrame) -> list[str]:
    """Every segment, those with the most users first."""
    counts = pl.concat([crm.select("segment"), segments.select("segment")])["segment"]
    return (
        counts.value_counts(name="users")
        .sort("users", "segment", descending=[True, False])["segment"]
        .to_list()
    )


def _moves(users: pl.DataFrame, before: str, after: str) -> pl.DataFrame:
    """How many users went from each segment to each other one: before, after, users."""
    return (
        users.group_by(before=before, after=after)
        .agg(users=pl.len())
        .filter(pl.col("before") != pl.col("after"))
        .sort("users", "before", "after", descending=[True, False, False])
    )


def _grid(counts: pl.DataFrame, names: list[str], title: str) -> Any:
    words = alt.Axis(labelExpr="split(datum.label, '_')", **_NAMES.to_dict())
    x = alt.X("after", title="to", scale=alt.Scale(domain=names), axis=words)
    y = alt.Y("before", title="from", scale=alt.Scale(domain=names), axis=_NAMES)
    shade = alt.Color("users", scale=alt.Scale(scheme="blues"), legend=None)
    dark = alt.datum.users > 0.7 * (counts["users"].max() or 0)  # type: ignore[operator]
    ink = alt.when(dark).then(alt.value("white")).otherwise(alt.value("black"))
    places = pl.DataFrame({"before": names}).join(pl.DataFrame({"after": names}), how="cross")
    free = alt.Chart(places.filter(pl.col("before") != pl.col("after")))
    empty = free.mark_rect(color="#f2f2f2", stroke="white").encode(x, y)
    cells = alt.Chart(counts).mark_rect(stroke="white").encode(x, y, color=shade)
    text = alt.Text("users", format=",")
    figures = alt.Chart(counts).mark_text(fontSize=12).encode(x, y, color=ink, text=text)
    said = alt.Title(title, subtitle=f"{counts['users'].sum():,} users")
    return (empty + cells + figures).properties(width=alt.Step(62), height=alt.Step(36), title=said)


def _money(ends: list[Any]) -> Any:
    ticks = [n * 10**power for power in range(9) for n in (1, 3)]
    shown = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
    return alt.X(
        "low",
        title="lifetime value, in the currency of the mart (log scale)",
        scale=alt.Scale(type="log", domain=ends, nice=False),
        axis=alt.Axis(format=",d", grid=True, values=shown),
    )


def _limit() -> Any:
    return alt.Chart().mark_rule(color=ORANGE, strokeDash=[4, 3], strokeWidth=2)
