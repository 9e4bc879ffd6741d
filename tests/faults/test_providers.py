"""Whatever a provider does: the deadline holds, every wire call has one row, no money is counted twice.

Each test runs for every adapter, through its real SDK, over a socket, with books in SQLite. When it is over, the books
are held against the simulators' own bills. Pauses are taken on a clock of ours; only what hangs takes real time.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import sqlite3
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog

from cost.ledger import Ledger
from cost.prices import PriceTable
from cost.types import Budget
from cost.verify import verify
from providers.breaker import BreakerSettings
from providers.build import build
from providers.chain import Chain
from providers.settings import Kind, LaneSettings, Settings
from providers.simulator import Simulator
from providers.types import Caller, FrontierAnswer, FrontierUnavailable, Label, Question

KEY = "sk-CANARY-of-a-provider-5f1e0c77d9"
MODELS = {
    "anthropic": "claude-haiku-5-5",
    "openai": "gpt-6-luna",
    "openai-decisions": "gpt-6-luna",
    "openai-chat": "gemini-3.8-flash",
}
LABELS = ("card_arrival", "lost_or_stolen", "exchange_rate")
QUESTION = Question("banking", "my card still has not arrived", tuple(Label(name) for name in LABELS))
PRICES = PriceTable.load()
#: Of the providers, in order.
NAMES = ("first", "second")
#: Seconds that a busy machine may be late.
LATE_S = 0.7


class Frontier:
    """A chain of adapters of one kind, "first" and so on, on books in a file. Its clock moves with its pauses only."""

    def __init__(self, path: Path, kind: str, urls: Sequence[str], **settings: Any) -> None:
        self.path = path
        self.now = 100.0
        self.slept: list[float] = []
        self.told_nano = 0  # what answers and refusals said they cost
        self.outcomes: list[Any] = []
        self.took_s = 0.0  # the last question
        self._ledger = Ledger.open(path)
        base = "" if kind == "anthropic" else "/v1"
        providers = [
            build(kind, name=name, model=MODELS[kind], api_key=KEY, settings=Settings(base_url=url + base))
            for name, url in zip(NAMES, urls, strict=False)
        ]
        ours: dict[str, Any] = {
            "budget": Budget(10**9),
            "draw": lambda: 0.5,
            "clock": lambda: self.now,
            "sleep": self._sleep,
            "typical_s": 0.1,
            "on_attempt": lambda _provider, _model, outcome: self.outcomes.append(outcome),
        }
        self.chain = Chain(providers, ledger=self._ledger, prices=PRICES, **ours | settings)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def ask(self, *, within: float = 10.0, index: int = 0) -> FrontierAnswer:
        started = time.monotonic()
        deadline = asyncio.get_running_loop().time() + within
        try:
            answer = await self.chain.answer(QUESTION, Caller(f"req_{index}", index, "t"), deadline=deadline)
        except FrontierUnavailable as error:
            self.told_nano += error.cost_nano
            raise
        finally:
            self.took_s = time.monotonic() - started
        self.told_nano += answer.cost_nano
        return answer

    async def refused(self, **how: Any) -> FrontierUnavailable:
        with pytest.raises(FrontierUnavailable) as caught:
            await self.ask(**how)
        return caught.value

    async def close(self) -> None:
        await self.chain.close()
        self._ledger.close()

    def rows(self) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self.path)) as db:
            db.row_factory = sqlite3.Row
            return db.execute("SELECT * FROM attempts ORDER BY id").fetchall()

    @property
    def states(self) -> list[tuple[str, str | None]]:
        return [(row["state"], row["error"]) for row in self.rows()]

    def agrees_with(self, sims: Sequence[Simulator], unsent: int) -> None:
        """The books are sound; a row a call; whose usage came back, to the nano-dollar, the rest under its bound."""
        rows = self.rows()
        assert [finding for finding in verify(self.path) if finding.severity == "error"] == []
        assert len(rows) == sum(sim.calls for sim in sims) + unsent
        assert len(self.outcomes) == len(rows)
        assert self.told_nano == sum(row["cost_nano"] for row in rows)
        assert {row["state"] for row in rows} <= {"settled", "unbilled", "uncertain"}
        by_reply = {(row["provider"], row["reply_id"]): row for row in rows}
        items = [(name, item) for name, sim in zip(NAMES, sims, strict=False) for item in sim.items]
        for name, item in items:
            if item.seen:
                row = by_reply[name, item.reply_id]
                assert (row["state"], row["estimated"]) == ("settled", 0)
                assert row["cost_nano"] == PRICES.cost_nano(row["answered_model"], item.usage)
        bounds = [row for row in rows if row["state"] == "uncertain" or row["estimated"]]
        assert len(bounds) >= sum(not item.seen for _, item in items)
        assert all(row["cost_nano"] == row["estimate_nano"] > 0 for row in bounds)


On = Callable[..., AbstractAsyncContextManager[Frontier]]


@pytest.fixture(params=get_args(Kind))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def on(tmp_path: Path, kind: str) -> On:
    """`async with on(sim, sim, ...) as frontier`; at its end the books are compared. `unsent`: rows of calls that never
    reached a simulator."""

    @asynccontextmanager
    async def make(*sims: Simulator, unsent: int = 0, **settings: Any) -> AsyncIterator[Frontier]:
        frontier = Frontier(tmp_path / "ledger.db", kind, [sim.url for sim in sims], **settings)
        try:
            yield frontier
        finally:
            await frontier.close()
        frontier.agrees_with(sims, unsent)

    return make


@contextmanager
def memory_within(megabytes: float) -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1e6, f"{peak / 1e6:.1f} MB"


# P1 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_for", "waited"),
    [("1", 1.05), ("ms:1500", 1.55), ("date:4", None), ("junk", 0.05), ("-5", 0.05), ("date:-30", 0.05)],
)
def test_p1_a_wait_that_fits_is_waited_and_the_same_provider_answers(
    on: On, asked_for: str, waited: float | None
) -> None:
    """Retry-After is the least; jitter comes on top. Junk, negative numbers and dates gone by are none."""

    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([f"429@{asked_for}"])
            assert (await frontier.ask()).provider == "first"
            (slept,) = frontier.slept
            assert slept == pytest.approx(waited) if waited else 2 < slept < 4.1  # dates have whole seconds
            assert (first.calls, second.calls) == (2, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "asked_for"),
    [("429", "7"), ("429", "30"), ("429", "3600"), ("429", "date:30"), ("503", "30"), ("529", "7"), ("500", "30")],
)
def test_p1_a_wait_that_does_not_fit_is_not_begun_and_the_next_provider_asked_at_once(
    on: On, status: str, asked_for: str
) -> None:
    """Of ten seconds the first has six. Who comes later does not ask it at all until the time is over."""

    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([f"{status}@{asked_for}"])
            for _ in range(3):
                assert (await frontier.ask()).provider == "second"
            assert (frontier.slept, first.calls, second.calls) == ([], 1, 3)
            second.fail_next([f"{status}@{asked_for}"])
            assert (await frontier.refused(within=5)).reason == "provider_unavailable"
            assert frontier.slept == []
            frontier.now += 60
            assert (await frontier.ask()).provider == "first"

    asyncio.run(main())


# P2, P13 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["500", "502", "503", "504", "529"])
def test_p2_a_failing_server_is_asked_twice_then_the_next_then_nobody(on: On, status: str) -> None:
    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([status] * 4)
            second.fail_next(["ok", status, status])
            assert (await frontier.ask()).provider == "second"
            assert (await frontier.refused()).reason == "provider_unavailable"
            assert (first.calls, second.calls) == (4, 3)
            # Turned away before any work, or perhaps not.
            state = "unbilled" if status in ("503", "529") else "uncertain"
            assert frontier.states[:3] == [(state, "Unavailable")] * 2 + [("settled", None)]

    asyncio.run(main())


AGAIN = ["429", "408", "409", "500", "529", "reset", "half_close"]
ONCE = ["400", "401", "404", "413", "redirect", "empty", "refusal"]


@pytest.mark.parametrize("fault", AGAIN + ONCE)
def test_p13_the_sdks_retry_nothing_of_their_own(on: On, kind: str, fault: str) -> None:
    """As many wire calls as the chain makes: one, and one more where that may help. Each is a row."""
    calls = 2 if fault in AGAIN else 1
    if (kind, fault) == ("openai-chat", "400"):
        calls = 3  # from a strict schema to JSON to words

    async def main() -> None:
        async with Simulator(faults=[(fault, 1.0)]) as sim, on(sim) as frontier:
            await frontier.refused()
            assert sim.calls == calls
            if fault == "redirect":
                assert sim.connections == 1

    asyncio.run(main())


# P3 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["401", "403"])
def test_p3_a_refused_key_stops_the_calls_at_once_and_is_shouted_about_without_the_key(on: On, status: str) -> None:
    async def main() -> list[Any]:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([status])
            with structlog.testing.capture_logs() as logged:
                for _ in range(3):
                    assert (await frontier.ask()).provider == "second"
            assert (first.calls, second.calls, frontier.slept) == (1, 3, [])
            assert [outcome.error for outcome in frontier.outcomes] == ["AuthFailed", None, None, None]  # the metric
            frontier.now += 59
            assert (await frontier.ask()).provider == "second"
            frontier.now += 1
            assert (await frontier.ask()).provider == "first"
            return list(logged)

    logged = asyncio.run(main())
    assert (logged[0]["event"], logged[0]["log_level"]) == ("provider_auth_failed", "error")
    assert KEY not in repr(logged)


# P4, P5 ---------------------------------------------------------------------------------------------------------------


@contextmanager
def full_backlog() -> Iterator[str]:
    """An address whose connections are never made: nobody accepts, and the queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


