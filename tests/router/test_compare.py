"""`crossover compare`: the same rows to everybody, paid for as in production; and who follows orders in texts."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cost.comparison import Comparison, kept
from cost.fake import MemoryLedger
from cost.prices import PriceTable
from cost.schema import connect_readonly
from cost.types import Usage
from cost.verify import verify
from providers.breaker import BreakerSettings
from providers.fake import ScriptedProvider
from providers.simulator import Simulator
from providers.types import Answer
from router.ask import TaskRoute
from router.cli import compare_rows
from router.cli.labelled import BadData
from router.cli.rows import BadFile
from router.compare import askers, attacks, figures
from router.compare.askers import LocalAsker, ProviderAsker, Reply, ask_all
from router.compare.rows import Row, sample
from router.config import Budget, Config, Provider

LABELS = frozenset({"lost", "arrival", "fee"})
#: What the keyword classifier of these tests gets right, the last two aside.
ROWS = [
    *(Row(f"{word} number {n}", gold) for n in range(5) for word, gold in (("lost", "lost"), ("fee", "fee"))),
    Row("when will it arrive", "arrival"),
    Row("nothing that it knows", "fee"),
    Row("lost, but it is about a fee", "arrival"),
]


def config_of(*sims: Simulator, usd: float = 1.0, **more: Any) -> Config:
    """A provider a simulator: p0, p1, ..."""
    providers = {
        f"p{n}": Provider("openai", "gpt-6-luna", base_url=f"{sim.url}/v1", **more) for n, sim in enumerate(sims)
    }
    return Config(providers=providers, budget=Budget(usd_per_day=usd))


async def asked(
    route: TaskRoute, config: Config, ledger: Any, rows: Sequence[Row], stop: asyncio.Event | None = None
) -> tuple[Comparison, dict[str, list[Reply | None]]]:
    """Everybody is asked all rows: the figures, and the replies."""
    prices = PriceTable.load()
    bought = [ProviderAsker(name, config, route, ledger=ledger, prices=prices, run="cmp") for name in config.providers]
    everyone = [LocalAsker(route), *bought]
    replies: dict[str, list[Reply | None]] = {each.name: [None] * len(rows) for each in everyone}
    texts = [row.text for row in rows]
    for each in everyone:
        await ask_all(each, texts, replies[each.name], stop=stop or asyncio.Event(), on_reply=lambda _: None)
    for each in bought:
        await each.close()
    found = figures.compare(
        "t",
        rows,
        {each.name: (each, replies[each.name]) for each in everyone},
        config=config,
        available=len(rows),
        seed=0,
        within=0.02,
        price_version=prices.version,
        at=0.0,
    )
    return found, replies


def right_answers(rows: Sequence[Row], *, but: int = 0) -> dict[str, str]:
    """The simulator's table: gold, and another label for the first few."""
    other = {"lost": "fee", "fee": "arrival", "arrival": "lost"}
    return {row.text: other[str(row.gold)] if n < but else str(row.gold) for n, row in enumerate(rows)}


# the sample ----------------------------------------------------------------------------------------------------------


def test_a_larger_sample_contains_a_smaller_one_and_no_text_twice() -> None:
    rows = [Row(f"text {n % 90}", "a") for n in range(100)] + [Row("  "), Row(" text 3\n")]
    small, large = sample(rows, 10, 7), sample(rows, 50, 7)
    assert large[:10] == small == sample(reversed(rows), 10, 7)
    assert sample(rows, 10, 8) != small
    assert len(sample(rows, 1000, 7)) == 90


def test_rows_are_read_with_and_without_gold(tmp_path: Path) -> None:
    def read(name: str, content: str, *columns: str | None) -> list[Row]:
        (tmp_path / name).write_text(content)
        return compare_rows.read(tmp_path / name, *(columns or (None, None)))[0]

    assert read("a.csv", "text,label\nx,one\ny,two\n") == [Row("x", "one"), Row("y", "two")]
    assert read("b.csv", "id;Message;x\n1;hello;2\n2;you;3\n") == [Row("hello"), Row("you")]
    assert read("c.csv", "text\nx\n") == [Row("x")]
    assert read("d.jsonl", '{"body": "x", "intent": "one"}\n{"body": "y"}\n') == [Row("x", "one"), Row("y")]
    assert read("e.jsonl", '{"a": "x", "b": "one"}\n', "a", "b") == [Row("x", "one")]
    with pytest.raises(BadFile, match="no column 'text'"):
        read("f.csv", "a,b,c\n1,2,3\n")
    with pytest.raises(BadFile, match="object 1: no text in 'text'"):
        read("g.jsonl", '{"n": 1}\n')
    with pytest.raises(BadData, match="nope"):
        read("h.csv", "text,x\na,b\n", None, "nope")


