"""A batch takes hours: a provider in trouble is asked again, ever less often. What no waiting mends stops the job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from providers.types import AuthFailed, Permanent, ProviderError, RateLimited
from router.cli.asking import Stopped

T = TypeVar("T")

#: Seconds between two looks: from, growing by, to.
FIRST_S, GROWTH, LONGEST_S = 1.0, 1.5, 60.0


def longer(wait: float) -> float:
    return min(wait * GROWTH, LONGEST_S)


class Patience:
    """With one provider, in the job whose file is at `path`."""

    def __init__(
        self,
        provider: str,
        path: Path,
        *,
        tell: Callable[[str], None],
        show: Callable[[str], None],
        sleep: Callable[[float], Awaitable[Any]],
    ) -> None:
        self._provider, self._path = provider, path
        self._tell, self._show, self._sleep = tell, show, sleep

    async def asked(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until it is answered, however long that takes; but a wrong key, or a batch that is not there, stops it."""
        wait = FIRST_S
        while True:
            try:
                return await call()
            except ProviderError as error:
                failure = error
            if isinstance(failure, Permanent):
                raise Stopped(self.why(failure))
            wait = await self.wait(wait, failure)

    async def wait(self, wait: float, failure: ProviderError) -> float:
        """Gives how long the next wait is. The first one of a trouble is told as well."""
        if wait == FIRST_S:
            self._tell(f"{self._provider}: {failure}; it is tried again")
        asked_for = failure.retry_after if isinstance(failure, RateLimited) else None
        self._show(f"{self._provider}: {failure}; the next try is in {wait:.0f} s")
        await self._sleep(min(max(wait, asked_for or 0.0), 600.0))
        return longer(wait)

    def why(self, failure: ProviderError) -> str:
        what = f"{self._provider}: {failure}"
        if isinstance(failure, AuthFailed):
            return f"{what}. Mend that, then run the same command again: it goes on"
        return f"{what}. Run the same command again to try again, or give the job up: remove {self._path}"
