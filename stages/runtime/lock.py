"""One builder per artifact: an flock that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

POLL_SECONDS = 0.2


@contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None], should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock at `path`. While another process holds it, say so once through `on_wait` and wait.

    Raises InterruptedError when `should_stop` turns true during the wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                on_wait(f"waiting for another build: {holder(path)} is making the same artifact")
                told = True
            if should_stop():
                raise InterruptedError(f"stopped while waiting for {path}")
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}))
        file.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    with path.open("a+", encoding="utf-8") as file:
        return not _try_lock(file.fileno())


def holder(path: Path) -> str:
    """`process 4711 on HOST since 2026-05-01T10:00:00+00:00`, as far as the lock file says."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
