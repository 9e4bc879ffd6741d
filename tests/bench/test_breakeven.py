"""The tables of docs/crossover.md are those of the generator, and it counts as the report does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cost.crossover import DAYS, Traffic, api_nano, crossing, hybrid_nano
from cost.hardware import Hardware
from cost.prices import PriceTable


@pytest.fixture
def breakeven(script: Callable[[str], Any]) -> Any:
    return script("breakeven")


def test_the_page_s_tables_are_those_that_the_command_makes(breakeven: Any) -> None:
    """After a change of prices, machines or results: python bench/breakeven.py --write."""
    page = breakeven.PAGE.read_text(encoding="utf-8")
    made = page.partition(breakeven.BEGIN)[2].partition(breakeven.END)[0]
    assert made.strip("\n").split("\n") == list(breakeven.lines())


def test_a_million_calls_cost_what_was_worked_out_by_hand(breakeven: Any) -> None:
    """Luna: $0.10 in, $0.01 read, $0.50 out per million; a prompt of 700 tokens is too short to be cached."""
    short, medium, long = (breakeven.cost_of(PriceTable.load(), "gpt-6-luna", shape) for shape in breakeven.SHAPES)
    assert short == (22_000_000_000, None, 11_000_000_000)
    assert medium == (80_000_000_000, None, 40_000_000_000)
    assert long == (296_000_000_000, 71_000_000_000, 148_000_000_000)
    assert (short.best, long.best) == (22_000_000_000, 71_000_000_000)


def test_from_the_break_even_on_the_hybrid_is_cheaper_and_below_it_is_not(breakeven: Any) -> None:
    """A machine of $1 an hour against $80 a million calls, a tenth of which is bought all the same."""
    machine = Hardware("m", 1.0, 1000)
    cells = breakeven.table(PriceTable.load(), dict.fromkeys(breakeven.MACHINES, machine), 100.0)
    cell = next(c for c in cells if (c.shape.name, c.model) == ("medium", "gpt-6-luna"))
    assert cell.bare == pytest.approx(730 / (80e-6 * 0.9) / (730 / 24), rel=1e-6)
    traffic = Traffic(0.0, breakeven.ESCALATED, 80_000)
    month = round(cell.bare * 730 / 24)
    assert hybrid_nano(traffic, machine, month) < api_nano(traffic, month)
    assert hybrid_nano(traffic, machine, month - 1) >= api_nano(traffic, month - 1)


def test_where_replicas_make_several_crossings_the_last_counts(breakeven: Any) -> None:
    """From there on the hybrid is always cheaper; three times the volume of the first crossing."""
    machine = Hardware("m", 1.0, 35)
    cells = breakeven.table(PriceTable.load(), dict.fromkeys(breakeven.MACHINES, machine), 100.0)
    cell = next(c for c in cells if (c.shape.name, c.model) == ("medium", "gpt-6-luna"))
    turns = crossing(Traffic(0.0, breakeven.ESCALATED, 80_000), machine)
    assert turns is not None
    assert turns.last > 2 * turns.first
    assert cell.bare == pytest.approx(turns.last / DAYS)


def test_a_row_s_verdict_counts_what_lies_in_the_tens_of_thousands(breakeven: Any) -> None:
    def cell(machine: str, bare: float | None, operated: float | None) -> Any:
        return breakeven.Cell(breakeven.SHAPES[0], "gpt-6-luna", machine, bare, operated)

    told = "\n".join(
        breakeven.verdicts([cell("a", 9_999.0, 10_000.0), cell("b", 99_999.0, 100_000.0), cell("c", None, 5.0)])
    )
    assert "| gpt-6-luna | short | b | a |" in told
    assert (
        "machines only: of 3 cases it holds in 1; in 1 fewer requests are enough, in 0 it takes more, in 1 it" in told
    )
    assert "with operations: of 3 cases it holds in 1; in 1 fewer requests are enough, in 1 it takes more, in 0" in told


def test_a_longer_text_takes_longer_up_to_what_the_encoder_reads(breakeven: Any) -> None:
    rates = [breakeven.capacity(400.0, shape) for shape in breakeven.SHAPES]
    assert rates == [400 * 15 / 40, 400 * 15 / 60, 400 * 15 / 256]
