"""Repricing the ledger is the same as pricing each call again by hand, to the nano-dollar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cost import rollup
from cost.prices import Price, PriceTable
from cost.repricing import Repriced, priced_as, repriced, told
from cost.schema import DAY_US, connect, connect_readonly
from cost.types import Usage

START = 20_700  # days since 1970: 2026-09-04
CHANGED = date(2026, 9, 6)
OLD = Price(input=3_333_333, output=7, cache_read=1, max_prompt_tokens=5_000)
NEW = Price(input=250_000, output=999_999, cache_read=5, cache_write_5m=7, batch_input=125_000, batch_output=1)
LATE = Price(input=100_000_000, output=500_000_000, since=CHANGED)  # nobody knows what it cost before
TABLE = PriceTable(
    "test",
    date(2026, 9, 7),
    "a test",
    {"changed": msgspec.structs.replace(NEW, since=CHANGED), "late": LATE, "plain": NEW},
    {"changed": (OLD,)},
)
VERSIONS = ("2026-11-21", "2026-08-01+config", "2026-11-21 as plain", "2026-11-21, bound", "$1.2/h")
ANSWERED = ("", "changed", "changed-2026-09-01", "simulated/changed", "late", "plain", "nobody's")


class Call(NamedTuple):
    day: int
    task: str
    asked: str
    answered: str
    version: str
    state: str
    batch: bool
    usage: Usage | None
    cost: int


tokens = st.integers(0, 6_000)
usages = st.builds(
    Usage, tokens, tokens, tokens, st.integers(0, 1), tokens, estimated=st.sampled_from([False] * 5 + [True])
)
calls = st.builds(
    Call,
    st.integers(0, 4),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["changed", "plain"]),
    st.sampled_from(ANSWERED),
    st.sampled_from(VERSIONS),
    st.sampled_from(["settled"] * 5 + ["reserved", "uncertain", "unbilled"]),
    st.booleans(),
    st.one_of(usages, st.none()),
    st.integers(0, 10**9),
)


def write(path: Path, made: Sequence[Call]) -> Path:
    columns = (
        "request_id, idx, at_us, tenant, task, provider, model, state, estimate_nano, cost_nano, tokens,"
        " answered_model, input, cache_read, cache_write_5m, cache_write_1h, output, estimated, price_version, pid,"
        " pid_started_ms, batch"
    )
    with closing(connect(path, busy_ms=1000)) as db:
        db.execute("BEGIN")
        db.executemany(
            f"INSERT INTO attempts ({columns}) VALUES ({', '.join('?' * 22)})",
            [
                (f"r{n}", 0, (START + c.day) * DAY_US + n, "t", c.task, "p", c.asked, c.state, 0, c.cost, 9, c.answered)
                + (msgspec.structs.astuple(c.usage)[:5] if c.usage else (None,) * 5)
                + (int(c.usage.estimated) if c.usage else None, c.version, 1, 1, int(c.batch))
                for n, c in enumerate(made)
            ],
        )
        db.execute("COMMIT")
    return path


def by_hand(made: Sequence[Call], prices: PriceTable) -> dict[tuple[date, str, str, bool], list[int | None]]:
    """Row by row: calls, booked, what they cost by the table (None: unknown), kept, kept money, unpriced."""
    found: dict[tuple[date, str, str, bool], list[int | None]] = defaultdict(lambda: [0, 0, 0, 0, 0, 0])
    for call in made:
        day = datetime.fromtimestamp((START + call.day) * 86_400, UTC).date()
        name = priced_as(call.answered, call.asked, call.version, prices)
        total = found[day, call.task, name, call.batch]
        usage, kept = call.usage, call.cost
        cost = None if usage is None else prices.cost_nano(name, usage, batch=call.batch, on=day)
        keeps = (
            usage is None
            or usage.estimated
            or usage.input + usage.output == 0
            or call.state != "settled"
            or call.version in VERSIONS[3:]
        )
        new = (1, kept, kept if keeps else cost, int(keeps), kept if keeps else 0, int(not keeps and cost is None))
        for place, value in enumerate(new):
            before = total[place]
            total[place] = None if before is None or value is None else before + value
    return found


def of(made: Sequence[Call], prices: PriceTable, since: int = 0) -> list[Repriced]:
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "ledger.db", made)
        with closing(connect_readonly([path])) as db:
            return repriced(db, prices, since)


def rows(found: Sequence[Repriced]) -> dict[tuple[date, str, str, bool], list[int | None]]:
    return {
        (r.day, r.task, r.model, r.batch): [r.calls, r.booked_nano, r.nano, r.kept, r.kept_nano, r.unpriced]
        for r in found
    }


CALL = Call(0, "a", "plain", "plain", "2026-11-21", "settled", False, Usage(input=3, output=2), 77)


@settings(max_examples=120, deadline=None)
@given(st.lists(calls, max_size=25), st.booleans())
@example([CALL._replace(answered="changed", usage=Usage(input=n)) for n in (4_999, 5_000, 5_001)], True)
@example(
    [CALL, CALL._replace(answered="late"), CALL._replace(version="2026-11-21 as plain", answered="nobody's")], True
)
@example([CALL._replace(usage=Usage(input=2)), CALL._replace(usage=Usage(input=1, output=1), batch=True)], False)
def test_totals_are_those_of_pricing_every_call_again_from_its_tokens(made: list[Call], dated: bool) -> None:
    """With the price of its day, or with today's; what can't be priced makes its total unknown, never smaller."""
    prices = TABLE if dated else TABLE.newest
    assert rows(of(made, prices)) == by_hand(made, prices)


def test_each_call_is_rounded_and_not_their_sum() -> None:
    """A quarter of a nano-dollar a token: two tokens cost 1, and so do three; ten calls of two cost 10, not 5."""
    (total,) = of([CALL._replace(usage=Usage(input=2))] * 10, TABLE)
    assert total.nano == 10


def test_a_price_that_changed_holds_from_its_day_on_and_none_is_known_before_the_first() -> None:
    made = [
        CALL._replace(day=day, answered=name, usage=Usage(input=3_000))
        for day in (1, 2)
        for name in ("changed", "late")
    ]
    found = {(row.model, row.day.isoformat()): row.nano for row in of(made, TABLE)}
    assert found == {
        ("changed", "2026-09-05"): 10_000,
        ("changed", "2026-09-06"): 750,
        ("late", "2026-09-05"): None,
        ("late", "2026-09-06"): 300_000,
    }
    assert {row.nano for row in of(made, TABLE.newest)} == {750, 300_000}


def test_it_says_which_calls_keep_what_is_booked_and_which_have_no_price() -> None:
    hourly = CALL._replace(version="$1.2/h", cost=2_000_000)
    (total,) = of([CALL, hourly], TABLE)
    assert (total.nano, total.kept, total.kept_nano) == (2_000_000 + 3, 1, 2_000_000)
    (note,) = told([total])
    assert note.startswith("1 of 2 calls keep what is booked ($0.002000): they are paid by the hour")
    (note,) = told(of([CALL._replace(answered="nobody's", asked="nobody's")], TABLE))
    assert note.startswith("1 calls have no price in that table (nobody's)")
    assert told(of([CALL], TABLE)) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(calls, max_size=25))
def test_calls_of_which_only_the_hour_is_left_are_priced_alike(made: list[Call]) -> None:
    """At prices of whole nano-dollars a token, and with prompts within what the price is for."""
    whole = {name: Price(input=2_000_000, output=3_000_000, cache_read=1_000_000) for name in ("changed", "plain")}
    prices = PriceTable("test", date(2026, 9, 7), "a test", whole)
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "ledger.db", made)
        with closing(connect_readonly([path])) as db:
            before = repriced(db, prices, 0)
        with closing(connect(path, busy_ms=1000)) as db:
            rollup.register(db)
            db.execute(rollup.adding("attempts", "1"))
            db.execute("DELETE FROM attempts")
        with closing(connect_readonly([path])) as db:
            after = repriced(db, prices, 0)
    assert after == before


def test_only_calls_from_the_given_moment_on_count() -> None:
    made = [CALL._replace(day=day) for day in range(4)]
    assert sum(row.calls for row in of(made, TABLE, since=(START + 2) * DAY_US)) == 2
    assert of(made, TABLE, since=(START + 9) * DAY_US) == []


def test_sums_have_no_drift() -> None:
    """Money that no float keeps: 2 ** 53 + 1 nano-dollars, and a nano-dollar a call beside it."""
    (total,) = of(
        [CALL._replace(version="$1/h", cost=2**53 + 1)] + [CALL._replace(version="$1/h", cost=1)] * 20_000, TABLE
    )
    assert total.booked_nano == total.nano == 2**53 + 20_001
