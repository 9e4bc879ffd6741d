"""Cost against monthly volume as one Altair specification: a PNG, or an SVG for the page."""

from __future__ import annotations

from typing import Any

import altair as alt
import vl_convert

from cost.crossover import Hardware, Traffic, api_nano, hybrid_nano
from cost.headline import rounded, usd
from cost.report import Report

BUY = "Buy every answer"
#: Okabe and Ito: tell apart with any kind of colour vision, and in print.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
_DARK_COLOURS = ("#FF8A3D", "#56B4E9", "#2FC79B", "#E59AC3", "#F0C04A")
WIDTH, HEIGHT = 700, 380


def png(report: Report) -> bytes:
    """Twice the size, for screens and slides."""
    return bytes(vl_convert.vegalite_to_png(spec(report), scale=2))


def svg(report: Report, *, dark: bool = False) -> str:
    """Without title and caption: the page has its own."""
    return str(vl_convert.vegalite_to_svg(spec(report, dark=dark, titled=False)))


def spec(report: Report, *, dark: bool = False, titled: bool = True) -> dict[str, Any]:
    """The Vega-Lite specification. Raises `ValueError` if the report has nothing to compute a crossover from."""
    traffic = report.traffic
    if traffic is None:
        raise ValueError(report.headline)
    machines = [line.hardware for line in report.crossover]
    volumes = _volumes(report)
    ink, faint, paper = ("#E8E8E8", "#454B54", "#15181D") if dark else ("#1F2328", "#E3E5E8", "#FFFFFF")
    names = [BUY, *(_own(machine) for machine in machines)]
    colours = list(_DARK_COLOURS if dark else COLOURS)[: len(names)]
    scale = alt.Scale(domain=names, range=colours)
    curves = _curves(traffic, machines, volumes)
    costs = _costs(curves)
    y_scale = alt.Scale(type="log", domain=costs, nice=False)
    x = alt.X(
        "volume:Q",
        title="Requests a month",
        scale=alt.Scale(type="log", domain=[volumes[0], volumes[-1]], nice=False),
        axis=alt.Axis(format="~s", values=_decades(volumes[0], volumes[-1])),
    )
    y = alt.Y(
        "usd:Q",
        title="Cost a month",
        scale=y_scale,
        axis=alt.Axis(labelExpr=_MONEY, values=_decades(*costs)),
    )
    colour = alt.Color("who:N", scale=scale, legend=alt.Legend(title=None, orient="top", symbolStrokeWidth=3))
    lines = (
        _data([row for row in curves if row["usd"] >= costs[0]])
        .mark_line(strokeWidth=2.5, clip=True)
        .encode(x=x, y=y, color=colour, strokeDash=alt.StrokeDash("who:N", scale=_dashes(names), legend=None))
    )
    layers: list[alt.Chart] = [lines, *_crossings(report, colours, ink, paper)]
    if report.volume is not None:
        behind, front = _today(report, report.volume, colours, ink, paper, costs)
        layers = [*behind, *layers, *front]
    title = alt.Title(_title(report), subtitle=caption(report)) if titled else alt.Title("")
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title, background=paper)
    styled = (
        chart.configure(font="Helvetica Neue, Helvetica, Arial, sans-serif", background=paper, padding=20)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titlePadding=10,
            titleFontWeight="normal",
            labelColor=ink,
            titleColor=ink,
            gridColor=faint,
            domainColor=faint,
            tickColor=faint,
        )
        .configure_title(
            fontSize=18, anchor="start", frame="group", color=ink, subtitleColor=ink, subtitleFontSize=12.5, offset=14
        )
        .configure_legend(labelFontSize=13, labelColor=ink, labelLimit=300, columnPadding=24, offset=10)
        .configure_view(stroke=None)
    )
    found: dict[str, Any] = styled.to_dict()
    return found


_MONEY = "datum.value >= 1 ? format(datum.value, '$,.0f') : format(datum.value, '$,.2f')"


def _own(machine: Hardware) -> str:
    return f"Own model on {machine.name}"


def _dashes(names: list[str]) -> alt.Scale:
    return alt.Scale(domain=names, range=[[6, 4], *([[1, 0]] * (len(names) - 1))])


def _title(report: Report) -> str:
    reached = [line for line in report.crossover if line.crossing]
    if not reached:
        return "Buying every answer is cheaper at any volume"
    best = min(reached, key=lambda line: line.crossing.last if line.crossing else 0)
    assert best.crossing is not None
    return f"From {rounded(best.crossing.last)} requests a month on, your own model is cheaper ({best.hardware.name})"


