"""A model's reply becomes a label of the closed set, or an error. Nothing in between: no trimming, no guessing."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable
from contextlib import suppress

from providers.types import BadAnswer

_NAME = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")
_FENCE = re.compile(r"```(?:json)?\s(.*)```", re.DOTALL)


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
    return member(pairs[0][1], labels)


def member(label: object, labels: Container[str]) -> str:
    """`label`, if it is one of `labels`. Raises `BadAnswer`."""
    if not isinstance(label, str) or label not in labels:
        raise BadAnswer("the reply's label is not one of the task's labels")
    return label


def unwrapped(reply: str) -> str:
    """A reply without what models put around it where no schema holds them: thoughts that end in </think> (some
    servers begin them in the prompt), and the fence of a single code block. What else there is, `label_of` refuses."""
    text = reply.rpartition("</think>")[2].strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1].strip()
    return text


def scores_of(pairs: Iterable[tuple[object, object]], labels: Container[str]) -> tuple[tuple[str, float], ...]:
    """(label, probability) pairs, best first; () if there is anything among them that can't be true."""
    scores: dict[str, float] = {}
    for label, value in pairs:
        if not isinstance(label, str) or label not in labels or label in scores:
            return ()
        if type(value) not in (int, float) or not 0.0 <= value <= 1.0:  # type: ignore[operator]
            return ()
        scores[label] = float(value)  # type: ignore[arg-type]
    if sum(scores.values()) > 1.01:  # they are rounded
        return ()
    return tuple(sorted(scores.items(), key=lambda pair: -pair[1]))


def name_of(value: object) -> str:
    """A model's name or a reason as a reply gives it, if it looks like one; else nothing. It will be logged."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""
