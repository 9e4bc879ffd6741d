"""The parent of several workers: it holds the port, owns the embedded Redis, replaces the dead, and passes on signals
and new configs. It serves nothing itself and imports no model library and no web framework."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog

from router.cache.embedded import EmbeddedRedis, EmbeddedRedisError
from router.cli.worker import BEAT_S, Adopt, Begin, Failed, Message, Opened, Refused, Took, pack, receive
from router.config_file import Loaded
from router.reload import Adopted, ConfigFile, RefusedError, follow, taken_over
from router.siblings import Place

log = structlog.get_logger("crossover")

#: Seconds before a dead worker is replaced: at first, and at most; doubled each time, until one has lived for a while.
PAUSE_S, LONGEST_PAUSE_S, LIVED_S = 0.5, 30.0, 60.0
#: Beats that a worker may miss in a row.
MISSED = 10
#: Seconds beyond leave_s and drain_s until a worker that does not end is killed: engine threads have ten.
GRACE_S = 30.0
#: Seconds between two looks at the embedded Redis.
REDIS_S = 1.0


class Child:
    """A worker, as its parent sees it."""

    def __init__(self, process: subprocess.Popen[bytes], place: Place, loaded: Loaded) -> None:
        self.process = process
        self.place = place
        self.loaded = loaded  # what it serves
        self.open = False
        self.failed: Failed | None = None
        self._heard = False
        self.writer: asyncio.StreamWriter | None = None
        self._replies: asyncio.Queue[Took | Refused] = asyncio.Queue()

    def tell(self, message: Message) -> None:
        if self.writer is not None:
            self.writer.write(pack(message))

    async def adopt(self, loaded: Loaded) -> Adopted:
        """Raises RefusedError. One at a time."""
        if not self.open:  # its end was the last reply
            raise RefusedError("the worker is gone")
        self.tell(Adopt(loaded))
        reply = await self._replies.get()
        if isinstance(reply, Refused):
            raise RefusedError(reply.why)
        self.loaded = loaded
        return reply.adopted

    async def attend(self, channel: socket.socket, port: int, opened: Callable[[Child], None]) -> int:
        """Until it has ended; gives its exit code, below 0 the signal."""
        reader, self.writer = await asyncio.open_unix_connection(sock=channel)
        self.tell(Begin(self.loaded, self.place, port))
        watching = asyncio.create_task(self._watch())
        while (message := await receive(reader)) is not None:
            self._heard = True
            if isinstance(message, Opened):
                self.open = True
                opened(self)
            elif isinstance(message, Failed):
                self.failed = message
            elif isinstance(message, Took | Refused):
                self._replies.put_nowait(message)
        self.open = False
        watching.cancel()
        self._replies.put_nowait(Refused("the worker died of it"))
        self.writer.close()
        return await asyncio.to_thread(self.process.wait)

    async def _watch(self) -> None:
        """Kill a worker whose loop stands still: the kernel would go on giving it connections. Beats are counted, not
        seconds: after a pause of the whole machine all are late."""
        missed = -1  # until the first has come, it is importing
        while missed < MISSED:
            await asyncio.sleep(BEAT_S)
            missed = 0 if self._heard else missed + (missed >= 0)
            self._heard = False
        log.error("worker_stalled", worker=self.place.number, seconds=MISSED * BEAT_S)
        self.process.kill()


class Workers:
    """`run` is the parent's life."""

    def __init__(
        self, loaded: Loaded, port: int, folder: str, redis: EmbeddedRedis | None, started: Callable[[], object]
    ) -> None:
        """`started` is called once, when the first worker takes connections."""
        self._loaded = loaded  # what is served, and what a new worker begins with
        self._port = port
        self._folder = folder
        self._redis = redis
        self._started = started
        self._children: dict[int, Child] = {}
        self._adopting = asyncio.Lock()
        self._opened = asyncio.Event()
        self._over = asyncio.Event()
        self._catching_up: set[asyncio.Task[None]] = set()
        self._failed: Failed | None = None

    async def run(self, file: ConfigFile | None, hangup: asyncio.Event) -> Failed | None:
        """Until a signal; or until it is clear that nothing can be served, and why.

        The first worker goes ahead: it builds what has to be built, and a model that can't be loaded is told once.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.leave, number)
        beside = [asyncio.create_task(follow(file, hangup, self._adopt, self._refused))]
        if self._redis is not None:
            beside.append(asyncio.create_task(self._keep_redis(self._redis)))
        keepers = [asyncio.create_task(self._keep(0))]
        go_on = [asyncio.create_task(event.wait()) for event in (self._opened, self._over)]
        await asyncio.wait(go_on, return_when=asyncio.FIRST_COMPLETED)
        if not self._over.is_set():
            keepers += [asyncio.create_task(self._keep(n)) for n in range(1, self._loaded.config.server.workers)]
        await self._over.wait()
        for task in (*beside, *go_on, *self._catching_up):
            task.cancel()
        limits = self._loaded.config.server
        _, late = await asyncio.wait(keepers, timeout=limits.leave_s + limits.drain_s + GRACE_S)
        if late:
            for child in self._children.values():
                log.error("worker_killed", worker=child.place.number, why="it did not end in time")
                child.process.kill()
        await asyncio.gather(*keepers)
        return self._failed

    def leave(self, number: int) -> None:
        """Pass the signal on, and end when all workers have ended."""
        self._over.set()
        for child in self._children.values():
            child.process.send_signal(number)

    # the workers -----------------------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """One worker after another in this place."""
        pause = PAUSE_S
        while not self._over.is_set():
            born = time.monotonic()
            try:
                failed = await self._one(number)
            except OSError as error:
                failed = Failed(f"no worker can be started: {error}", 70)
            if self._over.is_set():
                return
            if not self._opened.is_set():
                self._failed = failed
                self._over.set()
                return
            if time.monotonic() - born >= LIVED_S:
                pause = PAUSE_S
            log.error("worker_died", worker=number, why=failed.why, exit=failed.code, replaced_in_s=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._over.wait()
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _one(self, number: int) -> Failed:
        """From its start to its end, and how it ended."""
        mine, theirs = socket.socketpair()
        process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds; a fresh interpreter, as a fork would inherit locks
            [sys.executable, "-m", "router.cli.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal reaches the parent alone
        )
        theirs.close()
        place = Place(number, self._loaded.config.server.workers, self._folder)
        child = self._children[number] = Child(process, place, self._loaded)
        code = await child.attend(mine, self._port, self._has_opened)
        del self._children[number]
        return child.failed or Failed(f"a worker ended: {f'signal {-code}' if code < 0 else f'exit code {code}'}", 70)

    def _has_opened(self, child: Child) -> None:
        if not self._opened.is_set():
            self._opened.set()
            self._started()
        if child.loaded is not self._loaded:  # the config was changed while it loaded
            task = asyncio.create_task(self._catch_up(child))
            self._catching_up.add(task)
            task.add_done_callback(self._catching_up.discard)

    # config and Redis ------------------------------------------------------------------------------------------------

    async def _adopt(self, loaded: Loaded) -> Adopted:
        """The first worker tries it; if it can serve it, the others follow. Raises RefusedError."""
        await self._opened.wait()
        async with self._adopting:
            config, needs_restart = taken_over(self._loaded.config, loaded.config)
            loaded = msgspec.structs.replace(loaded, config=config)
            first = next(iter(self._open_children()), None)
            adopted = Adopted(list(config.tasks), 0.0, [], []) if first is None else await first.adopt(loaded)
            self._loaded = loaded
            others = [child for child in self._open_children() if child.loaded is not loaded]
            await asyncio.gather(*(self._follow_suit(child) for child in others))
        return msgspec.structs.replace(adopted, needs_restart=needs_restart)

    async def _catch_up(self, child: Child) -> None:
        async with self._adopting:
            if child.open and child.loaded is not self._loaded:
                await self._follow_suit(child)

    async def _follow_suit(self, child: Child) -> None:
        """Who can't, leaves, and is replaced by one that begins with it: a key that was taken out is good nowhere."""
        try:
            await child.adopt(self._loaded)
        except RefusedError as error:
            log.error("reload_failed", worker=child.place.number, error=str(error), then="replaced")  # noqa: TRY400
            child.open = False
            child.process.terminate()

    def _refused(self) -> None:
        for child in self._open_children():
            child.tell(Refused())

    def _open_children(self) -> list[Child]:
        return [child for child in self._children.values() if child.open]

    async def _keep_redis(self, redis: EmbeddedRedis) -> None:
        """Only who holds its lock can start it again."""
        while True:
            await asyncio.sleep(REDIS_S)
            with suppress(EmbeddedRedisError):
                await asyncio.to_thread(redis.ensure)
