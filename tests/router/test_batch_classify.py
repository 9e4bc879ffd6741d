"""The frontier's half of a batch job, through the real SDKs on a simulator: whatever ends it, the next run goes on."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cost.fake import MemoryLedger
from cost.prices import PriceTable
from cost.types import Budget, Outcome
from providers.batches import Order, batches_of
from providers.build import build
from providers.sdk import SdkProvider
from providers.settings import Settings
from providers.simulator import Simulator
from providers.tariffs import TokenTariff
from providers.types import FrontierUnavailable, Label, Question
from router import outcome as row_outcome
from router.cli.asking import Stopped
from router.cli.batch import output, run, submission
from router.cli.batch.books import Books
from router.cli.batch.input import Work, stamp_of
from router.cli.batch.job_file import Answered, Answers, Held, Job, JobFile, Local, RowAnswer, Rows
from router.cli.batch.local import NO_ANSWER
from router.cli.batch.submission import Submission
from router.cli.classify import classify
from router.cli.classify_file import answer_file, open_answers
from router.cli.rows import BadFile, Values
from router.config import Config, Provider

LABELS = (Label("card_arrival"), Label("lost_or_stolen_card"), Label("exchange_rate"))
TEXTS = [f"{words} number {i}" for i, words in enumerate(["card arrival", "lost card", "exchange rate"] * 3)]
MODELS = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}


class Killed(BaseException):
    """Nothing of ours runs after it."""


class Bench:
    """A job of `TEXTS`, its file, its books, a simulator. `life()` is what one process makes of it; it ends at the
    `dies_at`-th thing that it does to the world: before it is done, or after."""

    def __init__(self, sim: Simulator, path: Path, kind: str) -> None:
        self.sim, self.path, self.kind = sim, path, kind
        self.ledger = MemoryLedger()
        self.told: list[str] = []
        self.waits: list[float] = []
        self.now = time.time()
        self.budget = Budget(10**9)
        self.max_requests = 4
        self.on_wait: Callable[[], None] = sim.batches.finish
        with_file = JobFile.open(path)
        rows = [RowAnswer(None, i, self.held(i)) for i in range(len(TEXTS))]
        with_file.append(Job("0123456789ab", {"task": "t"}, "p", MODELS[kind], "v", 0))
        with_file.append(Rows(rows[:5]))
        with_file.append(Rows(rows[5:]))
        with_file.append(Local(""))
        with_file.close()

    @staticmethod
    def held(i: int) -> Held:
        local = row_outcome.Outcome(source="local", label="card_arrival", degraded="provider_unavailable", tokens=7)
        return Held("req_b_0", i, b"%d" % i, 1, local)

    def texts(self, first: int, last: int | None) -> Iterator[tuple[int, str]]:
        return iter(list(enumerate(TEXTS))[first : None if last is None else last + 1])

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.on_wait()
        await asyncio.sleep(0)

    @asynccontextmanager
    async def submission(self, dies_at: float = float("inf")) -> Any:
        base_url = self.sim.url + ("/v1" if self.kind == "openai" else "")
        provider: SdkProvider[Any] = build(
            self.kind,
            name="p",
            model=MODELS[self.kind],
            api_key="sk-x",
            settings=Settings(base_url=base_url),
        )
        api: Any = batches_of(self.kind, provider.client)  # type: ignore[arg-type]
        api.max_requests = self.max_requests
        file = JobFile.open(self.path)
        attempts = {
            (attempt.intent.request_id, attempt.intent.index): (number, attempt.state)
            for number, attempt in self.ledger.attempts.items()
        }
        mortal = self.mortal = Mortal(dies_at)
        job = Submission(
            file,
            lambda text: Question("t", text, LABELS),
            self.texts,
            provider=provider,
            batches=mortal.around(api, "submit", "progress"),
            books=Books(
                file,
                mortal.around(self.ledger, "reserve", "settle"),
                attempts,  # type: ignore[arg-type]
                tenant="local",
                budget=self.budget,
                wall=lambda: self.now,
            ),
            tariff=TokenTariff(PriceTable.load(), MODELS[self.kind], batch=True),
            tell=self.told.append,
            sleep=self.wait,
            wall=lambda: self.now,
        )
        file.append = mortal.wrapped(file.append)  # type: ignore[method-assign]
        try:
            yield job, file
        finally:
            file.close()
            await provider.close()

    async def life(self, dies_at: float = float("inf")) -> dict[int, Answered]:
        async with self.submission(dies_at) as (job, file):
            await job.run()
            return dict(file.answers)

    def states(self) -> Counter[str]:
        return Counter(attempt.state for attempt in self.ledger.attempts.values())

    def outcomes(self) -> list[Outcome]:
        return [attempt.outcome for attempt in self.ledger.attempts.values() if attempt.outcome is not None]

    def books_are_exact(self) -> None:
        prices = PriceTable.load()
        bill = {item.reply_id: prices.cost_nano(item.model, item.usage, batch=True) for item in self.sim.items}
        settled = [outcome for outcome in self.outcomes() if outcome.state == "settled"]
        assert {outcome.reply_id: outcome.cost_nano for outcome in settled} == bill
        assert all(attempt.intent.batch for attempt in self.ledger.attempts.values())


class Mortal:
    """Dies before, and in the next life after, its n-th deed."""

    def __init__(self, dies_at: float) -> None:
        self.deeds, self.dies_at = 0, dies_at

    def deed(self) -> None:
        self.deeds += 1
        if self.deeds == self.dies_at:
            raise Killed

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if asyncio.iscoroutinefunction(function):

            async def call(*args: Any) -> Any:
                self.deed()
                done = await function(*args)
                self.deed()
                return done

            return call

        def plain(*args: Any, **more: Any) -> None:
            self.deed()
            function(*args, **more)
            self.deed()

        return plain

    def around(self, thing: Any, *names: str) -> Any:
        mine = {name: self.wrapped(getattr(thing, name)) for name in names}
        return type("Mortal", (), {"__getattr__": lambda _self, name: mine.get(name) or getattr(thing, name)})()


@pytest.fixture(params=list(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def on_a_bench(path: Path, kind: str, script: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Simulator(record=True) as sim:
            sim.batches.delay_s = None
            await script(Bench(sim, path, kind))

    asyncio.run(main())


def test_all_questions_are_answered_in_parts_at_batch_price(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        answers = await bench.life()
        assert [answers[i].label for i in range(9)] == ["card_arrival", "lost_or_stolen_card", "exchange_rate"] * 3
        assert [len(batch.requests) for batch in bench.sim.batches.made] == [4, 4, 1]
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_wherever_it_dies_the_next_life_goes_on_and_nothing_is_asked_or_paid_twice(tmp_path: Path, kind: str) -> None:
    """At every deed, before and after: a line of the job's file, a reservation, a settlement, a call."""
    deeds = 0

    async def whole(bench: Bench) -> None:
        nonlocal deeds
        await bench.life()
        deeds = bench.mortal.deeds

    on_a_bench(tmp_path / "whole", kind, whole)
    assert deeds > 60
    for place in range(1, deeds + 1):

        async def script(bench: Bench, place: int = place) -> None:
            with pytest.raises(Killed):
                await bench.life(place)
            answers = await bench.life()
            labels = [answers[i].label for i in range(9)]
            assert labels == ["card_arrival", "lost_or_stolen_card", "exchange_rate"] * 3, place
            assert Counter(item.text for item in bench.sim.items) == Counter(TEXTS), place
            assert bench.states() == {"settled": 9}, place
            bench.books_are_exact()

        on_a_bench(tmp_path / f"job-{place}", kind, script)


