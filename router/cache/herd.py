"""Who buys an answer that several processes want at once: one of them. The others wait for it, not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from redis.asyncio import Redis

from router.cache.breaker import Breaker
from router.cache.waiting import Background, Together, within
from router.cache.writer import Writer

#: A claim outlives its owner by this, in milliseconds; while the owner lives it is renewed three times as often. Where
#: an ACL forbids EVAL it is neither renewed nor released: it ends after this time, and a longer call may be made twice.
CLAIM_MS = 1000
RENEW_S = CLAIM_MS / 3000
#: Who waits looks this often, in seconds, all in the same turn of the loop.
LOOK_S = 0.025
#: So long, in seconds, it waits for Redis to say who has a claim: as long as the breaker needs to see an outage. A
#: second call that is paid costs more than a quarter of a second.
ANSWER_S = 0.25

_RENEW = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('pexpire',KEYS[1],ARGV[2]) end return 0"
_RELEASE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end return 0"


Claim = Literal["ours", "theirs", "unknown"]


class Herd:
    """Claims on names: `SET NX PX` with a token of the owner's, so that nobody ends the claim of another."""

    def __init__(self, redis: Redis, writer: Writer, reads: Breaker, writes: Breaker, background: Background) -> None:
        self._redis = redis
        self._writer = writer
        self._reads = reads
        self._writes = writes
        self._background = background
        self._claiming: Together[tuple[str, str], Claim] = Together(self._claim, background)
        self._mine: dict[str, str] = {}  # token -> name: a claim that was lost may be ours a second time
        self._renewing = False

    async def lead(self, name: str, look: Callable[[], Awaitable[bool]], *, until: float) -> str | None:
        """Wait until the claim on `name` is ours (its token: `release` it), or `look()` finds what it looks for, or
        half of the time until `until` (the loop's time) is over, or nobody can tell. With the claim it looks once more:
        the last owner may just have finished."""
        loop = asyncio.get_running_loop()
        patience = (loop.time() + until) / 2
        waiting = False  # for somebody: a reply that is lost does not change that
        while not (self._reads.open or self._writes.open):
            token = secrets.token_hex(8)
            claim = await self._claiming.ask((name, token))
            if claim == "ours":
                return await self._led(name, token, look)
            waiting |= claim == "theirs"
            if not waiting or await look():
                break
            now = loop.time()
            if now >= patience:
                break
            await asyncio.sleep(min(LOOK_S - now % LOOK_S, patience - now))
        return None

    async def _led(self, name: str, token: str, look: Callable[[], Awaitable[bool]]) -> str:
        self._mine[token] = name
        if not self._renewing:
            self._renewing = True
            self._background.start(self._renew())
        try:
            await look()
        except BaseException:
            self.release(name, token)
            raise
        return token

    def release(self, name: str, token: str) -> None:
        """After what was written before: the next who looks finds it."""
        self._mine.pop(token, None)
        self._end(name, token)

    def _end(self, name: str, token: str) -> None:
        self._writer.put("EVAL", _RELEASE, 1, name, token)

    async def _claim(self, asked: Sequence[tuple[str, str]]) -> list[Claim]:
        pipeline = self._redis.pipeline(transaction=False)
        for name, token in asked:
            pipeline.set(name, token, nx=True, px=CLAIM_MS)
        try:
            replies = await within(pipeline.execute(raise_on_error=False), ANSWER_S)
        except Exception as error:  # noqa: BLE001 - a reply of the wrong shape raises anything
            self._writes.failed(error)
            for name, token in asked:  # they may have arrived: nobody shall wait for whom nobody knows of
                self._end(name, token)
            return ["unknown"] * len(asked)
        if refused := [reply for reply in replies if isinstance(reply, Exception)]:
            self._writes.failed(refused[0])
        return ["unknown" if isinstance(reply, Exception) else "ours" if reply else "theirs" for reply in replies]

    async def _renew(self) -> None:
        try:
            while self._mine:
                await asyncio.sleep(RENEW_S)
                pipeline = self._redis.pipeline(transaction=False)
                for token, name in self._mine.items():
                    pipeline.eval(_RENEW, 1, name, token, CLAIM_MS)
                with contextlib.suppress(Exception):  # the next round tries again
                    await pipeline.execute(raise_on_error=False)
        finally:
            self._renewing = False
