"""What is said to a model: the text as data, the stable part the same for all texts, within an upper bound."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from providers import prompt
from providers.types import Example, Label, Question


@given(st.text())
def test_no_text_can_leave_its_json_string(text: str) -> None:
    shown = text.encode("utf-8", "replace").decode()
    assert json.loads(prompt.user_part(text)) == {"text": shown}


@given(st.text(), st.text(min_size=1))
def test_the_upper_bound_covers_every_byte_that_is_sent(text: str, label: str) -> None:
    question = Question("t", text, (Label(label), Label(label + "2")))
    shown = prompt.of(question)
    bound = shown.upper_bound(text)
    assert bound.input > len((shown.prefix + prompt.user_part(text)).encode())
    assert bound.output > len(json.dumps({"label": label}))
    bound = shown.choice_upper_bound(text)
    assert bound.input > len(json.dumps(shown.choice)) + len(text.encode(errors="replace"))


def test_the_prefix_is_the_same_for_all_texts_and_its_digest_tells_every_change(question: Question) -> None:
    digest = prompt.prompt_digest(question.labels, question.instructions)
    assert digest == prompt.prompt_digest(tuple(question.labels), question.instructions)
    first, *rest = question.labels
    changed = [
        (question.labels, "Other words."),
        ((Label(first.name, "another description"), *rest), question.instructions),
        ((*rest, first), question.instructions),
        ((*question.labels, Label("new")), question.instructions),
        (question.labels, question.instructions, (Example("a", first.name),)),
        (question.labels, question.instructions, (Example("b", first.name),)),
        (question.labels, question.instructions, (Example("a", rest[0].name),)),
        (question.labels, question.instructions, (Example("a", first.name), Example("b", first.name))),
    ]
    assert len({digest, *(prompt.prompt_digest(*parts) for parts in changed)}) == 1 + len(changed)


def test_the_words_of_version_1_are_these_when_there_are_no_examples(question: Question) -> None:
    """Other words under the same version would let old answers pass for new ones."""
    assert (prompt.PROMPT_VERSION, prompt.of(question).digest) == ("1", "fae61c86f92afccb350dafd02f235259")


def test_the_stable_part_is_made_once_for_all_texts_of_a_task(question: Question) -> None:
    other = msgspec.structs.replace(question, text="another text", labels=(*question.labels,))
    assert prompt.of(other) is prompt.of(question)
    assert prompt.of(msgspec.structs.replace(question, instructions="x")) is not prompt.of(question)
    assert prompt.prompt_digest(list(question.labels), question.instructions) == prompt.of(question).digest