def test_a_line_that_was_torn_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "job"
    on_a_bench(path, "openai", lambda bench: asyncio.sleep(0, bench))  # type: ignore[arg-type,return-value]
    whole = path.read_bytes()
    for end in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        file = JobFile.open(path)
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, end) + 1]
        assert (file.job is None) == (end == 1)
        file.close()
    path.write_bytes(whole.replace(b'"is":"rows"', b'"is":"what"'))
    with pytest.raises(BadFile, match="line 2: not written by this release, or damaged"):
        JobFile.open(path)


def test_a_job_is_one_process_s_and_nobody_else_reads_it(tmp_path: Path) -> None:
    file = JobFile.open(tmp_path / "job")
    assert (tmp_path / "job").stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadFile, match="another run works on the job"):
        JobFile.open(tmp_path / "job")
    file.close()


def test_a_batch_that_shows_up_late_is_found_and_not_submitted_again(tmp_path: Path, kind: str) -> None:
    """The connection breaks, the provider has the batch all the same and shows it only on the second look."""

    async def script(bench: Bench) -> None:
        bench.max_requests = 100
        made = bench.sim.batches.made
        hidden: list[Any] = []

        async def at(point: str) -> None:
            if point == "created" and not hidden and not bench.waits:
                hidden.extend(made)
                made.clear()
                raise ConnectionResetError

        def show() -> None:
            if len(bench.waits) == 2:  # after the first look
                made.extend(hidden)
            if len(bench.waits) > 2:
                bench.sim.batches.finish()

        bench.sim.batches.at, bench.on_wait = at, show
        await bench.life()
        assert bench.waits[:2] == [1.0, submission.GRACE_S - 1.0]
        assert len(made) == 1
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_a_batch_that_never_was_is_submitted_anew(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        async def at(point: str) -> None:
            if point in ("create", "upload") and not bench.waits:
                raise ConnectionResetError

        bench.sim.batches.at = at
        await bench.life()
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_a_batch_that_showed_up_while_another_was_waited_for_is_found(tmp_path: Path) -> None:
    """Only its results tell whose an Anthropic batch is, so the first look lasts as long as somebody else's batch of
    the same size runs. What it saw was the list of before."""

    async def script(bench: Bench) -> None:
        bench.max_requests = 100
        made = bench.sim.batches.made
        hidden: list[Any] = []

        async def at(point: str) -> None:
            if point == "created" and not hidden:
                hidden.append(made.pop())
                raise ConnectionResetError

        def show() -> None:
            if bench.now > began + 2 * submission.GRACE_S:
                made.extend(hidden[len(made) - 1 :])
                bench.sim.batches.finish()

        async with bench.submission() as (job, _):
            other = "ba9876543210"
            lines = [job._request(number, Question("t", text, LABELS))[0] for number, text in enumerate(TEXTS)]
            lines = [line.replace(b"0123456789ab", other.encode()) for line in lines]
            await job._batches.submit(Order(other, 0, 0, 8, 9, bench.now), lines)
        began = bench.now
        bench.sim.batches.at, bench.on_wait = at, show
        await bench.life()
        assert len(made) == 2
        assert bench.states() == {"settled": 9}

    on_a_bench(tmp_path / "job", "anthropic", script)


def bound_of(bench: Bench) -> int:
    """What one question can cost at most: they are all about as long."""
    base_url = bench.sim.url + ("/v1" if bench.kind == "openai" else "")
    provider = build(
        bench.kind, name="p", model=MODELS[bench.kind], api_key="sk-x", settings=Settings(base_url=base_url)
    )  # type: ignore[arg-type]
    bounds = [provider.upper_bound(Question("t", text, LABELS)) for text in TEXTS]
    tariff = TokenTariff(PriceTable.load(), MODELS[bench.kind], batch=True)
    return max(tariff.estimate(bound) or 0 for bound in bounds)


def test_what_the_budget_has_no_room_for_at_once_waits_until_the_others_are_settled(tmp_path: Path, kind: str) -> None:
    """Upper bounds are many times what answers cost."""

    async def script(bench: Bench) -> None:
        bench.max_requests = 100
        bench.budget = Budget(10**9, {"t": 4 * bound_of(bench)})
        answers = await bench.life()
        assert [answers[i].degraded for i in range(9)] == [None] * 9
        sizes = [len(batch.requests) for batch in bench.sim.batches.made]
        assert sizes[0] == 4 and len(sizes) == 3
        assert Counter(item.text for item in bench.sim.items) == Counter(TEXTS)
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_what_the_budget_does_not_pay_for_is_not_asked(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        bench.budget = Budget(10**9, {"t": bound_of(bench) // 2})
        answers = await bench.life()
        assert {answer.degraded for answer in answers.values()} == {"budget"}
        assert bench.sim.batches.made == []
        assert bench.states() == {}
        assert any("budget of the day is used up" in line for line in bench.told)
        again = await bench.life()
        assert again == answers

    on_a_bench(tmp_path / "job", kind, script)


@pytest.mark.parametrize("rooms", [0.5, 4], ids=["none", "four"])
def test_where_money_is_short_it_may_die_anywhere_as_well(tmp_path: Path, rooms: float) -> None:
    """At every third deed, which is enough to meet every kind of them; "none" has but a few."""
    for place in range(1, 100, 3 if rooms > 1 else 1):
        died = True

        async def script(bench: Bench, place: int = place) -> None:
            nonlocal died
            bench.max_requests = 100
            bench.budget = Budget(10**9, {"t": int(rooms * bound_of(bench))})
            try:
                await bench.life(place)
                died = False
            except Killed:
                await bench.life()
            async with bench.submission() as (_, file):
                asked = Counter(answer.degraded for answer in file.answers.values())
            assert asked == ({None: 9} if rooms > 1 else {"budget": 9}), place
            assert Counter(item.text for item in bench.sim.items) == Counter(TEXTS if rooms > 1 else []), place
            assert bench.states() - Counter(unbilled=9) == Counter(settled=9 if rooms > 1 else 0), place
            bench.books_are_exact()

        on_a_bench(tmp_path / f"job-{place}", "openai", script)
        if not died:
            return
    pytest.fail("it never ended")


def test_what_fails_in_a_batch_is_unbilled_if_the_provider_says_so_and_else_uncertain(
    tmp_path: Path, kind: str
) -> None:
    async def script(bench: Bench) -> None:
        bench.max_requests = 100
        bench.sim.fail_for(TEXTS[7], ["out_of_set"])
        bench.sim.batches.order(["errored", "expired", "missing", "unreadable", "twice", "unknown", "long", "ok", "ok"])
        answers = await bench.life()
        states = [attempt.state for attempt in bench.ledger.attempts.values()]
        unsure = "uncertain"
        assert states == ["unbilled", "unbilled", unsure, unsure, "settled", unsure, unsure, "settled", "settled"]
        assert [answers[i].label is not None for i in range(9)] == [i in (4, 8) for i in range(9)]
        assert {answer.degraded for answer in answers.values()} == {None, "provider_unavailable"}
        assert all(attempt.cost_nano > 0 for attempt in bench.ledger.attempts.values() if attempt.state == unsure)
        assert answers[7].cost_nano > 0  # an answer that is none is billed all the same
        assert "4 requests without a result, 3 lines that are no result of ours" in bench.told[-1]

    on_a_bench(tmp_path / "job", kind, script)


def test_a_batch_that_expired_is_not_charged(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        bench.sim.batches.order(batches=["ok", "expired"])
        answers = await bench.life()
        assert Counter(answer.degraded for answer in answers.values()) == {None: 5, "provider_unavailable": 4}
        assert bench.states() == {"settled": 5, "unbilled": 4}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_a_batch_that_is_refused_whole_is_submitted_again_by_the_next_run(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        bench.sim.batches.order(batches=["failed"])
        with pytest.raises(
            Stopped, match=r"refused the batch batch_sim.* whole: token_limit_exceeded; nothing of it is"
        ):
            await bench.life()
        assert bench.states() == {"unbilled": 4, "settled": 5}  # the others went their way
        await bench.life()
        assert bench.states() == {"unbilled": 4, "settled": 9}
        assert Counter(item.text for item in bench.sim.items) == Counter(TEXTS)
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", "openai", script)


def test_a_wrong_key_stops_it_and_a_right_one_goes_on(tmp_path: Path, kind: str) -> None:
    """When it submits, nothing stays set aside; when it waits, what is submitted stays reserved."""

    async def script(bench: Bench) -> None:
        bench.max_requests = 100
        bench.sim.batches.fail_next.append(401)
        with pytest.raises(Stopped, match=r"the key is wrong.*it goes on"):
            await bench.life()
        assert bench.states() == {"unbilled": 9}
        bench.sim.batches.fail_next.extend([0, 401] if kind == "anthropic" else [0, 0, 401])
        with pytest.raises(Stopped, match="the key is wrong"):
            await bench.life()
        assert bench.states() == {"unbilled": 9, "reserved": 9}
        await bench.life()
        assert bench.states() == {"unbilled": 9, "settled": 9}
        assert len(bench.sim.batches.made) == 1
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_a_provider_in_trouble_is_asked_again_ever_less_often(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        bench.max_requests = 100
        submitting = [429, 529] + [0] * (1 if kind == "anthropic" else 2)
        bench.sim.batches.fail_next.extend(submitting + [500, 429, 503] * 5)
        await bench.life()
        assert bench.waits[:2] == [1.0, 1.5]
        asked = bench.waits[2:]
        assert asked[0] == 1.0 and asked == sorted(asked[:15]) + asked[15:] and max(asked) == 60.0
        told = [line for line in bench.told if "it is tried again" in line]
        assert len(told) == 2  # said once each: that it can't submit, that it can't look
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_a_download_that_breaks_is_begun_again(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        broken = 0

        async def at(point: str) -> None:
            nonlocal broken
            if point == "results" and broken < 3:
                broken += 1
                raise ConnectionResetError

        bench.sim.batches.at = at
        await bench.life()
        assert broken == 3
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_books_that_can_not_be_written_stop_it_before_anything_is_sent(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        bench.ledger.broken = True
        with pytest.raises(Stopped, match="nothing is submitted that is not in the books"):
            await bench.life()
        assert bench.sim.batches.made == []

    on_a_bench(tmp_path / "job", kind, script)


def test_results_that_the_books_know_nothing_of_are_not_collected(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        bench.max_requests = 100

        def die() -> None:
            raise Killed

        bench.on_wait = die
        with pytest.raises(Killed):
            await bench.life()
        bench.on_wait = bench.sim.batches.finish
        ledger, bench.ledger = bench.ledger, MemoryLedger()
        with pytest.raises(Stopped, match="no reservation of 9 questions that were submitted: was it replaced"):
            await bench.life()
        bench.ledger = ledger
        await bench.life()
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_a_model_that_answers_without_a_price_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priced = MODELS["openai"]
    monkeypatch.setitem(MODELS, "openai", "new-model")

    async def script(bench: Bench) -> None:
        async with bench.submission() as (job, _):
            job._tariff = TokenTariff(PriceTable.load(), priced, batch=True)
            await job.run()
        told = [line for line in bench.told if "no batch price is known for simulated/new-model" in line]
        assert len(told) == 1

    on_a_bench(tmp_path / "job", "openai", script)


@contextmanager
def a_full_disk(size: int) -> Iterator[None]:
    """No file can be made longer than `size` bytes."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


def test_a_job_that_can_not_be_noted_stops_and_goes_on_once_it_can(tmp_path: Path, kind: str) -> None:
    async def script(bench: Bench) -> None:
        with (
            a_full_disk(bench.path.stat().st_size + 10),
            pytest.raises(Stopped, match=r"job can't be written: File too"),
        ):
            await bench.life()
        assert bench.sim.batches.made == []
        await bench.life()
        assert bench.states() == {"settled": 9}
        bench.books_are_exact()

    on_a_bench(tmp_path / "job", kind, script)


def test_texts_are_in_no_file_of_the_job(tmp_path: Path) -> None:
    async def script(bench: Bench) -> None:
        await bench.life()
        written = bench.path.read_bytes()
        assert not any(text.encode() in written for text in TEXTS)
        assert all(json.loads(line)["is"] for line in written.splitlines())

    on_a_bench(tmp_path / "job", "anthropic", script)


# what is written -----------------------------------------------------------------------------------------------------

LABEL = Answered(0, "exchange_rate", 0.98765432, "m", 900)
NONE = Answered(0, None, cost_nano=900, degraded="provider_unavailable")
BUDGET = Answered(0, None, degraded="budget")
REFUSED = "degraded: the frontier's answer was wanted (budget): the budget of the day was used up"
TOO_LONG = "over-length: 900 tokens; and no frontier answer can be had: none came from the batch"


@pytest.mark.parametrize(
    ("label", "came", "refuses", "written", "cost"),
    [
        ("card_arrival", LABEL, True, Values("exchange_rate", 0.987654, "frontier"), 900),
        (None, LABEL, False, Values("exchange_rate", 0.987654, "frontier"), 900),
        ("card_arrival", NONE, True, Values("card_arrival", 0.5, "local", "provider_unavailable"), 900),
        ("card_arrival", BUDGET, False, Values("card_arrival", 0.5, "local", "budget"), 0),
        ("card_arrival", BUDGET, True, Values(error=REFUSED), 0),
        (None, BUDGET, True, Values(error=TOO_LONG), 0),
        (None, NONE, False, Values(error=TOO_LONG), 900),
    ],
)
def test_a_row_is_written_as_the_service_would_answer_and_its_twin_pays_only_for_its_own_part(
    label: str | None, came: Answered, refuses: bool, written: Values, cost: int, tmp_path: Path
) -> None:
    local = row_outcome.Outcome(source="local", label=label, confidence=0.5, local_nano=7, cost_nano=7)
    if label is None:
        local = row_outcome.failed("over-length", "900 tokens")
    local = row_outcome.degraded(local, FrontierUnavailable("provider_unavailable", NO_ANSWER))
    rows = [RowAnswer(None, 0, Held("req_b_0", i, b"same", 1, local)) for i in range(2)]
    job = JobFile.open(tmp_path / "job")
    for line in (Job("0123456789ab", {"task": "t"}, "p", "m", "v", 0), Rows(rows), Answers([came])):
        job.append(line)
    (values, first), (twin_values, twin) = (output._ended(row, job, refuses) for row in job.row_answers())
    job.close()
    assert values == twin_values == written
    assert first is not None and twin is not None
    assert (first.cost_nano, first.coalesced) == (local.local_nano + cost, False)
    assert (twin.cost_nano, twin.coalesced) == (local.local_nano, True)


def test_answers_that_can_not_be_written_stop_the_job_and_it_goes_on_once_they_can(tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    loaded: Any = SimpleNamespace(config=Config())
    service: Any = SimpleNamespace(ledger=MemoryLedger())
    route: Any = SimpleNamespace(info=SimpleNamespace(name="t"))
    work = Work(loaded, file, out, "text", None, stamp_of(file))

    def write() -> int:
        with ExitStack() as stack:
            answers = open_answers(out, stack)
            job = JobFile.open(tmp_path / "job")
            stack.callback(job.close)
            return asyncio.run(output.write(work, job, answers, service, route))

    job = JobFile.open(tmp_path / "job")
    job.append(Job("0123456789ab", {"task": "t"}, "", "", "v", 0))
    job.append(Rows([RowAnswer(Values("fee", 0.5, "local"))] * len(TEXTS)))
    job.close()
    with a_full_disk(100), pytest.raises(Stopped, match=r"out\.csv can't be written: File too large"):
        write()
    assert out.stat().st_size == 100
    assert write() == 0
    assert len(out.read_text().splitlines()) == 1 + len(TEXTS)


# the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-f", "in.csv", "-o", "out.csv", "--escalate", "batch", "--url", "http://localhost:1"], "works in process"),
        (["-f", "in.csv", "--escalate", "batch"], "-o FILE"),
        (["-f", "-", "-o", "out.csv", "--escalate", "batch"], "-f FILE"),
        (["a text", "--escalate", "batch"], "is for a file"),
        (["-f", "in.csv", "-o", "out.csv", "--escalate=later"], "'now', 'batch'"),
    ],
)
def test_what_can_not_be_done_in_a_batch_is_said_at_once(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("text\nx\n")
    done = CliRunner().invoke(classify, arguments)
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize(
    ("arguments", "means", "texts"),
    [
        (["--escalate", "I lost my card"], "now", ("I lost my card",)),
        (["I lost my card", "--escalate"], "now", ("I lost my card",)),
        (["--escalate", "--json", "x"], "now", ("x",)),
        (["--escalate", "now", "x"], "now", ("x",)),
        (["--escalate", "batch", "x"], "batch", ("x",)),
        (["--escalate=batch", "x"], "batch", ("x",)),
        (["--", "--escalate", "x"], None, ("--escalate", "x")),
        (["x"], None, ("x",)),
    ],
)
def test_escalate_may_stand_alone_anywhere(arguments: list[str], means: str | None, texts: tuple[str, ...]) -> None:
    context = classify.make_context("classify", list(arguments))
    assert (context.params["escalate"], context.params["texts"]) == (means, texts)


def test_a_plain_run_does_not_write_into_the_answers_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\nx\n")
    (tmp_path / "out.csv.batch").write_text("")
    with pytest.raises(BadFile, match="belongs to the batch job"):
        answer_file(tmp_path / "in.csv", tmp_path / "out.csv", "text", lambda: pytest.fail("asked"), 2)
    assert not (tmp_path / "out.csv").exists()


def test_the_first_provider_with_a_batch_api_and_a_batch_price_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(*providers: tuple[str, str]) -> str:
        async def main() -> str:
            named = {f"{kind}-{model}": Provider(kind=kind, model=model) for kind, model in providers}  # type: ignore[arg-type]
            asked = await run._choose(Config(providers=named))
            await asked.provider.close()
            return asked.provider.name

        return asyncio.run(main())

    decisions, luna = ("openai-decisions", "gpt-6-luna"), ("openai", "gpt-6-luna")
    assert chosen(decisions, luna) == "openai-gpt-6-luna"
    assert "openai-decisions-gpt-6-luna has no batch API that we know of; it is left out" in capsys.readouterr().err
    with pytest.raises(BadFile, match="no configured provider has a batch API"):
        chosen(decisions)
    with pytest.raises(BadFile, match="no batch price is known for new-model"):
        chosen(("anthropic", "new-model"), luna)
