"""Builds use a store together; clearing it up wants it alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.runtime.errors import RetryableError
from stages.runtime.store import Store

LOCK_NAME = "in-use.lock"


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Hold the store for a build, beside other builds. Waits for a clear-up that is under way."""
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / LOCK_NAME).open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        yield


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Hold the store for a clear-up. Raises RetryableError while a build uses it."""
    taken = RetryableError(
        f"a build is using {store.root}: what it has made so far stands in no record yet",
        hint="run the same command when the build is over",
    )
    with locked(store.root / LOCK_NAME, taken):
        yield


@contextmanager
def locked(path: Path, taken: RetryableError) -> Iterator[None]:
    """Hold the lock file at `path` alone. Raises `taken` at once while somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield
