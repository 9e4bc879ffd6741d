"""What the page's sliders show: every position computed here, by the one cost model. A script only looks it up."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec

from cost import chart, curves
from cost.crossover import Traffic, crossing
from cost.curves import Band, Curve
from cost.headline import rounded, turning
from cost.options import Option, rank
from cost.prices import PriceTable
from cost.report import Report
from cost.terminal import option_name, why
from cost.whatif import Step

#: Positions of the threshold's slider, with today's.
SHOWN = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)


class Choice(msgspec.Struct, frozen=True):
    """An option at every stop of the volume's slider, in dollars a month; None where it can't be had."""

    name: str
    basis: str
    out: bool  # measured, and not good enough
    usd: list[float | None]
    ops: list[float | None]


class Setting(msgspec.Struct, frozen=True):
    """One position of the threshold's slider. `curves`: dollars at each volume, buying first."""

    told: str
    crossover: str
    curves: list[list[float]]
    bands: list[dict[str, Any]]
    rings: list[dict[str, Any]]
    options: list[Choice]


class Grid(msgspec.Struct, frozen=True):
    """All that the page's script knows."""

    spec: dict[str, Any]
    who: list[str]
    volumes: list[int]  # of the curves
    stops: list[int]  # of the volume's slider: places in `volumes`
    told: list[str]
    settings: list[Setting]


class Position(msgspec.Struct, frozen=True):
    """Of the threshold's slider. Below today's threshold the escalated share is known to lie between two bounds; the
    greatest counts, and `least` is the traffic with the other."""

    told: str
    traffic: Traffic
    now: bool
    least: Traffic | None = None


def grid(report: Report, prices: PriceTable, spec: dict[str, Any]) -> Grid:
    """Of a report that has a crossover. `spec`: its chart."""
    return Grid(
        spec=spec,
        who=[curve.who for curve in report.curves],
        volumes=report.volumes,
        stops=stops(report),
        told=[f"{rounded(report.volumes[stop])} requests a month" for stop in stops(report)],
        settings=[_setting(report, prices, position) for position in positions(report)],
    )


def positions(report: Report) -> list[Position]:
    """Those that differ, today's (or the supposed one) among them."""
    traffic = report.traffic
    assert traffic is not None
    today = Position(f"as it is, {traffic.escalated:.1%} escalated", traffic, now=True)
    found: list[Position] = []
    seen: tuple[float, float] | None = None
    for step in report.thresholds:
        if step.now:
            told = f"{step.threshold:g}, as it is: {traffic.escalated:.1%} escalated"
            found.append(msgspec.structs.replace(today, told=told))
        elif any(abs(step.threshold - shown) < 1e-9 for shown in SHOWN) and seen != _share(step):
            least, most = (msgspec.structs.replace(traffic, escalated=share) for share in _share(step))
            share = f"{step.escalated_high:.1%}"
            if step.escalated_low < step.escalated_high:
                found.append(
                    Position(f"{step.threshold:g}: {step.escalated_low:.1%} to {share} escalated", most, False, least)
                )
            else:
                found.append(Position(f"{step.threshold:g}: {share} escalated", most, now=False))
        else:
            continue
        seen = _share(step)
    return found if any(position.now for position in found) else [today]


def _share(step: Step) -> tuple[float, float]:
    return step.escalated_low, step.escalated_high


def stops(report: Report) -> list[int]:
    """Every third volume of the curves, and the report's own."""
    return sorted({*range(0, len(report.volumes), 3), report.volumes.index(report.ranked_at)})


def controls(report: Report) -> str:
    """The sliders, as HTML. They show once the script runs."""
    at = stops(report).index(report.volumes.index(report.ranked_at))
    told = f"{rounded(report.ranked_at)} requests a month"
    parts = [_slider("volume", "Volume", len(stops(report)), at, told)]
    settings = positions(report)
    if len(settings) > 1:
        now = next(i for i, position in enumerate(settings) if position.now)
        parts.append(_slider("threshold", "Threshold", len(settings), now, settings[now].told))
    return f'<div class="controls">{"".join(parts)}</div>'


def _slider(name: str, title: str, positions: int, at: int, told: str) -> str:
    return (
        f'<div><label for="{name}">{title}: <output id="{name}-now" for="{name}">{escape(told)}</output></label>'
        f'<input type="range" id="{name}" min="0" max="{positions - 1}" value="{at}" '
        f'aria-valuetext="{escape(told)}"></div>'
    )


def _setting(report: Report, prices: PriceTable, position: Position) -> Setting:
    traffic = position.traffic
    machines = [line.hardware for line in report.crossover]
    lines: Sequence[Curve] = report.curves if position.now else curves.curves(traffic, machines, report.volumes)
    ranked = [
        rank(
            traffic,
            machines,
            volume,
            report.api_only,
            prices,
            comparison=report.comparison,
            operations=report.operations,
        )
        for volume in (report.volumes[stop] for stop in stops(report))
    ]
    names = dict.fromkeys(option.name for options in ranked for option in options)
    return Setting(
        told=position.told,
        crossover=turning([(machine.name, crossing(traffic, machine)) for machine in machines]),
        curves=[[chart.dollars(nano) for nano in line.nano] for line in lines],
        bands=chart.band_rows(report.bands if position.now else _bounds(position, report)),
        rings=chart.ring_rows(traffic, machines, report.volumes[-1]),
        options=[_choice([_named(options, name) for options in ranked]) for name in names],
    )


def _bounds(position: Position, report: Report) -> list[Band]:
    """Between the least and the most that a threshold may escalate."""
    if position.least is None:
        return []
    machines = [line.hardware for line in report.crossover]
    ends = [curves.curves(each, machines, report.volumes[::4]) for each in (position.least, position.traffic)]
    return [
        Band(low.who, volume, least, most)
        for low, high in list(zip(*ends, strict=True))[1:]
        for volume, least, most in zip(report.volumes[::4], low.nano, high.nano, strict=True)
    ]


def _named(options: Sequence[Option], name: str) -> Option | None:
    return next((option for option in options if option.name == name), None)


def _choice(at_each: Sequence[Option | None]) -> Choice:
    """The same option at every volume; the machine or model that is cheapest may change on the way."""
    some = next(option for option in at_each if option is not None)
    return Choice(
        name=option_name(some),
        basis=why(some),
        out=some.ruled_out,
        usd=[None if each is None else chart.dollars(each.monthly_nano) for each in at_each],
        ops=[None if each is None else chart.dollars(each.monthly_with_ops_nano) for each in at_each],
    )
