"""What happened, drawn: cost by source over time, latency by source and stage, cost by label, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import altair as alt

from cost.calibration import Bin
from cost.history import HOUR_US, SOURCES, History
from cost.theme import MONEY, WIDTH, Palette, data, styled
from cost.whatif import Step

NAMES = {"cache": "cache", "local": "your own model", "frontier": "frontier API", "error": "error"}
Rows = list[dict[str, Any]]
_LABELS_SHOWN = 12


def over_time(history: History, palette: Palette) -> dict[str, Any]:
    """Cost by source, an hour or a day each. Stacked: the height is what all of it cost."""
    hours = history.step_us == HOUR_US
    rows: Rows = [
        {"at": _moment(period.start_us), "source": NAMES[period.source], "usd": period.cost_nano / 1e9}
        for period in history.periods
        if period.cost_nano
    ]
    wide = len({row["at"] for row in rows})
    chart = (
        data(rows)
        .mark_bar(size=max(2, min(26, 0.75 * WIDTH / max(1, wide))))
        .encode(
            x=alt.X(
                "at:T",
                title="Hour (UTC)" if hours else "Day (UTC)",
                scale=alt.Scale(type="utc", padding=18),
                axis=alt.Axis(format="%H:%M" if hours else "%d %b", grid=False, labelOverlap=True, labelSeparation=10),
            ),
            y=alt.Y("usd:Q", title="Cost an hour" if hours else "Cost a day", axis=alt.Axis(labelExpr=MONEY)),
            color=_by_source(history, palette),
            order=alt.Order("source:N"),
        )
        .properties(width=WIDTH, height=220)
    )
    return styled(chart, palette)


def latency(history: History, palette: Palette) -> dict[str, Any]:
    """p50 to p95 to p99 of whole answers by source, and of each stage, on a log axis."""
    rows: Rows = [
        {"of": name, "percentile": percentile, "ms": us / 1000, "low": line[0] / 1000, "high": line[2] / 1000}
        for name, line in _percentiles(history)
        for percentile, us in zip(("p50", "p95", "p99"), line, strict=True)
        if us > 0
    ]
    order = list(dict.fromkeys(row["of"] for row in rows))
    y = alt.Y("of:N", sort=order, title=None, axis=alt.Axis(grid=False, domain=False, ticks=False, labelLimit=240))
    scale = alt.Scale(type="log", nice=False, padding=14)
    expression = "datum.value >= 1000 ? datum.value / 1000 + ' s' : datum.value + ' ms'"
    low, high = min(row["ms"] for row in rows), max(row["ms"] for row in rows)
    decades = [10.0**k for k in range(-6, 9) if low / 3 <= 10.0**k <= high * 3]
    x = alt.X("ms:Q", title="Time, log scale", scale=scale, axis=alt.Axis(labelExpr=expression, values=decades))
    line = data(rows).mark_rule(strokeWidth=3, color=palette.faint).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    domain = ["p50", "p95", "p99"]
    colours = [palette.series[2], palette.series[4], palette.series[0]]
    dots = (
        data(rows)
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=x,
            color=alt.Color(
                "percentile:N",
                scale=alt.Scale(domain=domain, range=colours),
                legend=alt.Legend(title=None, orient="top"),
            ),
            shape=alt.Shape(
                "percentile:N",
                scale=alt.Scale(domain=domain, range=["circle", "square", "diamond"]),
                legend=alt.Legend(title=None, orient="top"),
            ),
        )
    )
    chart = alt.layer(line, dots).encode(y=y).properties(width=WIDTH - 130, height=30 * len(order))
    return styled(chart, palette)


def by_label(history: History, palette: Palette) -> dict[str, Any]:
    """The labels that cost most."""
    several = len({line.task for line in history.labels}) > 1
    rows: Rows = [
        {"label": f"{line.task}: {line.label}" if several else line.label, "usd": line.cost_nano / 1e9}
        for line in history.labels[:_LABELS_SHOWN]
    ]
    base = data(rows).encode(
        y=alt.Y(
            "label:N",
            sort=[row["label"] for row in rows],
            title=None,
            axis=alt.Axis(grid=False, domain=False, ticks=False, labelLimit=300),
        ),
        x=alt.X("usd:Q", title="Cost", axis=alt.Axis(labelExpr=MONEY, tickCount=6)),
    )
    chart = base.mark_bar(color=palette.series[1], height={"band": 0.7}).properties(
        width=WIDTH - 130, height=24 * len(rows)
    )
    return styled(chart, palette)


def thresholds(steps: Sequence[Step], palette: Palette) -> dict[str, Any]:
    """A month's cost by threshold, with the operating point. Below it what would be bought has two bounds."""
    rows = [
        {"at": s.threshold, "low": s.monthly_low_nano / 1e9, "high": s.monthly_high_nano / 1e9, "now": s.now}
        for s in steps
    ]
    base = data(rows).encode(x=alt.X("at:Q", title="Threshold: local answers at least this sure stand"))
    money = alt.Axis(labelExpr=MONEY)
    y = alt.Y("high:Q", title="Cost a month", axis=money, scale=alt.Scale(zero=False))
    colour = palette.series[1]
    now = base.transform_filter("datum.now")
    layers = [
        base.mark_area(opacity=0.2, color=colour).encode(
            y=alt.Y("low:Q", axis=money, scale=alt.Scale(zero=False)), y2="high:Q"
        ),
        base.mark_line(strokeWidth=2.5, color=colour).encode(y=y),
        now.mark_point(size=120, filled=True, fill=palette.paper, stroke=colour, strokeWidth=3, opacity=1).encode(y=y),
        now.mark_text(align="right", dx=-10, dy=-12, fontSize=13, fontWeight="bold", color=palette.ink).encode(
            y=y, text=alt.value("now")
        ),
    ]
    return styled(alt.layer(*layers).properties(width=WIDTH, height=220), palette)


