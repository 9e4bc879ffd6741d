"""The model's costs at many volumes: what the charts draw, and the page's sliders look up. Money in nano-USD."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cost.crossover import Crossing, Traffic, api_nano, hybrid_nano
from cost.hardware import Hardware

BUY = "Buy every answer"
POINTS = 120
DRAWN = 100  # sets of days that a band is made of


class Curve(msgspec.Struct, frozen=True):
    """A month's cost at each volume. `hardware` None: every answer is bought."""

    who: str
    hardware: str | None
    nano: list[int]


class Band(msgspec.Struct, frozen=True):
    """Of resampled days, 5 % cost less than `low_nano` and 5 % more than `high_nano`."""

    who: str
    volume: int
    low_nano: int
    high_nano: int


def who(machine: Hardware) -> str:
    return f"Own model on {machine.name}"


def volumes(turns: Sequence[Crossing | None], volume: int) -> list[int]:
    """Requests a month, log-spaced, from well below what matters to well above it; `volume` is one of them."""
    matters = [volume, *(turn.last for turn in turns if turn)]
    low, high = max(min(matters) / 20, 10.0), max(matters) * 12
    return sorted({volume, *(round(low * (high / low) ** (i / POINTS)) for i in range(POINTS + 1))})


def curves(traffic: Traffic, machines: Sequence[Hardware], at: Sequence[int]) -> list[Curve]:
    """Buying first, then each machine."""
    found = [Curve(BUY, None, [round(api_nano(traffic, volume)) for volume in at])]
    for machine in machines:
        nano = [round(hybrid_nano(traffic, machine, volume)) for volume in at]
        found.append(Curve(who(machine), machine.name, nano))
    return found


def bands(draws: Sequence[Traffic], machines: Sequence[Hardware], at: Sequence[int]) -> list[Band]:
    """Of every fourth volume: a band has no corners worth seeing. `draws` are resampled days; none, no bands."""
    found: list[Band] = []
    tail = len(draws) // 20
    for volume in at[::4] if draws else []:
        for name, costs in (
            (BUY, [api_nano(each, volume) for each in draws]),
            *((who(m), [hybrid_nano(each, m, volume) for each in draws]) for m in machines),
        ):
            costs.sort()
            found.append(Band(name, volume, round(costs[tail]), round(costs[-tail - 1])))
    return found
