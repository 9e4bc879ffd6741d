"""A redis-server of the bench's own, on a unix socket and without persistence, and what can be wrong with one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from router.cache.embedded import find_server


class PrivateRedis:
    """`with PrivateRedis(folder) as redis:` it answers at `redis.url` while it is in no trouble."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def __enter__(self) -> PrivateRedis:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.go_on()
        self.kill()

    def start(self) -> None:
        """Returns when it answers."""
        command = [find_server(), "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._folder, start_new_session=True
            )
        # redis-py's own retries would report a start, and with it the end of a fault, seconds late.
        self._client = Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        for _ in range(1000):
            try:
                self._client.ping()
            except RedisError:
                time.sleep(0.005)
            else:
                return
        raise SystemExit(f"redis-server did not start: {(self._folder / 'redis.log').read_text()[-500:]}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """As an upgrade does: it ends in order, and another starts at once, empty."""
        self._process.terminate()
        self._process.wait()
        self.start()

    def stop(self) -> None:
        """Let it stand still until `go_on`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)

    def fill(self) -> None:
        """Reads are answered, writes get OOM."""
        self._client.config_set("maxmemory-policy", "noeviction")
        self._client.config_set("maxmemory", 1)

    def empty(self) -> None:
        self._client.config_set("maxmemory", 0)

    def lock(self) -> None:
        """A replica of nobody: reads are answered, writes get READONLY."""
        self._client.replicaof("127.0.0.1", 1)

    def unlock(self) -> None:
        self._client.replicaof("NO", "ONE")

    def ask_password(self) -> None:
        """Of new connections; the old ones are closed."""
        self._client.config_set("requirepass", "not-yours")
        self._client.client_kill_filter(_type="normal", skipme=True)

    def forget_password(self) -> None:
        self._client.config_set("requirepass", "")

    def spoil(self) -> int:
        """Overwrite every value of the cache with noise; gives how many."""
        names = list(self._client.scan_iter("co:*", _type="string"))
        for name in names:
            self._client.set(name, os.urandom(64), keepttl=True)
        return len(names)