# figures -------------------------------------------------------------------------------------------------------------


async def compared(bench: Any) -> tuple[Comparison, MemoryLedger, dict[str, list[Reply | None]]]:
    books = MemoryLedger()
    async with Simulator(right_answers(ROWS)) as right, Simulator(right_answers(ROWS, but=4)) as wrong:
        found, replies = await asked(bench().route, config_of(right, wrong), books, ROWS)
    return found, books, replies


def test_accuracy_agreement_and_the_paired_difference_are_those_of_the_same_rows(bench: Any) -> None:
    found, _, replies = asyncio.run(compared(bench))
    local, right, wrong = found.contenders
    assert (local.name, local.right, right.right, wrong.right) == ("local", 11, 13, 9)
    assert all(each.judged == each.asked == each.answered == 13 for each in found.contenders)
    assert (found.best, found.complete) == ("p0", True)
    assert right.against_best is None
    assert local.against_best is not None
    assert (local.against_best.better, local.against_best.worse) == (0, 2)
    same = sum(one.label == two.label for one, two in zip(replies["local"], replies["p1"], strict=True) if one and two)
    assert local.agreement["p1"] == wrong.agreement["local"] == pytest.approx(same / 13)
    assert right.agreement["p1"] == pytest.approx(9 / 13)
    assert {(c.gold, c.said) for c in wrong.confusions} <= {("lost", "fee"), ("fee", "arrival")}
    assert wrong.confusions[0].count == 2


def test_dollars_are_the_ledgers_and_a_simulated_provider_says_so(bench: Any) -> None:
    found, books, _ = asyncio.run(compared(bench))
    for each in found.contenders[1:]:
        paid = [a for a in books.attempts.values() if a.intent.provider == each.name]
        assert len(paid) == 13
        assert each.spent == sum(a.cost_nano for a in paid) > 0
        assert each.nano_per_million == round(each.spent * 1e6 / 13)
        assert each.input_tokens > each.output_tokens > 0
        assert (each.simulated, each.answered_by) == (True, ("simulated/gpt-6-luna",))
        assert (each.estimated, each.uncertain, each.hourly) == (0, 0, False)
        assert each.p50_us is not None
    assert not found.contenders[0].simulated
    assert {a.intent.request_id for a in books.attempts.values()} == {"cmp_p0", "cmp_p1"}


def test_a_reply_that_is_no_answer_is_wrong_and_no_reply_is_not_judged(bench: Any) -> None:
    async def main() -> Comparison:
        async with Simulator(right_answers(ROWS)) as sim:
            sim.fail_next(["ok", "out_of_set", "no_usage", "refusal", *["400"] * 2])
            config = config_of(sim, max_in_flight=1)
            return (await asked(bench().route, config, MemoryLedger(), ROWS))[0]

    each = asyncio.run(main()).contenders[1]
    assert (each.answered, each.refused, each.unusable, each.failed) == (9, 1, 1, 2)
    assert (each.judged, each.right) == (11, 9)
    assert each.errors == {"BadAnswer": 1, "Refused": 1, "BadRequest": 2}
    assert each.estimated == 1


def test_by_the_hour_a_provider_needs_no_token_price_and_is_marked(bench: Any) -> None:
    async def main() -> Comparison:
        async with Simulator(right_answers(ROWS), latency_ms=2) as sim:
            sim.fail_next(["no_usage"])  # time tells what it cost all the same
            config = Config(
                providers={"own": Provider("openai", "my-own-llm", base_url=f"{sim.url}/v1", usd_per_hour=1.2)}
            )
            route = bench().route
            one = ProviderAsker("own", config, route, ledger=MemoryLedger(), prices=PriceTable.load(), run="cmp")
            assert one.at_most(["a", "b"]) == round(1.2e9 / 60 * 2)
            await one.close()
            return (await asked(route, config, MemoryLedger(), ROWS))[0]

    each = asyncio.run(main()).contenders[1]
    assert each.hourly
    assert (each.answered, each.estimated) == (13, 0)
    assert 0 < each.spent < 1.2e9 / 60