def calibration(found: Sequence[Bin], palette: Palette) -> dict[str, Any]:
    """Agreement by confidence, with 95 % intervals; on the dashed line confidence is what it says."""
    rows = [
        {
            "sure": b.confidence,
            "agreed": b.agreement,
            "low": b.agreement_low,
            "high": b.agreement_high,
            "texts": b.judged,
        }
        for b in found
    ]
    share = alt.Scale(domain=[0, 1])
    x = alt.X("sure:Q", title="How sure the local model was", scale=share, axis=alt.Axis(format="%"))
    ideal = data([{"sure": 0, "agreed": 0}, {"sure": 1, "agreed": 1}]).mark_line(strokeDash=[4, 4], color=palette.soft)
    base = data(rows).encode(x=x)
    chart = alt.layer(
        ideal.encode(
            x=x, y=alt.Y("agreed:Q", title="How often the frontier agreed", scale=share, axis=alt.Axis(format="%"))
        ),
        base.mark_rule(strokeWidth=2, color=palette.series[1]).encode(y="low:Q", y2="high:Q"),
        base.mark_point(size=110, filled=True, opacity=1, color=palette.series[1]).encode(y="agreed:Q"),
        base.mark_text(align="left", dx=9, fontSize=12, color=palette.soft).encode(y="agreed:Q", text="texts:Q"),
    ).properties(width=380, height=320)
    return styled(chart, palette)


def _by_source(history: History, palette: Palette) -> alt.Color:
    colours = dict(zip(SOURCES, (palette.series[2], palette.series[1], palette.series[0], palette.soft), strict=True))
    paid = [source for source in SOURCES if any(p.source == source and p.cost_nano for p in history.periods)]
    return alt.Color(
        "source:N",
        scale=alt.Scale(domain=[NAMES[source] for source in paid], range=[colours[source] for source in paid]),
        legend=alt.Legend(title=None, orient="top"),
    )


def _percentiles(history: History) -> list[tuple[str, tuple[int, int, int]]]:
    lines = [(f"answers: {NAMES[s.source]}", (s.p50_us, s.p95_us, s.p99_us)) for s in history.sources]
    return lines + [(f"stage: {s.stage}", (s.p50_us, s.p95_us, s.p99_us)) for s in history.stages]


def _moment(us: int) -> str:
    return f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"
