"""A provider that does as it is told, for unit tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cost.types import Usage
from providers import prompt
from providers.types import Answer, ProviderError, Question

Step = Answer | ProviderError | Callable[[Question], Awaitable[Answer]]


class ScriptedProvider:
    """Plays its steps in order, the last one again and again; `asked` keeps the questions. A step is an answer, an
    error to raise, or an async function of the question."""

    def __init__(self, name: str, model: str, steps: Sequence[Step]) -> None:
        self.name = name
        self.model = model
        self.asked: list[Question] = []
        self.closed = False
        self._steps = list(steps)

    @property
    def identity(self) -> str:
        return f"scripted/{self.model}"

    def upper_bound(self, question: Question) -> Usage:
        return prompt.of(question).upper_bound(question.text)

    async def ask(self, question: Question, *, timeout: float) -> Answer:  # noqa: ASYNC109, ARG002
        self.asked.append(question)
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, ProviderError):
            raise step
        return step if isinstance(step, Answer) else await step(question)

    async def close(self) -> None:
        self.closed = True