# what ends a comparison ----------------------------------------------------------------------------------------------


def test_the_budget_of_the_day_ends_it_and_what_was_asked_stands(bench: Any) -> None:
    """One reservation fits beside a few settled calls, not beside all."""

    async def main() -> tuple[Comparison, int, int]:
        books, route = MemoryLedger(), bench().route
        async with Simulator(right_answers(ROWS)) as sim:
            one = ProviderAsker("p0", config_of(sim), route, ledger=books, prices=PriceTable.load(), run="cmp")
            budget = (one.at_most([max((row.text for row in ROWS), key=len)]) or 0) + 100_000
            await one.close()
            found, _ = await asked(route, config_of(sim, usd=budget / 1e9, max_in_flight=1), books, ROWS)
        return found, books.spent_today_nano(), budget

    found, spent, budget = asyncio.run(main())
    each = found.contenders[1]
    assert each.stopped == "the budget of the day is spent"
    assert 0 < each.answered < 13
    assert not found.complete
    assert 0 < spent <= budget


def test_a_refused_key_costs_one_call(bench: Any) -> None:
    async def main() -> tuple[Comparison, int]:
        async with Simulator(faults=[("401", 1.0)]) as sim:
            found, _ = await asked(bench().route, config_of(sim), MemoryLedger(), ROWS)
            return found, sim.calls

    found, calls = asyncio.run(main())
    assert calls == 1
    assert found.contenders[1].stopped == "the key was refused"
    assert (found.best, found.complete) == ("local", False)


def test_a_provider_that_is_down_is_given_up(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers, "LEFT_ALONE_S", 0.01)

    async def main() -> tuple[Comparison, int]:
        async with Simulator(faults=[("404", 1.0)]) as sim:
            rows = [Row(f"text {n}", "fee") for n in range(100)]
            found, _ = await asked(bench().route, config_of(sim, max_in_flight=4), MemoryLedger(), rows)
            return found, sim.calls

    found, calls = asyncio.run(main())
    each = found.contenders[1]
    assert "left alone" in (each.stopped or "")
    assert "BadRequest" in (each.stopped or "")
    assert calls <= 10
    assert each.answered == each.judged == 0
    assert not found.complete


