"""What is asked of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from local_model.types import Classifier, TaskInfo
from providers.types import Example, Label, Question
from router.policy import Rules
from router.types import Degraded


class TaskRoute(msgspec.Struct, frozen=True):
    """One task, as loaded; made at start, and again at every reload."""

    info: TaskInfo
    classifier: Classifier
    nano_per_us: float  # what a microsecond of its engine costs
    labels: tuple[Label, ...]
    label_names: frozenset[str]
    instructions: str
    local_parts: Mapping[str, str]  # everything that changes the local answer, by name
    frontier_parts: Mapping[str, str]  # everything that changes the frontier's
    local_identity: str  # their digests
    frontier_identity: str
    examples: tuple[Example, ...] = ()

    def question(self, text: str) -> Question:
        """As it goes to a frontier. `text` is normalized."""
        return Question(self.info.name, text, self.labels, self.instructions, self.examples)


class Ask(msgspec.Struct, frozen=True):
    """One request, with everything the front door found out about it."""

    request_id: str
    tenant: str
    task: TaskRoute
    texts: Sequence[str]
    rules: Rules
    deadline: float  # in the loop's time
    started_ns: int  # time.perf_counter_ns
    refuses: frozenset[Degraded] = frozenset()  # reasons to give an error instead of a label that stands in
    coalesce: bool = True  # share the computation of an identical text in flight
    read_cache: bool = True
    write_cache: bool = True


class Input(NamedTuple):
    """One text of a request, normalized."""

    place: int  # in the request
    text: str
    digest: bytes
