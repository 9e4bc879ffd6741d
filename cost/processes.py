"""Does the process still run that wrote this? A pid is used again, so its start time counts too."""

from __future__ import annotations

import os

import psutil


def started_ms(pid: int) -> int | None:
    """When the process started (unix milliseconds); None if there is no such process, 0 if it may not be looked at."""
    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0


def alive(pid: int, started: int) -> bool:
    """Whether the process `pid` that started at `started` (unix milliseconds) still runs.

    The start time follows steps of the system clock, hence the tolerance; our own is read by the same clock.
    """
    now = started_ms(pid)
    return now is not None and (now == started if pid == os.getpid() else abs(now - started) < 2000)
