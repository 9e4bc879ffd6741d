"""A model's reply becomes a label of the closed set, or an error. Nothing in between: no trimming, no guessing."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from contextlib import suppress

from cost.types import Usage
from providers.types import Answer, BadAnswer

_NAME = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")


def label_of(reply: str, labels: Container[str]) -> str:
    """The label in `{"label": "..."}`, if the reply is exactly that and the label is one of `labels`.

    Raises `BadAnswer`, whose message never quotes the reply: it may hold the text.
    """
    pairs: object = None
    # Suppressed, not caught and raised anew: the decoder's error carries the reply.
    with suppress(ValueError, RecursionError):
        # Pairs instead of dicts, so that a second "label" can't hide behind the first. Arrays stay lists.
        pairs = json.loads(reply, object_pairs_hook=tuple)
    if not (isinstance(pairs, tuple) and len(pairs) == 1 and pairs[0][0] == "label"):
        raise BadAnswer("the reply is not a JSON object with the one key 'label'")
    label = pairs[0][1]
    if not isinstance(label, str) or label not in labels:
        raise BadAnswer("the reply's label is not one of the task's labels")
    return label


def answer_of(reply: str, labels: Container[str], *, model: str, usage: Usage) -> Answer:
    """An answer of `model` at the price of `usage`. Raises `BadAnswer` with both: it is billed all the same."""
    try:
        label = label_of(reply, labels)
    except BadAnswer as error:
        error.model, error.usage = model, usage
        raise
    return Answer(label, model, usage)


def name_of(value: object) -> str:
    """A model's name or a reason as a reply gives it, if it looks like one; else nothing. It will be logged."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""
