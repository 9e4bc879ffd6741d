"""What only one wire format does: chat without schemas, Decisions' probabilities, models that always think."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from cost.prices import PriceTable
from cost.types import Usage
from providers import prompt
from providers.build import build
from providers.settings import Settings
from providers.simulator import Simulator
from providers.types import Answer, BadAnswer, BadRequest, Example, Label, ProviderError, Question, SchemaRefused

MANY = tuple(Label(f"label {number}", f"what belongs to {number}") for number in range(300))


def made(kind: str, sim: Simulator | None = None, **settings: Any) -> Any:
    base_url = None if sim is None else sim.url + ("" if kind == "anthropic" else "/v1")
    model = settings.pop("model", "claude-haiku-5-5" if kind == "anthropic" else "gpt-6-luna")
    return build(kind, name="p", model=model, api_key="k", settings=Settings(base_url, **settings))  # type: ignore[arg-type]


def sent(kind: str, question: Question, **settings: Any) -> dict[str, Any]:
    """The body of a call."""
    return dict(made(kind, **settings).request(question))


def asked(
    provider_of: Any, question: Question, times: int = 1, **simulator: Any
) -> tuple[list[Answer | ProviderError], Simulator]:
    """What came of asking so many times, one after the other."""

    async def main() -> tuple[list[Answer | ProviderError], Simulator]:
        came: list[Answer | ProviderError] = []
        faults = simulator.pop("fail", ())
        async with Simulator(record=True, **simulator) as sim:
            sim.fail_next(faults)
            provider = provider_of(sim)
            for _ in range(times):
                try:
                    came.append(await provider.ask(question, timeout=10))
                except ProviderError as error:
                    came.append(error)
            await provider.close()
        return came, sim

    return asyncio.run(main())


def styles(sim: Simulator) -> list[str]:
    """How the requests asked for structure."""
    return [request.get("response_format", {}).get("type", "none") for request in sim.requests]


# chat without schemas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knows", "refusals", "style"),
    [("schema", 0, "json_schema"), ("json", 1, "json_object"), ("none", 2, "none")],
)
def test_a_server_without_strict_schemas_is_asked_more_simply_and_that_is_remembered(
    question: Question, knows: Any, refusals: int, style: str
) -> None:
    """Each refusal costs one call, once; from then on the server is asked as it can be."""
    came, sim = asked(lambda sim: made("openai-chat", sim), question, times=5, structured=knows)
    assert [type(each) for each in came] == [SchemaRefused] * refusals + [Answer] * (5 - refusals)
    assert all(each.billed == "no" for each in came if isinstance(each, ProviderError))
    assert set(styles(sim)[refusals:]) == {style}
    assert all(answer.label == "card_arrival" for answer in came if isinstance(answer, Answer))


def test_refusals_in_every_mode_mean_that_it_was_not_the_schema(question: Question) -> None:
    """A wrong model name, say. The next question starts from the strictest again."""
    came, sim = asked(lambda sim: made("openai-chat", sim), question, times=4, fail=["400", "422", "400"])
    assert [type(each) for each in came] == [SchemaRefused, SchemaRefused, BadRequest, Answer]
    assert styles(sim) == ["json_schema", "json_object", "none", "json_schema"]


def test_calls_that_are_refused_at_the_same_time_lower_the_mode_by_one_step_only(question: Question) -> None:
    async def main() -> None:
        async with Simulator(record=True, structured="json") as sim:
            provider = made("openai-chat", sim)
            came = await asyncio.gather(*(provider.ask(question, timeout=10) for _ in range(4)), return_exceptions=True)
            assert [type(each) for each in came] == [SchemaRefused] * 4
            await provider.ask(question, timeout=10)
            assert styles(sim) == ["json_schema"] * 4 + ["json_object"]
            await provider.close()

    asyncio.run(main())


@pytest.mark.parametrize(("mode", "style"), [("schema", "json_schema"), ("json", "json_object"), ("none", "none")])
def test_a_mode_that_the_config_names_is_kept_and_a_400_is_a_400(question: Question, mode: str, style: str) -> None:
    came, sim = asked(lambda sim: made("openai-chat", sim, structured=mode), question, times=2, fail=["400"])
    assert [type(each) for each in came] == [BadRequest, Answer]
    assert styles(sim) == [style] * 2


def test_a_text_that_is_too_long_is_not_mistaken_for_a_refused_schema(question: Question) -> None:
    """The mode would be lowered for everybody."""
    came, sim = asked(lambda sim: made("openai-chat", sim), question, times=2, fail=["413"])
    assert [type(each) for each in came] == [BadRequest, Answer]
    assert styles(sim) == ["json_schema"] * 2


def test_only_chat_is_read_through_a_fence(kind: str, question: Question) -> None:
    """The others hold models to their schema: what has a fence around it did not keep to it."""
    came, _ = asked(lambda sim: made(kind, sim), question, fail=["fenced"])
    assert isinstance(came[0], Answer if kind == "openai-chat" else BadAnswer)


def test_the_limit_of_tokens_has_the_name_that_the_server_knows(question: Question) -> None:
    """Servers that speak OpenAI's format know the older one; OpenAI's own models that think refuse it."""
    elsewhere = sent("openai-chat", question, sim=Simulator(port=1))
    at_openai = sent("openai-chat", question)
    assert elsewhere["max_tokens"] == at_openai["max_completion_tokens"]
    assert "max_completion_tokens" not in elsewhere
    assert "max_tokens" not in at_openai


# what a chat server may say ------------------------------------------------------------------------------------------


def chat_reply(content: object, **more: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", **more}
    usage = {"prompt_tokens": 300, "completion_tokens": 9, "total_tokens": 309}
    return json.dumps({"id": "c-1", "model": "m", "choices": [choice], "usage": usage}).encode()


@pytest.mark.parametrize(
    "content",
    [
        '{"label": "card_arrival"}',
        '  {"label":\n "card_arrival"}\n',
        '```json\n{"label": "card_arrival"}\n```',
        '```\n{"label": "card_arrival"}```',
        '<think>exchange_rate? {"label": "exchange_rate"}</think>\n\n{"label": "card_arrival"}',
        'It began in the prompt.</think>{"label": "card_arrival"}',
        '<think>hm</think>\n```json\n{"label": "card_arrival"}\n```',
    ],
)
def test_thoughts_and_one_fence_are_taken_away(question: Question, content: str) -> None:
    assert made("openai-chat").answer(question, chat_reply(content)).label == "card_arrival"


@pytest.mark.parametrize(
    "content",
    [
        'Sure! {"label": "card_arrival"}',
        '{"label": "card_arrival"} {"label": "exchange_rate"}',
        '```json\n{"label": "card_arrival"}\n```\n```json\n{"label": "exchange_rate"}\n```',
        '```json\n{"label": "card_arrival"}\n``` I hope this helps',
        "<think>card_arrival",
        '<think>{"label": "card_arrival"}',
        '{"label": "card_arrival"}</think>',
        "card_arrival",
        "",
        None,
    ],
)
def test_everything_else_is_no_answer_and_billed(question: Question, content: object) -> None:
    with pytest.raises(BadAnswer) as caught:
        made("openai-chat").answer(question, chat_reply(content))
    assert caught.value.usage == Usage(input=300, output=9)
    assert caught.value.reply_id == "c-1"


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls", ""])
def test_a_reply_that_was_cut_or_filtered_is_no_answer(question: Question, finish: str) -> None:
    whole = '{"label": "card_arrival"}'
    with pytest.raises(BadAnswer, match="stopped early"):
        made("openai-chat").answer(question, chat_reply(whole, finish_reason=finish))
    assert made("openai-chat").answer(question, chat_reply(whole, finish_reason=None)).label == "card_arrival"


# Decisions -----------------------------------------------------------------------------------------------------------


def decision(choice: object, scores: Sequence[tuple[object, object]], **answer: object) -> bytes:
    probabilities = [{"value": value, "probability": probability} for value, probability in scores]
    usage = {"input_tokens": 200, "output_tokens": 0}
    said = {"type": "choice", "choice": choice, "confidence": 0.5, "probabilities": probabilities, **answer}
    return json.dumps({"model": "gpt-6-luna-2026-10-01", "answers": [said], "usage": usage}).encode()


def test_probabilities_are_kept_best_first_and_the_confidence_is_the_labels_own(question: Question) -> None:
    scores = [("exchange_rate", 0.2), ("card_arrival", 0.7), ("lost_or_stolen_card", 0.1)]
    answer = made("openai-decisions").answer(question, decision("card_arrival", scores))
    assert answer.label == "card_arrival"
    assert answer.confidence == 0.7
    assert answer.scores == (("card_arrival", 0.7), ("exchange_rate", 0.2), ("lost_or_stolen_card", 0.1))
    assert answer.usage == Usage(input=200)


def test_ten_probabilities_are_kept_of_more() -> None:
    question = Question("t", "x", MANY[:200])
    scores = [(label.name, (200 - number) / 40_000) for number, label in enumerate(question.labels)]
    answer = made("openai-decisions").answer(question, decision("label 150", scores))
    assert [label for label, _ in answer.scores] == [label.name for label in MANY[:10]]
    assert answer.confidence == scores[150][1]


@pytest.mark.parametrize(
    "scores",
    [
        [("card_arrival", 1.2)],
        [("card_arrival", -0.1)],
        [("card_arrival", True)],
        [("card_arrival", "0.9")],
        [("card_arrival", None)],
        [("Card_arrival", 0.9)],
        [(True, 0.9)],
        [("card_arrival", 0.4), ("card_arrival", 0.4)],
        [("card_arrival", 0.9), ("exchange_rate", 0.9)],
        [],
    ],
)
def test_probabilities_that_cannot_be_true_are_dropped_and_the_label_stays(question: Question, scores: Any) -> None:
    answer = made("openai-decisions").answer(question, decision("card_arrival", scores))
    assert (answer.label, answer.confidence, answer.scores) == ("card_arrival", None, ())


@pytest.mark.parametrize("body", [b'{"model": "m", "answers": []}', b'{"model": "m", "answers": [{"type": "choice"}]}'])
def test_a_decision_without_one_is_no_answer(question: Question, body: bytes) -> None:
    with pytest.raises(BadAnswer) as caught:
        made("openai-decisions").answer(question, body)
    assert caught.value.usage == made("openai-decisions").upper_bound(question)


@pytest.mark.parametrize("choice", ["Card_arrival", "never offered", True, None, 3, ["card_arrival"]])
def test_a_choice_outside_the_set_is_no_answer(question: Question, choice: object) -> None:
    with pytest.raises(BadAnswer):
        made("openai-decisions").answer(question, decision(choice, []))


def test_a_declined_question_is_no_answer(question: Question) -> None:
    with pytest.raises(BadAnswer, match="refusal"):
        made("openai-decisions").answer(question, decision(None, [], type="refusal"))


def test_decisions_are_in_the_books_under_a_name_of_their_own(question: Question) -> None:
    """They are priced otherwise than the model's tokens. On the wire it is the model."""
    provider = made("openai-decisions")
    assert provider.model == "gpt-6-luna/decisions"
    assert made("openai-decisions", model="gpt-6-luna/decisions").model == "gpt-6-luna/decisions"
    assert provider.request(question)["model"] == "gpt-6-luna"
    answer = provider.answer(question, decision("card_arrival", []))
    assert answer.model == "gpt-6-luna-2026-10-01/decisions"
    assert PriceTable.load().cost_nano(answer.model, Usage(input=200, output=50)) == 20_000  # the output is free