@asynccontextmanager
async def no_tls(*, speaks: bool) -> AsyncIterator[str]:
    """An https address where something else answers, or nothing does."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if speaks:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("fault", ["hang", "slow_drip"])
def test_p4_p5_what_never_ends_is_cut_at_the_deadline_and_its_socket_closed(on: On, fault: str) -> None:
    """A slow drip sends a byte every 50 ms: a time-out per read never comes. The call may have been charged."""

    async def main() -> None:
        async with Simulator() as sim:
            async with on(sim) as frontier:
                await frontier.ask()  # the connection stands
                sim.fail_next([fault])
                assert (await frontier.refused(within=0.3)).reason == "deadline"
                assert 0.2 < frontier.took_s < 0.3 + LATE_S
                await sim.wait_for(gone=1)
            assert frontier.states == [("settled", None), ("uncertain", "TimedOut")]

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["reset", "half_close"])
def test_p4_a_connection_that_breaks_is_made_again_once_then_the_next_provider_asked(on: On, fault: str) -> None:
    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([fault, fault])
            assert (await frontier.ask()).provider == "second"
            assert frontier.states == [("uncertain", "Unavailable")] * 2 + [("settled", None)]

    asyncio.run(main())


@pytest.mark.parametrize("what", ["refused", "no TLS", "silent TLS", "no connection"])
def test_p4_without_a_connection_nothing_is_charged_and_the_deadline_holds(
    tmp_path: Path, kind: str, what: str
) -> None:
    """Nothing was sent, so the budget is whole."""

    async def ask(url: str) -> None:
        frontier = Frontier(tmp_path / "ledger.db", kind, [url])
        error = await frontier.refused(within=0.6)
        assert frontier.took_s < 0.6 + LATE_S
        assert error.reason == "provider_unavailable"
        await frontier.close()
        at_once = what in ("refused", "no TLS")
        assert frontier.states == [("unbilled", "Unavailable" if at_once else "TimedOut")] * (2 if at_once else 1)
        frontier.agrees_with([], unsent=2 if at_once else 1)

    async def main() -> None:
        if what == "refused":
            await ask(closed_port())
        elif what == "no connection":
            with full_backlog() as url:
                await ask(url)
        else:
            async with no_tls(speaks=what == "no TLS") as url:
                await ask(url)

    asyncio.run(main())


# P6, P7, P8 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["malformed", "html", "empty", "nulls", "gzip_bomb"])
def test_p6_a_reply_that_is_none_is_paid_for_and_the_next_provider_asked_once(on: On, fault: str) -> None:
    """With its upper bound, since it says nothing of its usage. 50 MB in 50 KB take no memory."""

    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            await frontier.ask()
            first.fail_next([fault])
            with memory_within(16):
                assert (await frontier.ask()).provider == "second"
            assert (first.calls, second.calls) == (2, 1)
            assert frontier.states == [("settled", None), ("settled", "BadAnswer"), ("settled", None)]

    asyncio.run(main())


@pytest.mark.parametrize(
    "fault", ["out_of_set", "two_labels", "wrong_case", "homoglyph", "empty_text", "refusal", "truncated"]
)
def test_p7_what_is_no_label_of_the_set_is_never_an_answer(on: On, fault: str) -> None:
    """It is charged with what it used."""

    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([fault])
            answer = await frontier.ask()
            assert (answer.provider, answer.label) == ("second", "card_arrival")
            error = "Refused" if fault == "refusal" else "BadAnswer"
            assert frontier.states == [("settled", error), ("settled", None)]
            second.fail_next([fault])
            first.fail_next([fault])
            await frontier.refused()

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["prose", "fenced", "ignores_schema"])
def test_p7_words_around_the_label_give_that_label_or_the_next_providers(on: On, fault: str) -> None:
    async def main() -> None:
        async with Simulator() as first, Simulator() as second, on(first, second) as frontier:
            first.fail_next([fault])
            assert (await frontier.ask()).label == "card_arrival"

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["no_usage", "negative_usage", "absurd_usage", "string_usage", "cached_usage"])
def test_p8_usage_that_is_missing_or_can_not_be_true_is_charged_as_the_upper_bound_and_marked(
    on: On, fault: str
) -> None:
    async def main() -> None:
        async with Simulator() as sim, on(sim) as frontier:
            sim.fail_next([fault])
            answer = await frontier.ask()
            (row,) = frontier.rows()
            assert (row["state"], row["estimated"]) == ("settled", 1)
            assert answer.cost_nano == row["cost_nano"] == row["estimate_nano"] > 0

    asyncio.run(main())


# P9, P11 --------------------------------------------------------------------------------------------------------------


def test_p9_of_hundreds_that_come_while_all_providers_hang_a_few_wait_and_the_rest_are_told_at_once(on: On) -> None:
    async def main() -> None:
        async with (
            Simulator(faults=[("hang", 1.0)]) as first,
            Simulator(faults=[("hang", 1.0)]) as second,
            on(first, second, lanes=dict.fromkeys(("first", "second"), LaneSettings(max_in_flight=3))) as frontier,
        ):
            with memory_within(16):
                asking = [asyncio.create_task(frontier.refused(within=2, index=i)) for i in range(300)]
                started = time.monotonic()
                first_done = itertools.islice(asyncio.as_completed(asking), 294)
                assert {(await each).reason for each in first_done} == {"overload"}
                assert time.monotonic() - started < 0.5 + LATE_S
                lanes = frontier.chain.status()
                assert [(lane["in_flight"], lane["waiting"]) for lane in lanes] == [(3, 0), (3, 0)]
                assert (first.calls, second.calls) == (3, 3)
                await asyncio.gather(*asking)
            assert time.monotonic() - started < 2 + LATE_S
            assert sum(lane["overflow"]["in_flight"] for lane in frontier.chain.status()) >= 294 * 2

    asyncio.run(main())


def test_p11_no_call_starts_once_the_budget_is_spent_and_it_is_never_overspent(on: On) -> None:
    async def main() -> None:
        async with Simulator() as sim, on(sim, budget=Budget(1)) as frontier:
            assert (await frontier.refused()).reason == "budget"
            assert sim.connections == 0
            frontier.chain.terms.budget = Budget(10**9)
            await frontier.ask()
            (row,) = frontier.rows()
            limit = frontier.chain.terms.budget = Budget(row["cost_nano"] * 6 + row["estimate_nano"])
            results = await asyncio.gather(*(frontier.ask(index=i) for i in range(40)), return_exceptions=True)
            assert {r.reason for r in results if isinstance(r, FrontierUnavailable)} == {"budget"}
            assert {type(r) for r in results} == {FrontierAnswer, FrontierUnavailable}
            with pytest.raises(FrontierUnavailable):
                while True:
                    await frontier.ask()
            calls = sim.calls
            assert 1 < calls <= 8
            for _ in range(5):
                assert (await frontier.refused()).reason == "budget"
            assert sim.calls == calls
            assert sum(row["cost_nano"] for row in frontier.rows()) <= (limit.day or 0)

    asyncio.run(main())


# all of them ----------------------------------------------------------------------------------------------------------


def test_whatever_the_menu_brings_the_books_agree(on: On) -> None:
    """Every fault in turn at the first provider and another at the second, one question after the other."""
    menu = ["429", "500", "529", "reset", "half_close", "malformed", "html", "nulls", "out_of_set", "refusal"]
    menu += ["truncated", "no_usage", "absurd_usage", "cached_usage", "404", "ok", "ok"]

    async def main() -> None:
        async with (
            Simulator() as first,
            Simulator() as second,
            on(first, second, breaker=BreakerSettings(failures=10**9)) as frontier,
        ):
            for number, fault in enumerate(menu * 3):
                first.fail_next([fault, menu[(number * 7) % len(menu)]])
                second.fail_next([menu[(number * 5) % len(menu)]])
                with suppress(FrontierUnavailable):
                    await frontier.ask(index=number)
            assert first.calls + second.calls > 80

    asyncio.run(main())