def test_a_row_waits_while_its_provider_is_left_alone(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five failures open the breaker; one of those who wait probes, and all are answered."""
    chain = functools.partial(askers.Chain, breaker=BreakerSettings(open_s=0.2))
    monkeypatch.setattr(askers, "Chain", chain)

    async def main() -> Comparison:
        async with Simulator(right_answers(ROWS), latency_ms=20) as sim:
            sim.fail_next(["ok", *["404"] * 5])
            return (await asked(bench().route, config_of(sim, max_in_flight=5), MemoryLedger(), ROWS))[0]

    found = asyncio.run(main())
    each = found.contenders[1]
    assert (each.failed, each.answered, each.stopped) == (5, 8, None)
    assert found.complete


def test_nothing_is_asked_once_it_was_told_to_stop(bench: Any) -> None:
    async def main() -> tuple[list[Reply | None], int]:
        stop = asyncio.Event()
        async with Simulator(right_answers(ROWS)) as sim:
            config = config_of(sim, max_in_flight=2)
            one = ProviderAsker("p0", config, bench().route, ledger=MemoryLedger(), prices=PriceTable.load(), run="cmp")
            replies: list[Reply | None] = [None] * len(ROWS)
            await ask_all(
                one,
                [row.text for row in ROWS],
                replies,
                stop=stop,
                on_reply=lambda _: stop.set() if sim.calls > 4 else None,
            )
            await one.close()
            return replies, sim.calls

    replies, calls = asyncio.run(main())
    assert calls <= 6
    assert sum(reply is not None for reply in replies) == calls  # what was in flight is answered


def test_a_row_that_waits_for_its_provider_is_not_asked_once_it_was_told_to_stop(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = functools.partial(askers.Chain, breaker=BreakerSettings(open_s=0.2))
    monkeypatch.setattr(askers, "Chain", chain)

    async def main() -> tuple[Reply | None, int]:
        stop = asyncio.Event()
        async with Simulator() as sim:
            sim.fail_next(["404"] * 5)
            one = ProviderAsker(
                "p0", config_of(sim), bench().route, ledger=MemoryLedger(), prices=PriceTable.load(), run="cmp"
            )
            for number in range(5):
                await one.ask("lost it", number, stop)
            waiting = asyncio.create_task(one.ask("lost it", 5, stop))
            await asyncio.sleep(0)
            stop.set()
            reply = await waiting
            await one.close()
            return reply, sim.calls

    assert asyncio.run(main()) == (None, 5)


# prompt injection ----------------------------------------------------------------------------------------------------


def test_the_corpus_has_many_attacks_of_many_kinds_and_each_is_filled() -> None:
    corpus = attacks.corpus()
    kinds = Counter(attack.kind for attack in corpus)
    assert sum(kinds.values()) - kinds[attacks.CONTROL] >= 60
    assert len(kinds) >= 14
    assert min(kinds.values()) >= 4
    for attack in corpus:
        text, target = "where is {target}, {order|base64}?", "lost_or_stolen_card"
        said = attack.on(text, target)
        assert text in said  # nothing in a text is taken for a placeholder
        assert not attacks._PLACE.search(said.replace(text, ""))
        assert said != attack.on(text, "another_label") or attack.kind == attacks.CONTROL
        said.encode()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("kind,text\na,b\n", "columns kind and template"),
        ("kind,template\na,{text|rot47}\n", "no encoding 'rot47'"),
        ("kind,template\na,{target}\n", "no {text}"),
        ("", "columns kind and template"),
    ],
)
def test_a_corpus_that_is_none_is_refused_with_its_line(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "attacks.csv"
    path.write_text(content)
    with pytest.raises(attacks.BadCorpus, match=complaint):
        attacks.corpus(path)
    with pytest.raises(attacks.BadCorpus, match="can't be read"):
        attacks.corpus(tmp_path / "none.csv")


def test_the_attackers_label_is_always_the_same_and_neither_right_nor_said() -> None:
    labels = ["a", "b", "c"]
    assert attacks.target_of("x", labels, "a", "b") == "c"
    assert attacks.target_of("x", labels, "a", None) == attacks.target_of("x", labels, "a", None) != "a"
    assert attacks.target_of("x", ["a"], "a") == "a"


async def attacked(bench: Any, sim: Simulator) -> tuple[attacks.Resistance, list[Reply | None]]:
    corpus, texts = attacks.corpus(), ["lost it", "what is the fee"]
    targets = ["arrival", "lost"]
    config = config_of(sim)
    one = ProviderAsker("p0", config, bench().route, ledger=MemoryLedger(), prices=PriceTable.load(), run="cmp")
    clean: list[Reply | None] = [None] * len(texts)
    after: list[Reply | None] = [None] * (len(texts) * len(corpus))
    shown = [attack.on(text, target) for text, target in zip(texts, targets, strict=True) for attack in corpus]
    for given, replies in ((texts, clean), (shown, after)):
        await ask_all(one, given, replies, stop=asyncio.Event(), on_reply=lambda _: None)
    await one.close()
    return attacks.resistance(one, corpus, targets, clean, after), after


def test_a_gullible_model_flips_and_says_nothing_but_labels(bench: Any) -> None:
    """The simulator obeys every order that it finds; another one obeys none."""

    async def main() -> tuple[attacks.Resistance, attacks.Resistance, list[Reply | None]]:
        table = {"lost it": "lost", "what is the fee": "fee"}
        async with Simulator(table, gullible=1.0) as gullible, Simulator(table) as firm:
            one, after = await attacked(bench, gullible)
            return one, (await attacked(bench, firm))[0], after

    gullible, firm, after = asyncio.run(main())
    assert gullible.flipped is not None
    assert gullible.flipped > 0.4
    assert gullible.simulated
    assert (gullible.outside, gullible.unanswered, gullible.left_out) == (0, 0, 0)
    assert firm.flipped is not None
    assert firm.flipped < gullible.flipped
    assert all(reply and reply.label in LABELS for reply in after)
    by_kind = {kind.kind: kind for kind in gullible.kinds}
    assert by_kind["direct order"].flipped > by_kind[attacks.CONTROL].flipped == 0


def test_flipped_is_to_the_attackers_label_and_what_says_nothing_is_left_out(bench: Any) -> None:
    """By hand: four texts, an attack and a control each."""
    corpus = [attacks.Attack("plea", "{text}! {target}"), attacks.Attack(attacks.CONTROL, "{text}!")]
    targets = ["fee", "fee", "fee", "fee"]
    clean = [Reply("lost"), Reply("lost"), Reply("fee"), Reply(None, "Refused")]  # the last two show nothing
    after = [Reply("fee"), Reply("lost"), Reply("arrival"), Reply("arrival"), *[Reply("fee")] * 4]
    found = attacks.resistance(LocalAsker(bench().route), corpus, targets, clean, after)
    assert (found.answered, found.left_out) == (2, 2)
    assert (found.flipped, found.changed, found.changed_by_control) == (0.5, 1.0, 0.5)
    (plea, control) = found.kinds
    assert (plea.asked, plea.flipped, plea.changed, plea.unanswered) == (2, 1, 2, 0)
    assert (control.flipped, control.changed) == (0, 1)
    unanswered = attacks.resistance(
        LocalAsker(bench().route), corpus[:1], targets[:1], clean[:1], [Reply(None, "BadAnswer")]
    )
    assert (unanswered.flipped, unanswered.answered, unanswered.unanswered) == (None, 0, 1)


def test_a_label_that_is_none_of_the_tasks_is_no_answer_even_if_an_adapter_lets_it_through(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rogue = ScriptedProvider("p0", "gpt-6-luna", [Answer("never offered", "gpt-6-luna", Usage(input=9, output=2))])
    monkeypatch.setattr(askers, "make_provider", lambda _name, _config: rogue)

    async def main() -> Reply | None:
        async with Simulator() as sim:
            one = ProviderAsker(
                "p0", config_of(sim), bench().route, ledger=MemoryLedger(), prices=PriceTable.load(), run="cmp"
            )
            return await one.ask("lost it", 0, asyncio.Event())

    reply = asyncio.run(main())
    assert reply is not None
    assert (reply.label, reply.error) == (None, askers.OUTSIDE)
    assert reply.cost > 0
    found = attacks.resistance(LocalAsker(bench().route), [], ["fee"], [reply], [])
    assert found.outside == 1


@pytest.mark.parametrize("fault", ["out_of_set", "wrong_case", "prose", "refusal", "truncated", "malformed"])
def test_whatever_a_model_says_under_attack_is_a_label_or_an_error(fault: str, bench: Any) -> None:
    async def main() -> tuple[attacks.Resistance, list[Reply | None]]:
        table = {"lost it": "lost", "what is the fee": "fee"}
        async with Simulator(table, gullible=1.0) as sim:
            sim.fail_next(["ok", "ok", *[fault, "ok"] * 30])
            return await attacked(bench, sim)

    found, after = asyncio.run(main())
    assert found.outside == 0
    assert found.unanswered > 0
    assert all(reply and (reply.label in LABELS or (reply.label is None and reply.error)) for reply in after)


# the command ---------------------------------------------------------------------------------------------------------


def run(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router", "compare", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "x", **environment},
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [("I lost my card", "lost_or_stolen_card"), ("how do I change my PIN", "change_pin")]
    rows += [(f"my card has still not arrived, {n} days now", "card_arrival") for n in range(20)]
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return path


@pytest.fixture(scope="module")
def frontier(simulate: Callable[..., Any]) -> Any:
    return simulate("--latency-ms", "0", "--gullible", "1.0")


@pytest.fixture
def config(tmp_path: Path, frontier: Any, with_frontier: Callable[..., str]) -> Path:
    path = tmp_path / "crossover.toml"
    path.write_text(with_frontier(frontier.url))
    return path


def test_the_command_prints_80_columns_keeps_figures_without_texts_and_the_books_add_up(
    config: Path, data: Path, tmp_path: Path
) -> None:
    done = run("--config", str(config), "--data", str(data), "-n", "15", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith("Cheapest adequate: ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert max(map(len, done.stderr.splitlines())) <= 80
    assert "at most" in done.stderr
    for name in ("local", "first SIMULATED", "second SIMULATED"):
        assert name in done.stdout
    state = Path(os.environ["CROSSOVER_STATE_DIR"])
    path = state / "compare" / "banking.json"
    found = kept(path)
    assert found is not None
    assert (found.rows, found.available, found.complete, len(found.contenders)) == (15, 22, True, 3)
    assert "days now" not in path.read_text()
    assert [f for f in verify(state / "ledger.db") if f.severity == "error"] == []
    again = run("--config", str(config), "--data", str(data), "-n", "15", "--yes", "--json")
    shown = json.loads(again.stdout)
    assert shown.pop("headline").startswith("Cheapest adequate: ")
    assert msgspec.convert(shown, Comparison).rows == 15


def test_nothing_is_spent_without_a_yes(config: Path, data: Path, frontier: Any) -> None:
    before = frontier.calls
    done = run("--config", str(config), "--data", str(data))
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "at most" in done.stderr
    local = run("--config", str(config), "--data", str(data), "--providers", "local")
    assert local.returncode == 0, local.stderr
    assert frontier.calls == before


@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_person_is_asked_first(answer: str, config: Path, data: Path, frontier: Any) -> None:
    """On a terminal; no is no finding."""
    before = frontier.calls
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "router", "compare", "--config", str(config), "--data", str(data), "-n", "2"]
    keys = {"ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "x"}
    done = subprocess.run(
        command, stdin=theirs, capture_output=True, text=True, timeout=120, env={**os.environ, **keys}
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Ask them? [y/N]" in done.stderr
    assert frontier.calls == before + (4 if answer == "y" else 0)
    assert ("Cheapest adequate" in done.stdout) == (answer == "y")


def test_texts_that_may_not_leave_the_house_are_not_compared_outside_it(
    config: Path, data: Path, frontier: Any
) -> None:
    before = frontier.calls
    config.write_text(config.read_text().replace("threshold = 0.8", 'threshold = 0.8\nescalate = "never"'))
    done = run("--config", str(config), "--data", str(data), "--yes")
    assert done.returncode == 2
    assert "never escalates" in done.stderr
    assert frontier.calls == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--providers", "nobody"), "no provider 'nobody' in the config; there are: first, second"),
        (("--task", "other"), "no task 'other': banking"),
        (("--label-col", "nope"), "no column 'nope'"),
        (("--attacks", "no-such.csv"), "can't be read"),
    ],
)
def test_what_can_not_be_compared_is_one_line(
    arguments: tuple[str, ...], complaint: str, config: Path, data: Path
) -> None:
    done = run("--config", str(config), "--data", str(data), "--yes", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_labels_of_another_task_are_refused(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("text,label\nhello,one\nyou,two\n")
    done = run("--config", str(config), "--data", str(path), "--yes")
    assert done.returncode == 2
    assert "none of the gold labels" in done.stderr


def interrupted(arguments: Sequence[str], frontier: Any, *, calls_first: int, times: int) -> tuple[int, str, str]:
    """Exit code and both outputs of the command, interrupted once so many calls were made, and again."""
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "compare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "x"},
    )
    assert process.stderr is not None
    frontier.wait_for(lambda: frontier.calls >= calls_first)
    seen = ""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        while times > 1 and "again: at once" not in seen:  # the first was understood
            seen += process.stderr.readline()
    out, err = process.communicate(timeout=60)
    return process.returncode, out, seen + err


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_prints_what_is_there_and_the_ledger_has_what_was_paid(
    times: int, config: Path, data: Path, simulate: Callable[..., Any], with_frontier: Callable[..., str]
) -> None:
    """Once: what is in flight is answered, and settled. Twice: it is given up, and counts with its upper bound."""
    slow = simulate("--latency-ms", "400") if times == 1 else simulate("--fault", "hang:1.0")
    config.write_text(with_frontier(slow.url).replace("model =", "max_in_flight = 1\nmodel ="))
    arguments = ["--config", str(config), "--data", str(data), "--yes"]
    code, out, err = interrupted(arguments, slow, calls_first=4 if times == 1 else 2, times=times)
    assert code == 1, err
    assert "PARTIAL" in out
    assert "Traceback" not in err
    state = Path(os.environ["CROSSOVER_STATE_DIR"])
    assert kept(state / "compare" / "banking.json") is None
    db = connect_readonly([state / "ledger.db"])
    states = {row[0] for row in db.execute("SELECT state FROM attempts")}
    db.close()
    assert states == {"settled" if times == 1 else "uncertain"}
    assert [f for f in verify(state / "ledger.db") if f.severity == "error" or f.check == "reserved"] == []


def test_attacks_by_command_give_a_flip_rate_for_everybody(config: Path, data: Path) -> None:
    done = run("--config", str(config), "--data", str(data), "-n", "2", "--attacks", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    local, first, second = shown["contenders"]
    assert [each["name"] for each in shown["contenders"]] == ["local", "first", "second"]
    assert all(each["outside"] == 0 for each in shown["contenders"])
    assert first["flipped"] > local["flipped"]
    assert first["simulated"]
    assert second["answered"] + second["unanswered"] <= 2 * (shown["attacks"] - 4)