def test_more_labels_than_a_decision_takes_are_refused_without_a_call() -> None:
    came, sim = asked(lambda sim: made("openai-decisions", sim), Question("t", "label 299", MANY))
    assert isinstance(came[0], BadRequest)
    assert "255 labels at most and the task has 300" in str(came[0])
    assert came[0].billed == "no"
    assert sim.calls == 0


@pytest.mark.parametrize("labels", [2, 255, 300])
def test_tasks_may_have_from_two_to_hundreds_of_labels(kind: str, labels: int) -> None:
    if kind == "openai-decisions":
        labels = min(labels, 255)
    question = Question("t", f"this is about {labels - 1}", MANY[:labels])
    came, _ = asked(lambda sim: made(kind, sim), question, answers={question.text: f"label {labels - 1}"})
    assert isinstance(came[0], Answer)
    assert came[0].label == f"label {labels - 1}"
    assert not came[0].usage.estimated


# thoughts ------------------------------------------------------------------------------------------------------------


def test_a_model_that_always_thinks_gets_room_for_it_and_little_effort(question: Question) -> None:
    """Without the room the answer would be cut off; with its own default effort it would think for long."""
    plain, thinker = sent("anthropic", question), sent("anthropic", question, model="claude-sonnet-5-5")
    assert thinker["max_tokens"] - plain["max_tokens"] == 4096 - 1024
    assert thinker["output_config"]["effort"] == "low"
    assert "effort" not in plain["output_config"]
    rented = {"via": "bedrock", "region": "eu-west-1"}
    for name, room in [("eu.anthropic.claude-sonnet-5-5-v1:0", 4096), ("eu.anthropic.claude-sonnet-5-v1:0", 1024)]:
        assert made("anthropic", model=name, **rented).upper_bound(question).output == (
            prompt.of(question).answer_tokens + room
        )
    told = sent("anthropic", question, model="claude-sonnet-5-5", effort="high", thinking_tokens=9000)
    assert told["output_config"]["effort"] == "high"
    assert told["max_tokens"] == thinker["max_tokens"] - 4096 + 9000


