"""What a machine sustains, from what a ledger says of the one that measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cost.capacity import CPU_ASSUMED, DEFAULTS, machines
from cost.crossover import Hardware
from cost.ledger import Ledger
from cost.schema import connect_readonly
from cost.types import InputRow, Machine

Make = Callable[..., Any]
OWN = Hardware("own", 1.0, 0)
EIGHT = Machine(8, "cpu", 8, "onnx-int8")
HOUR = 3_600_000_000


@pytest.fixture
def ran(tmp_path: Path, row: Make, noon: int) -> Callable[..., Path]:
    """A ledger of runs, an hour apart: (machine or None, microseconds of model time of each text)."""

    def write(runs: Sequence[tuple[Machine | None, Sequence[int]]], name: str = "l", start: int = noon) -> Path:
        async def main() -> None:
            now = start
            ledger = Ledger.open(tmp_path / f"{name}.db", clock=lambda: now / 1e6)
            for number, (machine, times) in enumerate(runs):
                now = start + number * HOUR
                if machine is not None:
                    await ledger.note_machine(machine)
                rows: list[InputRow] = [
                    row(f"{name}{number}-{i}", at_us=now + i, local_us=us) for i, us in enumerate(times)
                ]
                await ledger.record(rows)
            ledger.close()

        asyncio.run(main())
        return tmp_path / f"{name}.db"

    return write


def measure(*paths: Path, wanted: Sequence[Hardware] | None = (OWN,), since: int = 0) -> list[Hardware]:
    db = connect_readonly(paths)
    try:
        return machines(db, since, wanted)
    finally:
        db.close()


def test_an_own_machine_has_the_threads_that_measured(ran: Make) -> None:
    (own,) = measure(ran([(EIGHT, [2000, 4000])]))
    assert own.requests_per_second == pytest.approx(8 / 0.003)
    assert "8 threads / 3.00 ms" in own.basis
    assert "onnx-int8 on cpu, 8 cores" in own.basis


def test_the_default_box_has_two_cores_whatever_measured(ran: Make) -> None:
    """Its price is that of two: eight threads at that price would be a bargain nobody can buy."""
    box, gpu = measure(ran([(EIGHT, [2000])]), wanted=None)
    assert (box.requests_per_second, gpu) == (2 / 0.002, DEFAULTS[1])


def test_without_a_word_on_the_machine_two_threads_are_assumed_and_said(ran: Make) -> None:
    (own,) = measure(ran([(None, [2000])]))
    assert own.requests_per_second == 2 / 0.002
    assert "2 threads are assumed" in own.basis
    (own,) = measure(ran([(EIGHT, [])], name="idle"))
    assert (own.requests_per_second, "assumed" in own.basis) == (CPU_ASSUMED, True)


def test_threads_beyond_the_cores_add_nothing(ran: Make) -> None:
    (own,) = measure(ran([(Machine(8, "cpu", 4, "onnx-int8"), [2000])]))
    assert own.requests_per_second == 4 / 0.002


def test_a_gpu_s_time_says_nothing_of_a_cpu_box(ran: Make) -> None:
    path = ran([(Machine(1, "cuda:0", 16, "torch-bf16"), [100])])
    box, _ = measure(path, wanted=None)
    assert (box.requests_per_second, "no CPU ran" in box.basis) == (CPU_ASSUMED, True)
    (own,) = measure(path)
    assert own.requests_per_second == 1 / 0.0001


def test_the_latest_machine_that_answered_counts_and_a_restart_on_an_equal_one_is_the_same(ran: Make) -> None:
    other = Machine(2, "cpu", 2, "onnx-int8")
    path = ran([(None, [9000]), (other, [7000]), (EIGHT, [1000, 1000]), (EIGHT, [4000]), (other, [])])
    (own,) = measure(path)
    assert own.requests_per_second == 8 / 0.002


def test_only_the_window_s_rows_count(ran: Make, noon: int) -> None:
    (own,) = measure(ran([(EIGHT, [9000]), (EIGHT, [1000])]), since=noon + HOUR)
    assert own.requests_per_second == 8 / 0.001


def test_of_many_texts_the_latest_tell_the_pace(ran: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cost.capacity.LATEST", 2)
    (own,) = measure(ran([(EIGHT, [9000, 9000, 1000, 3000])]))
    assert own.requests_per_second == 8 / 0.002


def test_of_several_ledgers_each_machine_is_measured_by_its_own_rows(ran: Make, noon: int) -> None:
    later = ran([(EIGHT, [1000])], name="later", start=noon + HOUR)
    busy = ran([(Machine(2, "cpu", 2, "onnx-int8"), [5000] * 20)], start=noon + HOUR - 10)
    for paths in ((later, busy), (busy, later)):
        (own,) = measure(*paths)
        assert own.requests_per_second == 8 / 0.001


def test_a_machine_whose_price_is_noted_is_compared_without_a_config(ran: Make) -> None:
    own, box, _ = measure(ran([(Machine(8, "cpu", 8, "onnx-int8", 0.3), [2000])]), wanted=None)
    assert (own.usd_per_hour, own.requests_per_second, box.requests_per_second) == (0.3, 8 / 0.002, 2 / 0.002)


def test_a_capacity_that_was_given_stays(ran: Make) -> None:
    given = Hardware("given", 1.0, 7.0)
    assert measure(ran([(EIGHT, [2000])]), wanted=[given]) == [given]
