"""Cost against monthly volume as one Altair specification: a PNG, an SVG, or the page's chart that sliders move.

What the sliders change are the named data sets: `curves`, `bands`, `rings`, `foot` and `bills`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from cost import theme
from cost.crossover import Crossing, Traffic, api_nano, crossing, hybrid_nano
from cost.curves import BUY, Band, who
from cost.hardware import Hardware
from cost.headline import rounded, usd
from cost.report import Report
from cost.theme import LIGHT, WIDTH, Palette, data

HEIGHT = 380
Rows = list[dict[str, Any]]


def png(report: Report, *, palette: Palette = LIGHT) -> bytes:
    """Twice the size, for screens and slides."""
    return theme.png(spec(report, palette=palette))


def svg(report: Report, *, palette: Palette = LIGHT) -> str:
    return theme.svg(spec(report, palette=palette))


def spec(report: Report, *, palette: Palette = LIGHT, titled: bool = True) -> dict[str, Any]:
    """The Vega-Lite specification; `titled` false for the page, which has title and caption itself.

    Raises `ValueError` if the report has nothing to compute a crossover from.
    """
    traffic = report.traffic
    if traffic is None:
        raise ValueError(report.headline)
    machines = [line.hardware for line in report.crossover]
    at, rows, names = report.volumes, _lines(report), [curve.who for curve in report.curves]
    costs = _costs(rows)
    colours = alt.Scale(domain=names, range=list(palette.series[: len(names)]))
    x_scale = alt.Scale(type="log", domain=[at[0], at[-1]], nice=False)
    y_scale = alt.Scale(type="log", domain=costs, nice=False)
    x = alt.X(
        "volume:Q", title="Requests a month", scale=x_scale, axis=alt.Axis(format="~s", values=_decades(at[0], at[-1]))
    )
    y = alt.Y(
        "usd:Q", title="Cost a month", scale=y_scale, axis=alt.Axis(labelExpr=theme.MONEY, values=_decades(*costs))
    )
    legend = alt.Legend(
        title=None, orient="top", symbolStrokeWidth=3, symbolType="stroke", symbolSize=300, symbolOpacity=1, columns=2
    )
    bands = (
        data(band_rows(report.bands), "bands")
        .mark_area(opacity=0.18, clip=True)
        .encode(
            x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=alt.Color("who:N", scale=colours, legend=legend)
        )
    )
    lines = (
        data(rows, "curves")
        .mark_line(strokeWidth=2.5, clip=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color("who:N", scale=colours, legend=legend),
            strokeDash=alt.StrokeDash("who:N", scale=_dashes(names), legend=legend),
        )
    )
    rings = data(ring_rows(traffic, machines, at[-1]), "rings").encode(x=alt.X("volume:Q", scale=x_scale), y="usd:Q")
    far = f"datum.volume > {math.sqrt(at[0] * at[-1]):.0f}"  # words go to the side that has room
    beside = {"align": {"expr": f"{far} ? 'right' : 'left'"}, "dx": {"expr": f"{far} ? -8 : 8"}}
    low = {"expr": f"{far} ? {HEIGHT - 20} : 4"}
    foot = data(_foot(report), "foot")
    bills = data(_bills(traffic, machines, report.volume), "bills").encode(x="volume:Q", y="usd:Q")
    layers: list[alt.Chart] = [
        foot.mark_rule(strokeDash=[2, 3], color=palette.ink, opacity=0.7).encode(x="volume:Q"),
        bands,
        lines,
        *_text(foot.encode(x="volume:Q", y=alt.value(0)), palette, baseline="top", dy=low, fontSize=12, **beside),
        *_text(rings, palette, align="left", baseline="top", dx=9, dy=8, fontSize=13, fontWeight="bold"),
        rings.mark_point(size=110, filled=False, fill=palette.paper, strokeWidth=3, opacity=1).encode(
            color=alt.Color("who:N", scale=colours, legend=legend)
        ),
        bills.mark_point(size=70, filled=True, opacity=1).encode(
            color=alt.Color("who:N", scale=colours, legend=legend)
        ),
        *_text(bills.transform_filter("datum.top"), palette, baseline="bottom", dy=-5, fontSize=12, **beside),
        *_text(bills.transform_filter("!datum.top"), palette, align="right", baseline="top", dx=-8, dy=5, fontSize=12),
    ]
    title = alt.Title(_title(report), subtitle=caption(report)) if titled else alt.Title("")
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)
    return theme.styled(chart, palette, padding=20 if titled else 4)


def caption(report: Report) -> list[str]:
    """What the lines stand on, in two or three lines."""
    traffic = report.traffic
    assert traffic is not None
    call = f"a million frontier calls cost {usd(round(traffic.call_nano * 1e6))}"
    lines = [
        f"The cache answers {traffic.hit:.0%} either way; {traffic.escalated:.0%} of the rest is escalated; {call}."
    ]
    lines.append(f"List prices of {report.price_version}; no engineering time, audits or second replica.")
    if report.bands:
        lines.append("Shaded: 90 % of the days, drawn again and again.")
    if report.simulated:
        lines.append("SIMULATED frontier at real list prices: token counts and escalations are a rehearsal.")
    return lines


def _dashes(names: list[str]) -> alt.Scale:
    return alt.Scale(domain=names, range=[[6, 4], *([[1, 0]] * (len(names) - 1))])


def _title(report: Report) -> str:
    reached = [(line.crossing, line.hardware) for line in report.crossover if line.crossing]
    if not reached:
        return "Buying every answer is cheaper at any volume"
    turn, machine = min(reached, key=lambda each: each[0].last)
    return f"From {rounded(turn.last)} requests a month on, your own model beats buying as now ({machine.name})"


def _foot(report: Report) -> Rows:
    when = "now" if report.volume_basis == "measured" else "asked about"
    return [{"volume": v, "label": f"{rounded(v)} a month, {when}"} for v in (report.volume,) if v is not None]


def _lines(report: Report) -> Rows:
    return [
        {"volume": volume, "usd": dollars(nano), "who": curve.who}
        for curve in report.curves
        for volume, nano in zip(report.volumes, curve.nano, strict=True)
    ]


def band_rows(bands: Sequence[Band]) -> Rows:
    """Also for the page."""
    return [
        {"volume": band.volume, "low": dollars(band.low_nano), "high": dollars(band.high_nano), "who": band.who}
        for band in bands
    ]


def ring_rows(traffic: Traffic, machines: Sequence[Hardware], most: int) -> Rows:
    """Where buying and owning cost the same, for good."""
    rows = []
    for machine in machines:
        turn: Crossing | None = crossing(traffic, machine)
        if turn is not None and turn.last <= most:
            cost, label = dollars(api_nano(traffic, turn.last)), f"{machine.name} pays from {rounded(turn.last)}"
            rows.append({"volume": turn.last, "usd": cost, "label": label, "who": who(machine)})
    return rows


def _bills(traffic: Traffic, machines: Sequence[Hardware], volume: int | None) -> Rows:
    """What buying and the cheapest machine cost there: more would be clutter."""
    if volume is None:
        return []
    found = [(dollars(api_nano(traffic, volume)), BUY)]
    found += sorted((dollars(hybrid_nano(traffic, machine, volume)), who(machine)) for machine in machines)[:1]
    top = max(cost for cost, _ in found)
    return [
        {"volume": volume, "usd": cost, "label": usd(round(cost * 1e9)), "who": who, "top": cost == top}
        for cost, who in found
    ]


def dollars(nano: Any) -> float:
    """Six digits are more than anybody sees."""
    return float(f"{float(nano) / 1e9:.6g}")


def _costs(curves: Rows) -> list[float]:
    """The cost axis: from well below the cheapest machine to the dearest cost shown."""
    top = max(row["usd"] for row in curves)
    owned = min((row["usd"] for row in curves if row["who"] != BUY), default=top / 100)
    return [max(min(owned / 6, top / 100), top / 1e7, 1e-9), top * 1.3]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**k for k in range(-9, 16) if low <= 10.0**k <= high]


def _text(base: alt.Chart, palette: Palette, **mark: Any) -> list[alt.Chart]:
    """Text with a halo, so that lines may pass behind it."""
    halo = base.mark_text(stroke=palette.paper, strokeWidth=5, strokeJoin="round", fill=palette.paper, **mark)
    return [layer.encode(text="label:N") for layer in (halo, base.mark_text(color=palette.ink, **mark))]
