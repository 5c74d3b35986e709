"""Builds use a store together; clearing it up wants it alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

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
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"a build is using {store.root}: what it has made so far stands in no record yet"
            raise RetryableError(message, hint="run the same command when the build is over") from None
        yield