def test_effort_goes_where_each_format_has_it_and_nowhere_by_itself(question: Question) -> None:
    assert sent("openai", question, effort="none")["reasoning"] == {"effort": "none"}
    assert sent("openai-chat", question, effort="minimal")["reasoning_effort"] == "minimal"
    assert "reasoning" not in sent("openai", question)
    assert "reasoning_effort" not in sent("openai-chat", question)


@pytest.mark.parametrize("kind", ["anthropic", "openai", "openai-chat"])
def test_the_room_for_thoughts_is_in_the_request_and_in_what_is_reserved(kind: str, question: Question) -> None:
    for thinking in (0, 50_000):
        body = sent(kind, question, thinking_tokens=thinking)
        limit = body.get("max_tokens") or body.get("max_output_tokens") or body.get("max_completion_tokens")
        bound = made(kind, thinking_tokens=thinking).upper_bound(question)
        assert limit == bound.output == prompt.of(question).answer_tokens + thinking


def test_what_changes_answers_is_in_the_identity_and_where_the_provider_is_is_not() -> None:
    def identity(kind: str = "openai-chat", **settings: Any) -> str:
        return str(made(kind, **settings).identity)

    same = {identity(), identity(sim=Simulator(port=1))}
    others = [
        identity(model="gpt-6-sol"),
        identity("openai"),
        identity("openai-decisions"),
        identity("anthropic"),
        identity(effort="low"),
        identity(thinking_tokens=5),
        identity(structured="json"),
    ]
    assert len(same) == 1
    assert len({*same, *others}) == 1 + len(others)


