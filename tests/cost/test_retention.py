"""Old rows become hours; nothing is lost or counted twice on the way."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import histogram, retention
from cost.books import cache_use
from cost.ledger import Ledger
from cost.report import build
from cost.retention import Upkeep, compact, limit_us
from cost.rollup import HOUR_US, totals
from cost.schema import DAY_US, connect, connect_readonly
from cost.types import LedgerError, LedgerUnwritable, Outcome, Usage
from cost.verify import verify

Make = Callable[..., Any]
COUNTS = st.dictionaries(st.integers(0, 3000), st.integers(1, 1000), max_size=20)


@given(st.integers(0, 2**62))
def test_the_middle_of_a_bucket_is_at_most_the_stated_error_off(value: int) -> None:
    middle = histogram.middle(histogram.bucket(value))
    assert abs(middle - value) <= value * histogram.ERROR
    assert histogram.bucket(middle) == histogram.bucket(value)
    assert histogram.bucket(value) <= histogram.bucket(value + 1) <= histogram.bucket(value) + 1


@given(st.lists(st.integers(0, 10**9), min_size=1), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_the_rows_own_within_the_stated_error(values: list[int], q: float) -> None:
    counts = histogram.added(*({histogram.bucket(value): 1} for value in values))
    exact = sorted(values)[max(1, -(-len(values) * round(q * 100) // 100)) - 1]
    found = histogram.quantile(counts, q)
    assert found is not None
    assert abs(found - exact) <= exact * histogram.ERROR


@given(COUNTS, COUNTS)
def test_histograms_add_up_and_are_kept_as_they_are(one: dict[int, int], other: dict[int, int]) -> None:
    both = histogram.added(one, other)
    assert both.total() == sum(one.values()) + sum(other.values())
    assert histogram.unpacked(histogram.packed(both)) == both


def test_an_empty_histogram_has_no_quantile_and_a_clock_set_back_counts_as_zero() -> None:
    assert histogram.quantile({}, 0.5) is None
    assert histogram.bucket(-5) == 0


@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.97, 0.9991, 1.0])
def test_confidences_are_kept_finest_near_one(confidence: float) -> None:
    kept = histogram.confidence(histogram.middle(histogram.bucket(histogram.doubt(confidence))))
    assert abs(kept - confidence) <= (1 - confidence) * histogram.ERROR + 1e-6


@pytest.fixture
def full(books: Make, row: Make, intent: Make, noon: int) -> Path:
    """Three days: requests of two inputs, answered and failed, bought and not, one caller left, one call is open."""
    rows, calls = [], []
    for i in range(60):
        at, request = noon + i * HOUR_US, f"r{i}"
        tokens = Usage(input=10 + i, cache_read=i, output=2, estimated=i % 7 == 0)
        outcome = {0: Outcome("settled", "m-1", tokens, 100 + i, "v", latency_us=900 + i), 1: Outcome("uncertain")}
        if i % 3 < 2:
            ended = outcome[i % 3] if i != 4 else None  # that one stays reserved
            calls.append((intent(request, at_us=at - 1000, batch=i % 2 == 0, tenant=f"t{i % 2}"), ended))
        cost = 100 + i if i % 3 == 0 else 0
        rows.append(row(request, at_us=at, tenant=f"t{i % 2}", source="frontier", cost_nano=cost, confidence=0.5))
        error = "over-length" if i % 5 == 0 else None
        rows.append(row(request, index=1, at_us=at, tenant=f"t{i % 2}", error=error, total_us=1000 * i, local_us=i))
    calls.append((intent("left", at_us=noon + 5), Outcome("settled", "m-1", Usage(input=3), 7, "v")))
    path: Path = books(rows, calls)
    return path


def sums(path: Path) -> dict[str, Any]:
    """Raw and rolled up together, for everything that must stay exact."""
    db = connect_readonly([path])
    raw = """SELECT count(*), sum(idx = 0), sum(tokens), sum(cost_nano), sum(local_nano), sum(total_us), sum(local_us),
        sum(error IS NOT NULL), sum(cost_nano * (tenant = 't0')) FROM inputs"""
    hours = """SELECT sum(inputs), sum(requests), sum(tokens), sum(cost_nano), sum(local_nano), sum(total_us),
        sum(local_us), sum(inputs * (error <> '')), sum(cost_nano * (tenant = 't0')) FROM input_hours"""
    paid = """SELECT count(*), sum(cost_nano), sum(input), sum(cache_read), sum(output), sum(latency_us),
        sum(tokens * (input + cache_read)), sum(cost_nano * (state = 'uncertain')), sum(cost_nano * batch),
        sum(cost_nano * estimated) FROM attempts"""
    paid_hours = """SELECT sum(attempts), sum(cost_nano), sum(input), sum(cache_read), sum(output), sum(latency_us),
        sum(tokens_billed), sum(cost_nano * (state = 'uncertain')), sum(cost_nano * batch), sum(cost_nano * estimated)
        FROM attempt_hours"""
    spend = db.execute("SELECT * FROM spend ORDER BY 1").fetchall(), db.execute("SELECT * FROM spend_by").fetchall()
    found = {
        kind: [
            sum(n or 0 for n in pair) for pair in zip(db.execute(a).fetchone(), db.execute(b).fetchone(), strict=True)
        ]
        for kind, a, b in (("inputs", raw, hours), ("attempts", paid, paid_hours))
    }
    db.close()
    return {**found, "spend": spend}


def old(path: Path, noon: int, days: float = 9, **more: Any) -> retention.Compacted:
    """As on a day long after."""
    options = {"clock": lambda: noon / 1e6 + days * 86_400, "rest": lambda _: None, **more}
    return compact(path, before_us=2**62, **options)


def errors(path: Path) -> list[str]:
    return [f"{found.check}: {found.detail}" for found in verify(path) if found.severity == "error"]


def test_every_sum_stays_what_it_was_and_only_what_is_open_stays_a_row(full: Path, noon: int) -> None:
    before = sums(full)
    assert old(full, noon) == retention.Compacted(118, 40)
    assert sums(full) == before
    assert errors(full) == []
    with sqlite3.connect(full) as db:
        assert db.execute("SELECT DISTINCT request_id FROM inputs").fetchall() == [("r4",)]
        assert db.execute("SELECT request_id, state FROM attempts").fetchall() == [("r4", "reserved")]
        assert db.execute("SELECT count(DISTINCT hour) FROM input_hours").fetchone() == (59,)
    db.close()
    assert old(full, noon) == retention.Compacted()


def test_what_was_open_is_rolled_up_once_it_is_settled_into_the_hour_that_was_there(full: Path, noon: int) -> None:
    before = sums(full)
    old(full, noon)
    db = sqlite3.connect(full)
    db.execute("UPDATE attempts SET state = 'uncertain'")
    db.commit()
    db.close()
    assert old(full, noon) == retention.Compacted(2, 1)
    after = sums(full)
    assert (after["inputs"], after["spend"]) == (before["inputs"], before["spend"])
    assert after["attempts"][:7] == before["attempts"][:7]
    assert errors(full) == []


def test_small_transactions_end_as_one_large_would(
    books: Make, row: Make, intent: Make, noon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the rows are cut, the hours are the same to the byte: everything in them is a sum."""
    rows = [row(f"r{i}", at_us=noon + i * 10**8, total_us=i**3, confidence=i / 100, cost_nano=i) for i in range(100)]
    ended = [Outcome("settled", "m", Usage(input=i), i, "v", latency_us=i**3) for i in range(100)]
    calls = [(intent(f"r{i}", at_us=noon + i * 10**8 - 7), ended[i]) for i in range(100)]
    paths, rests = [books(rows, calls, name=name) for name in ("large", "small")], list[float]()
    old(paths[0], noon)
    monkeypatch.setattr(retention, "_FULL", retention._FULL.replace(f"OFFSET {retention.ROWS}", "OFFSET 3"))
    old(paths[1], noon, rest=rests.append)
    assert len(rests) > 20
    assert errors(paths[1]) == []
    hours = []
    for path in paths:
        db = connect_readonly([path])
        hours.append([db.execute(f"SELECT * FROM {table}").fetchall() for table in ("input_hours", "attempt_hours")])
        small = totals(db)
        db.close()
    assert hours[0] == hours[1]
    assert (small.inputs, len(hours[0][0])) == (100, 3)
    assert sum(small.sources["local"].latency["total"].values()) == sum(small.sources["local"].doubt.values()) == 100