def caption(report: Report) -> list[str]:
    """What the lines stand on, in two or three lines."""
    traffic = report.traffic
    assert traffic is not None
    call = f"a million frontier calls cost {usd(round(traffic.call_nano * 1e6))}"
    lines = [
        f"The cache answers {traffic.hit:.0%} either way; {traffic.escalated:.0%} of the rest is escalated; {call}."
    ]
    lines.append(f"List prices of {report.price_version}; hardware runs around the clock; no engineering time.")
    if report.simulated:
        lines.append("SIMULATED frontier at real list prices: token counts and escalations are a rehearsal.")
    return lines


def _volumes(report: Report) -> list[int]:
    """Log-spaced, from well below what matters to well above it."""
    matters = [line.crossing.last for line in report.crossover if line.crossing]
    matters += [report.volume] if report.volume else []
    low, high = (min(matters) / 20, max(matters) * 12) if matters else (1e4, 1e8)
    low = max(low, 10.0)
    return sorted({round(low * (high / low) ** (i / 240)) for i in range(241)})


def _curves(traffic: Traffic, machines: list[Hardware], volumes: list[int]) -> list[dict[str, Any]]:
    rows = [{"volume": v, "usd": float(api_nano(traffic, v)) / 1e9, "who": BUY} for v in volumes]
    for machine in machines:
        rows += [
            {"volume": v, "usd": float(hybrid_nano(traffic, machine, v)) / 1e9, "who": _own(machine)} for v in volumes
        ]
    return rows


def _costs(curves: list[dict[str, Any]]) -> list[float]:
    """The cost axis: from well below the cheapest machine to the dearest cost shown."""
    top = max(row["usd"] for row in curves)
    owned = min((row["usd"] for row in curves if row["who"] != BUY), default=top / 100)
    return [max(min(owned / 6, top / 100), top / 1e7, 1e-9), top * 1.3]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**k for k in range(-9, 16) if low <= 10.0**k <= high]


def _data(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _text(base: alt.Chart, paper: str, ink: str, **mark: Any) -> list[alt.Chart]:
    """Text with a halo, so that lines may pass behind it."""
    halo = base.mark_text(stroke=paper, strokeWidth=5, strokeJoin="round", fill=paper, **mark)
    return [layer.encode(text="label:N") for layer in (halo, base.mark_text(color=ink, **mark))]


def _crossings(report: Report, colours: list[str], ink: str, paper: str) -> list[alt.Chart]:
    """A ring where buying and owning cost the same, with its volume beside it."""
    layers: list[alt.Chart] = []
    assert report.traffic is not None
    for line, colour in zip(report.crossover, colours[1:], strict=False):
        if line.crossing is None:
            continue
        at = line.crossing.last
        cost = float(api_nano(report.traffic, at)) / 1e9
        base = _data([{"volume": at, "usd": cost, "label": f"{line.hardware.name} pays from {rounded(at)}"}])
        base = base.encode(x="volume:Q", y="usd:Q")
        layers += _text(
            base, paper, ink, align="right", baseline="bottom", dx=-9, dy=-9, fontSize=13, fontWeight="bold"
        )
        layers.append(base.mark_point(size=110, filled=True, fill=paper, stroke=colour, strokeWidth=3, opacity=1))
    return layers


def _today(
    report: Report, volume: int, colours: list[str], ink: str, paper: str, costs: list[float]
) -> tuple[list[alt.Chart], list[alt.Chart]]:
    """The volume asked about, or measured: a line behind everything; on it what each way costs there."""
    assert report.traffic is not None
    what = "now" if report.volume_basis == "measured" else "asked about"
    foot = _data([{"volume": volume, "usd": costs[0], "label": f"{rounded(volume)} a month, {what}"}])
    behind = [
        foot.mark_rule(strokeDash=[2, 3], color=ink, opacity=0.7).encode(x="volume:Q"),
        *_text(
            foot.encode(x="volume:Q", y="usd:Q"), paper, ink, align="left", baseline="bottom", dx=7, dy=-6, fontSize=12
        ),
    ]
    bills = [(float(api_nano(report.traffic, volume)) / 1e9, colours[0])]
    owned = [float(hybrid_nano(report.traffic, line.hardware, volume)) / 1e9 for line in report.crossover]
    bills += [min(zip(owned, colours[1:], strict=False))] if owned else []  # the cheapest will do: no clutter
    front: list[alt.Chart] = []
    cheapest = min(cost for cost, _ in bills)
    for cost, colour in bills:
        if not costs[0] < cost < costs[1]:
            continue
        base = _data([{"volume": volume, "usd": cost, "label": usd(round(cost * 1e9))}]).encode(x="volume:Q", y="usd:Q")
        front.append(base.mark_point(size=70, filled=True, color=colour, opacity=1))
        front += _text(
            base,
            paper,
            ink,
            align="left",
            baseline="top" if cost == cheapest else "bottom",
            dx=8,
            dy=5 if cost == cheapest else -5,
            fontSize=12,
        )
    return behind, front
