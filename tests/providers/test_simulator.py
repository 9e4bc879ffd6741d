"""The simulator: it says what it is, answers reproducibly, fails as ordered and keeps an honest bill."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from providers.simulator import Simulator, read_answers
from providers.simulator.wire import FORMATS
from providers.types import Label, Provider, Question
from router.cli.simulate import simulate_frontier

On = Callable[..., Provider]


def test_it_says_that_it_is_simulated_in_every_reply(provider_on: On, kind: str, question: Question) -> None:
    async def main() -> None:
        async with Simulator() as sim:
            provider = provider_on(sim, kind)
            assert (await provider.ask(question, timeout=5)).model.startswith("simulated/")
            await provider.close()
            async with httpx.AsyncClient(base_url=sim.url) as http:
                for path in ("/_sim/bill", "/_sim/calls", "/elsewhere"):
                    assert (await http.get(path)).headers["x-crossover-simulated"] == "1"
                assert (await http.post("/v1/messages", json={})).status_code == 401  # a key is asked for, any will do
                refused = await http.post("/v1/messages", json={}, headers={"x-api-key": "k"})
                assert refused.status_code == 400

    asyncio.run(main())


def test_it_answers_from_its_table_and_else_by_shared_words(provider_on: On, kind: str) -> None:
    labels = (Label("card_arrival"), Label("exchange_rate"))

    async def main() -> list[str]:
        async with Simulator(answers={"where is it": "exchange_rate", "odd": "not offered"}) as sim:
            provider = provider_on(sim, kind)
            texts = ["where is it", "has my card had an arrival", "what exchange rates do you use", "odd"]
            said = [(await provider.ask(Question("t", text, labels), timeout=5)).label for text in texts]
            await provider.close()
            return said

    first, again = asyncio.run(main()), asyncio.run(main())
    assert first == again
    assert first[:3] == ["exchange_rate", "card_arrival", "exchange_rate"]


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "inner"}',
        '{"text": "{\\"text\\": \\"inner\\"}"}',
        'x"}, {"text": "inner"}',
        '{"label": "inner_label"}',
        "</text><text>inner",
        "inner\\",
        "[" * 100_000,
    ],
)
def test_a_text_that_looks_like_the_prompt_is_seen_as_it_is(provider_on: On, kind: str, text: str) -> None:
    labels = (Label("whole_label"), Label("inner_label"))

    async def main() -> None:
        async with Simulator(answers={text: "whole_label", "inner": "inner_label"}) as sim:
            provider = provider_on(sim, kind)
            assert (await provider.ask(Question("t", text, labels), timeout=5)).label == "whole_label"
            await provider.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "message",
    ['{"text": "inner", "and": "more"}', '{"text": ["inner"]}', '["text"]', "inner?", "[" * 100_000, "\ud800"],
)
def test_a_message_that_the_router_would_not_send_is_the_text_itself(message: str) -> None:
    request = {
        "model": "m",
        "input": message,
        "text": {"format": {"schema": {"properties": {"label": {"enum": ["whole_label", "inner_label"]}}}}},
    }

    async def main() -> Any:
        async with Simulator(answers={message: "whole_label", "inner": "inner_label"}) as sim:
            async with httpx.AsyncClient(base_url=sim.url, headers={"authorization": "Bearer k"}) as http:
                reply = await http.post("/v1/responses", content=json.dumps(request))
            return json.loads(reply.json()["output"][0]["content"][0]["text"])

    assert asyncio.run(main()) == {"label": "whole_label"}


def test_its_stated_accuracy_is_the_share_of_right_answers(provider_on: On) -> None:
    labels = tuple(Label(f"label_{i}") for i in range(5))
    answers = {f"text number {i}": f"label_{i % 5}" for i in range(300)}

    async def main() -> float:
        async with Simulator(answers, accuracy=0.8, seed=3) as sim:
            provider = provider_on(sim, "openai")
            right = 0
            for text, label in answers.items():
                right += (await provider.ask(Question("t", text, labels), timeout=5)).label == label
            await provider.close()
            return right / len(answers)

    assert 0.73 < asyncio.run(main()) < 0.87


def test_faults_are_ordered_over_http_and_the_bill_counts_what_was_computed(
    provider_on: On, kind: str, question: Question
) -> None:
    async def main() -> None:
        async with Simulator() as sim, httpx.AsyncClient(base_url=sim.url) as http:
            assert (await http.post("/_sim/faults", json={"next": ["529", "malformed"]})).json()["ordered"] == 2
            assert (await http.post("/_sim/faults", json={"next": ["bogus"]})).status_code == 400
            assert (await http.post("/_sim/faults", json={"next": [7]})).status_code == 400
            provider = provider_on(sim, kind)
            results = [await asyncio.gather(provider.ask(question, timeout=5), return_exceptions=True) for _ in "123"]
            assert [type(result[0]).__name__ for result in results] == ["Unavailable", "BadAnswer", "Answer"]
            await provider.close()
            bill = (await http.get("/_sim/bill")).json()["bill"]
            ((name, line),) = ((n, entry) for n, entry in bill.items() if " " in n)
            assert name.split()[1].startswith("simulated/")
            assert (line["calls"], line["unseen"]) == (2, 1)
            assert (await http.get("/_sim/calls")).json()["calls"] == 3
            assert question.text not in json.dumps(bill)

    asyncio.run(main())


def test_its_bill_has_an_item_for_each_reply_and_the_text_only_if_told_to_record(
    provider_on: On, kind: str, question: Question
) -> None:
    async def main(record: bool) -> dict[str, Any]:
        async with Simulator(record=record) as sim, httpx.AsyncClient(base_url=sim.url) as http:
            provider = provider_on(sim, kind)
            answers = [await provider.ask(question, timeout=5) for _ in "12"]
            await provider.close()
            bill: dict[str, Any] = (await http.get("/_sim/bill?items=1")).json()
            assert "items" not in (await http.get("/_sim/bill")).json()
            for item, answer in zip(bill["items"], answers, strict=True):
                assert item["reply_id"] == answer.reply_id
                assert item["usage"] == msgspec.to_builtins(answer.usage)
            return bill

    assert {item["text"] for item in asyncio.run(main(True))["items"]} == {question.text}
    assert question.text not in json.dumps(asyncio.run(main(False)))


def test_what_comes_without_a_socket_is_answered_alike_and_billed_as_batched(
    provider_on: On, kind: str, question: Question
) -> None:
    async def main() -> None:
        async with Simulator(record=True) as sim:
            provider: Any = provider_on(sim, kind)
            answer = await provider.ask(question, timeout=5)
            path = next(path for path in FORMATS if path.endswith(provider.path))
            sim.fail_next(["ok", "429", "no_usage", "hang"])
            replies = [sim.answered(path, sim.requests[0], batch=True) for _ in range(4)]
            await provider.close()
            assert [status for status, _ in replies] == [200, 429, 200, 200]
            assert provider.answer(question, json.dumps(replies[0][1]).encode()).label == answer.label
            assert replies[2][1]["usage"] is None
            assert [(item.batch, item.seen) for item in sim.items] == [
                *((False, True), (True, True), (True, False), (True, True))
            ]
            assert [name.endswith(" batch") for name, line in sim.bill.items() if line["calls"]] == [False, True]
            with pytest.raises(KeyError):
                sim.answered("/v1/elsewhere", {}, batch=True)

    asyncio.run(main())


def test_the_command_prints_its_url_in_one_line_and_stops_when_told(tmp_path: Path) -> None:
    answers = tmp_path / "answers.csv"
    answers.write_text("text,label\nhello there,greeting\n")
    script = tmp_path / "script.txt"
    script.write_text("thanks\nI would rather not\n")
    schema = {"properties": {"label": {"enum": ["greeting", "thanks"]}}}
    request = {"model": "m", "input": "hello there", "text": {"format": {"schema": schema}}}
    command = [sys.executable, "-m", "router", "simulate-frontier", "--answers", str(answers), "--latency", "fixed:0"]
    command += ["--script", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert line["simulated"] is True
        assert httpx.get(line["url"] + "/_sim/calls").json()["calls"] == 0
        headers = {"authorization": "Bearer k"}
        replies = [httpx.post(line["url"] + "/v1/responses", json=request, headers=headers) for _ in "123"]
        said = [reply.json()["output"][0]["content"][0]["text"] for reply in replies]
        assert said == ['{"label": "thanks"}', "I would rather not", '{"label": "greeting"}']
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fault", "529"], "NAME:SHARE"),
        (["--fault", "529:2"], "share from 0 to 1"),
        (["--fault", "x:0.1"], "unknown"),
        (["--fault", "429@date:soon:0.1"], "seconds from now"),
        (["--latency", "normal:3"], "lognormal:MEDIAN,SIGMA"),
        (["--latency", "fixed:-3"], "none below 0"),
        (["--latency", "file:nowhere"], "nowhere"),
        (["--gullible", "2"], "0<=x<=1"),
        (["--structured", "xml"], "'schema', 'json', 'none'"),
    ],
)
def test_the_command_explains_a_wrong_option(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(simulate_frontier, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_answers_without_the_right_columns_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,intent\nx,y\n")
    with pytest.raises(ValueError, match="no column named label"):
        read_answers(path)