def test_today_and_yesterday_stay_whatever_is_asked_for(full: Path, noon: int) -> None:
    assert limit_us(2**62, noon) == (noon // DAY_US - 1) * DAY_US
    assert limit_us(noon - 40 * DAY_US + 1, noon) == noon - 40 * DAY_US
    old(full, noon, days=2)  # of the rows' three days the first is to go
    with sqlite3.connect(full) as db:
        (oldest,) = db.execute("SELECT min(at_us) FROM inputs WHERE request_id <> 'r4'").fetchone()
    db.close()
    assert oldest == (noon // DAY_US + 1) * DAY_US


def test_the_budget_of_today_knows_nothing_of_it(full: Path, noon: int, intent: Make) -> None:
    """Reserved and spent before and after, whatever became of the rows."""
    now = noon + 9 * DAY_US

    async def main() -> tuple[int, int]:
        ledger = Ledger.open(full, clock=lambda: now / 1e6)
        await ledger.reserve(intent("new", at_us=now, estimate_nano=50))
        before = ledger.spent_today_nano()
        await asyncio.to_thread(old, full, noon)
        await ledger.reserve(intent("newer", at_us=now, estimate_nano=50))
        after = ledger.spent_today_nano()
        ledger.close()
        return before, after

    assert asyncio.run(main()) == (50, 100)
    assert errors(full) == []


def test_totals_say_what_the_rows_said(full: Path, noon: int) -> None:
    db = connect_readonly([full])
    assert totals(db).inputs == 0
    assert totals(db).from_us is None
    db.close()
    old(full, noon)
    db = connect_readonly([full])
    found = totals(db)
    assert (found.inputs, found.requests, found.errors) == (118, 59, {"over-length": 12})
    assert found.tasks["banking"].inputs == 118
    assert found.tenants["t0"].inputs + found.tenants["t1"].inputs == 118
    assert found.spend.settled_nano == sum(100 + i for i in range(0, 60, 3)) + 7
    assert found.spend.uncertain_nano == 19 * 1000
    assert found.from_us == noon
    p95 = histogram.quantile(found.sources["local"].latency["total"], 0.95)
    assert p95 == pytest.approx(57_000, rel=histogram.ERROR)
    later = totals(db, noon + 30 * HOUR_US)
    assert (later.inputs, later.from_us) == (60, noon + 30 * HOUR_US)
    db.close()


class Failing:
    """A connection that fails at the n-th statement, as a full disk would."""

    def __init__(self, db: sqlite3.Connection, at: int) -> None:
        self._db, self._left = db, at

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._left -= 1
        if self._left == 0:
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def test_a_failure_at_any_statement_loses_and_doubles_nothing(full: Path, noon: int) -> None:
    before, n, failed = sums(full), 0, True
    while failed:
        n += 1
        failing = lambda path, n=n: Failing(connect(path, busy_ms=1000), n)  # noqa: E731
        try:
            old(full, noon, connecting=failing)
            failed = False
        except LedgerUnwritable:
            assert sums(full) == before
            assert errors(full) == []
    assert n > 8
    assert sums(full) == before


KILLED = """
import os, sys
from pathlib import Path
from cost.retention import compact
from cost.schema import connect
path, now = Path(sys.argv[1]), float(sys.argv[2])
for n in range(1, 40):
    if (child := os.fork()) == 0:
        left = n
        def traced(_statement):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
        def connecting(path):
            db = connect(path, busy_ms=1000)
            db.set_trace_callback(traced)
            return db
        compact(path, before_us=2**62, clock=lambda: now, rest=lambda _: None, connecting=connecting)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else "done", flush=True)
    sys.stdin.readline()
    if not os.WIFSIGNALED(status):
        break
"""


def test_kill_9_at_any_statement_loses_and_doubles_nothing(full: Path, noon: int, process: Make) -> None:
    before, kills = sums(full), 0
    child = process(KILLED, str(full), str(noon / 1e6 + 9 * 86_400))
    while child.stdout.readline() == "killed\n":
        kills += 1
        assert sums(full) == before
        assert errors(full) == []
        child.stdin.write("\n")
        child.stdin.flush()
    assert kills > 8
    assert sums(full) == before
    with sqlite3.connect(full) as db:
        assert db.execute("SELECT count(*) FROM inputs").fetchone() == (2,)
    db.close()


def test_two_processes_at_once_move_each_row_once(full: Path, noon: int) -> None:
    """The second begins wherever the first lets go of the file."""
    before = sums(full)
    old(full, noon, rest=lambda _: old(full, noon))
    assert sums(full) == before
    assert errors(full) == []


def test_it_stops_when_told_and_goes_on_the_next_time(full: Path, noon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_FULL", retention._FULL.replace(f"OFFSET {retention.ROWS}", "OFFSET 3"))
    before, rests = sums(full), []
    old(full, noon, rest=rests.append, stopping=lambda: len(rests) == 4)
    assert len(rests) == 4
    assert sums(full) == before
    old(full, noon)
    assert sums(full) == before


def test_a_locked_file_is_an_error_that_says_so(full: Path, noon: int) -> None:
    other = sqlite3.connect(full, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="can't be used now: database is locked"):
        old(full, noon, connecting=lambda path: sqlite3.connect(path, isolation_level=None, timeout=0.01))
    other.close()


def test_rows_of_the_future_and_from_before_1970_harm_nobody(books: Make, row: Make, noon: int) -> None:
    """A clock that jumped: such rows are rolled up like others, or wait for their day."""
    path = books([row("past", at_us=-5), row("now", at_us=noon), row("future", at_us=noon + 400 * DAY_US)])
    assert old(path, noon) == retention.Compacted(2, 0)
    assert errors(path) == []
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT request_id FROM inputs").fetchall() == [("future",)]
    db.close()


def test_a_service_rolls_up_by_itself_and_stops_at_once(full: Path, noon: int) -> None:
    """What fails is told, and does not end it."""
    before, told = sums(full), []
    upkeep = Upkeep(full, 1, on_error=told.append, clock=lambda: noon / 1e6 + 9 * 86_400, first_s=0.0)
    upkeep.start()
    until = time.monotonic() + 10
    while time.monotonic() < until and len(rows_left(full)) > 2:
        time.sleep(0.01)
    upkeep.stop()
    assert rows_left(full) == [("r4", 0), ("r4", 1)]
    assert sums(full) == before
    assert told == []
    full.write_bytes(b"no ledger at all")
    broken = Upkeep(full, 1, on_error=told.append, first_s=0.0)
    broken.start()
    while time.monotonic() < until and not told:
        time.sleep(0.01)
    broken.stop()
    assert "not a readable ledger" in str(told[0])


def rows_left(path: Path) -> list[tuple[str, int]]:
    db = connect_readonly([path])
    found = db.execute("SELECT request_id, idx FROM inputs ORDER BY 1, 2").fetchall()
    db.close()
    return found


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ("UPDATE attempt_hours SET cost_nano = cost_nano + 1", "spend"),
        ("DELETE FROM attempt_hours WHERE hour % 7 = 3", "gap"),
        ("UPDATE attempt_hours SET attempts = attempts + 1", "double"),
        ("UPDATE input_hours SET total_us = -1", "negative"),
        ("UPDATE input_hours SET inputs = inputs + 1", "histogram"),
        ("UPDATE input_hours SET total_h = x'ff'", "histogram"),
        ("UPDATE input_hours SET cost_nano = cost_nano + 1000000000", "cost"),
    ],
)
def test_hours_that_do_not_add_up_are_a_finding(full: Path, noon: int, change: str, check: str) -> None:
    old(full, noon)
    assert errors(full) == []
    with sqlite3.connect(full) as db:
        db.execute(change)
    db.close()
    assert check in {found.check for found in verify(full) if found.severity == "error"}


def test_a_row_that_came_late_is_pointed_out_until_it_is_rolled_up_too(full: Path, noon: int, row: Make) -> None:
    old(full, noon)

    async def main() -> None:
        ledger = Ledger.open(full)
        await ledger.record([row("late", at_us=noon)])
        ledger.close()

    asyncio.run(main())
    (found,) = [found for found in verify(full, clock=lambda: noon / 1e6) if found.check == "overlap"]
    assert (found.severity, "such as late" in found.detail) == ("note", True)
    old(full, noon)
    assert [found for found in verify(full, clock=lambda: noon / 1e6) if found.check == "overlap"] == []


def test_the_cache_s_use_by_hour_and_day_stays_what_it_was(books: Make, row: Make, noon: int) -> None:
    rows = [
        row("a", source="cache", answered_by="frontier", cache_tier="memory"),
        row("b", source="cache", answered_by="local", cache_tier="redis", at_us=noon + HOUR_US),
        row("c", cache_us=5),
        row("d", coalesced=True),
        row("e", source="frontier", cache_us=5, at_us=noon + 2 * HOUR_US),
        row("f"),  # asked for no cache
    ]
    path = books(rows)
    before = [cache_use(path, since=noon / 1e6, by=by) for by in ("hour", "day")]
    assert len(before[0]) == 4
    old(path, noon)
    assert rows_left(path) == []
    assert [cache_use(path, since=noon / 1e6, by=by) for by in ("hour", "day")] == before


def test_a_report_says_what_is_kept_by_the_hour_only_and_missing_in_it(full: Path, noon: int) -> None:
    assert not [line for line in build([full]).warnings if "by the hour only" in line]
    rows = build([full]).inputs
    old(full, noon)
    (warning,) = [line for line in build([full]).warnings if "by the hour only" in line]
    assert f"{rows - build([full]).inputs:,} inputs from before" in warning
