"""What the simulated model says, how long it takes and how many tokens it uses. It is no model.

It answers from a script, else from a table (text -> label), else with the label that shares most words with the text.
"""

from __future__ import annotations

import csv
import json
import math
import random
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import msgspec

from cost.prices import PriceTable
from cost.types import Usage

_CACHE_TTL_S = 300.0
#: Sigma of the lognormal latency where only a median is given.
_SPREAD = 0.4
#: Most thinking of a model that always thinks, in tokens.
_MOST_THOUGHT = 400
#: The rule of a gullible model: one of these words, at most 40 characters before a label's name.
_ORDERS = r"\b(?:answer|choose|class|classify|category|label|output|pick|reply|respond|return|say|select|write)\w*\b"


class Asked(msgspec.Struct, frozen=True):
    """What a request asks, in any format."""

    model: str
    prefix: str
    text: str
    labels: tuple[str, ...]
    cache_from: int  # prompt-cache minimum in tokens
    max_output: int = 2**31  # tokens
    thinks: bool = False  # the request asks for thinking
    constrained: str = ""  # chat only: "schema", "json" or "" for not at all


class Said(msgspec.Struct, frozen=True):
    """What the model says: the whole reply, and the label for a format that gives nothing else."""

    text: str
    label: str
    stopped: str = ""  # "refusal", "truncated"


class Model:
    """`script`: labels or whole replies, for the next texts in order. `answers`: text -> label. `accuracy`: the share
    of answers that are not replaced by another label. `gullible`: the share of the texts with an order in them
    (`ordered`) that are obeyed. A text always has the same fate under the same `seed`."""

    def __init__(
        self, answers: Mapping[str, str], script: Sequence[str], accuracy: float, gullible: float, seed: int
    ) -> None:
        self.answers = dict(answers)
        self.script = deque(script)
        self._accuracy, self._gullible, self._seed = accuracy, gullible, seed
        self._prices = PriceTable.load()
        self._prefixes: dict[bytes, float] = {}  # prompt cache: prefix digest -> last use

    def say(self, asked: Asked) -> Said:
        if self.script:
            reply = self.script.popleft()
            return said(reply) if reply in asked.labels else Said(reply, reply)
        label = self._chosen(asked)
        if self._gullible and self._drawn(asked.text, "\0gullible") < self._gullible:
            label = ordered(asked.text, asked.labels) or label
        return said(label)

    def _chosen(self, asked: Asked) -> str:
        label = self.answers.get(asked.text.strip(), "")
        if label not in asked.labels:
            words = _words(asked.text)
            shared = [len(words & _words_of_label(name)) for name in asked.labels]
            most = max(shared)
            best = [name for name, count in zip(asked.labels, shared, strict=True) if count == most]
            label = best[0] if len(best) == 1 else max(best, key=lambda name: self._drawn(asked.text, name))
        if self._accuracy < 1 and self._drawn(asked.text, "\0wrong") >= self._accuracy and len(asked.labels) > 1:
            others = [name for name in asked.labels if name != label]
            label = others[int(self._drawn(asked.text, "\0which") * len(others))]
        return label

    def usage(self, asked: Asked, said: Said, now: float) -> Usage:
        """At four characters a token; the prefix goes through a prompt cache of five minutes. Writes to it are told
        only by models that charge for them."""
        prefix, text, output = len(asked.prefix) // 4 + 1, len(asked.text) // 4 + 8, len(said.label) // 4 + 6
        price = self._prices.price(asked.model)
        thought = 0
        if asked.thinks or (price is not None and price.thinking_always_on):
            thought = 16 + int(self._drawn(asked.text, "\0thought") * (_MOST_THOUGHT - 16))
            thought = max(0, min(thought, asked.max_output - output))
        read, written = 0, 0
        shortest = (price and price.prompt_cache_min_tokens) or 0
        if prefix >= max(asked.cache_from, shortest):
            digest = blake2b(f"{asked.model}\0{asked.prefix}".encode("utf-8", "replace"), digest_size=16).digest()
            if now - self._prefixes.get(digest, -math.inf) < _CACHE_TTL_S:
                read = prefix
            elif price is None or price.cache_write_5m is not None:
                written = prefix
            self._prefixes[digest] = now
        plain = text + prefix - read - written
        return Usage(plain, cache_read=read, cache_write_5m=written, output=output + thought, reasoning=thought)

    def _drawn(self, *parts: str) -> float:
        """Uniform in [0, 1), the same in every run."""
        data = "\0".join((str(self._seed), *parts)).encode("utf-8", "replace")
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") / 2**64


def said(label: str) -> Said:
    return Said(json.dumps({"label": label}), label)


def ordered(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text orders, by a simple rule: the last name of a label that stands at most 40 characters after
    a word like "answer" or "label"."""
    names = "|".join(re.escape(name) for name in sorted(labels, key=len, reverse=True))
    found = re.findall(rf"{_ORDERS}.{{0,40}}?(?<!\w)({names})(?!\w)", text, re.IGNORECASE | re.DOTALL)
    return next((name for name in labels if found and name.casefold() == found[-1].casefold()), None)


def _words(text: str) -> set[str]:
    plain = unicodedata.normalize("NFKD", text).casefold()
    return {word.rstrip("s") for word in re.findall(r"[a-z0-9]{3,}", plain)}


_words_of_label = lru_cache(maxsize=10_000)(_words)


def latency_of(spec: str) -> Callable[[random.Random], float]:
    """How to draw a latency in seconds: "fixed:MS", "lognormal:MEDIAN_MS,SIGMA", "file:PATH" (milliseconds, one a line,
    drawn at random). Raises `ValueError`, `OSError`."""
    kind, _, rest = spec.partition(":")
    if kind == "fixed":
        (fixed,) = _numbers(f"latency {spec!r}", rest)
        return lambda _: fixed / 1000
    if kind == "lognormal":
        median, sigma = _numbers(f"latency {spec!r}", *rest.split(","), count=2)
        return lambda drawn: median / 1000 * math.exp(drawn.gauss(0.0, sigma))
    if kind == "file":
        lines = Path(rest).read_text(encoding="utf-8").split()
        times = _numbers(f"the latency file {rest}", *lines, count=max(1, len(lines)))
        return lambda drawn: drawn.choice(times) / 1000
    raise ValueError(f"latency {spec!r}: write fixed:MS, lognormal:MEDIAN,SIGMA or file:PATH, as in lognormal:300,0.4")


def latency_around(median_ms: float) -> Callable[[random.Random], float]:
    return latency_of(f"lognormal:{median_ms},{_SPREAD}")


def _numbers(what: str, *written: str, count: int = 1) -> list[float]:
    try:
        values = [float(value) for value in written]
    except ValueError:
        values = []
    if len(values) != count or not all(0 <= value < math.inf for value in values):
        raise ValueError(f"{what}: {count} number{'s' * (count > 1)} wanted, none below 0, as in fixed:250")
    return values


def read_answers(path: Path) -> dict[str, str]:
    """A CSV with the columns text and label. Raises `ValueError` where they are missing, `OSError`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"text", "label"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column named {' and '.join(sorted(missing))}")
        return {row["text"].strip(): row["label"].strip() for row in rows}
