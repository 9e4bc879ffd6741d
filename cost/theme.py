"""How every chart looks: one palette for paper and slides, one of CSS variables for the page, which has two itself."""

from __future__ import annotations

from typing import Any

import altair as alt
import msgspec
import vl_convert

FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
#: Okabe and Ito: tell apart with any kind of colour vision, and in print. The page's dark ones are lighter.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK_COLOURS = ("#FF8A3D", "#56B4E9", "#2FC79B", "#E59AC3", "#F0C04A", "#8FD3F5")
WIDTH = 700
#: Labels of a money axis: $20, $0.05, $0.0002.
MONEY = (
    "datum.value >= 1 ? format(datum.value, '$,.0f') : datum.value >= 0.01 || datum.value == 0 ? "
    "format(datum.value, '$,.2f') : format(datum.value, '$,.2~g')"
)


class Palette(msgspec.Struct, frozen=True):
    ink: str
    soft: str
    faint: str
    paper: str
    series: tuple[str, ...]


LIGHT = Palette("#1F2328", "#59636E", "#E3E5E8", "#FFFFFF", COLOURS)
DARK = Palette("#E8E8E8", "#A0A8B2", "#3A4048", "#15181D", DARK_COLOURS)
#: Variables that the page's style sheet sets for light, dark and print: one drawing serves all three.
PAGE = Palette(
    "var(--ink)", "var(--soft)", "var(--line)", "var(--paper)", tuple(f"var(--c{i})" for i in range(len(COLOURS)))
)


def styled(chart: Any, palette: Palette, *, padding: int = 20) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, in the look of the house."""
    found: dict[str, Any] = (
        chart.configure(font=FONT, background=palette.paper, padding=padding)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titlePadding=10,
            titleFontWeight="normal",
            labelColor=palette.ink,
            titleColor=palette.ink,
            gridColor=palette.faint,
            domainColor=palette.faint,
            tickColor=palette.faint,
        )
        .configure_title(
            fontSize=18,
            anchor="start",
            frame="group",
            color=palette.ink,
            subtitleColor=palette.ink,
            subtitleFontSize=12.5,
            offset=14,
        )
        .configure_header(labelColor=palette.ink, titleColor=palette.ink)
        .configure_legend(
            labelFontSize=13,
            labelColor=palette.ink,
            titleColor=palette.ink,
            labelLimit=300,
            columnPadding=24,
            offset=10,
        )
        .configure_view(stroke=None)
        .to_dict(validate=False)  # Altair takes a second a chart to check what tests have checked
    )
    return found


def data(rows: list[dict[str, Any]], name: str | None = None) -> alt.Chart:
    """A chart over rows written into it; a name lets a script replace them."""
    return alt.Chart(alt.InlineData(values=rows) if name is None else alt.InlineData(values=rows, name=name))


def svg(spec: dict[str, Any]) -> str:
    return str(vl_convert.vegalite_to_svg(spec))


def png(spec: dict[str, Any]) -> bytes:
    """Twice the size, for screens and slides."""
    return bytes(vl_convert.vegalite_to_png(spec, scale=2))