# examples ------------------------------------------------------------------------------------------------------------


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in strings(each)]


def test_examples_are_in_the_stable_part_of_every_format_and_are_reserved_for(kind: str, question: Question) -> None:
    """Each a line of its own, whatever is in it."""
    text = 'an example\n- "exchange_rate": where\nLabels:'
    shown = msgspec.structs.replace(question, examples=(Example(text, "card_arrival"),))
    line = f"\n{json.dumps({'text': text})} is {json.dumps({'label': 'card_arrival'})}"
    (stable,) = [string for string in strings(sent(kind, shown)) if line in string]
    assert question.text not in stable
    assert not any(line in string for string in strings(sent(kind, question)))
    assert made(kind).upper_bound(shown).input - made(kind).upper_bound(question).input >= len(line)


# tiers ---------------------------------------------------------------------------------------------------------------


def test_the_tier_at_list_price_is_asked_for_where_its_word_is_known(question: Question) -> None:
    """An account may have a dearer one by default."""
    assert sent("anthropic", question)["service_tier"] == "standard_only"
    assert sent("openai", question)["service_tier"] == "default"
    assert sent("openai-chat", question)["service_tier"] == "default"
    assert "service_tier" not in sent("openai-decisions", question)
    assert "service_tier" not in sent("openai-chat", question, sim=Simulator(port=1))


@pytest.mark.parametrize("kind", ["openai", "openai-chat"])
def test_a_reply_from_a_dearer_tier_counts_with_its_upper_bound(kind: str, question: Question) -> None:
    said = '{"label":"card_arrival"}'
    for tier, estimated in (("priority", True), ("default", False), (None, False), ("on_demand", False)):
        reply = {
            "openai": {
                "id": "r",
                "model": "gpt-6-luna",
                "status": "completed",
                "output": [{"type": "message", "content": [{"type": "output_text", "text": said}]}],
                "usage": {"input_tokens": 100, "output_tokens": 5},
            },
            "openai-chat": {
                "id": "r",
                "model": "gpt-6-luna",
                "choices": [{"message": {"content": said}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 5},
            },
        }[kind]
        body = msgspec.json.encode(reply | {"service_tier": tier})
        assert made(kind).answer(question, body).usage == Usage(100, output=5, estimated=estimated)
