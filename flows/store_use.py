"""Builds use a store together; clearing it up wants it alone."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.claims import CLEARING_UP
from flows.stores import shared
from stages.runtime.errors import RetryableError
from stages.runtime.store import Store

if TYPE_CHECKING:
    from flows.shared_store import SharedStore

LOCK_NAME = "in-use.lock"


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Hold the store for a build, beside other builds. Waits for a clear-up that is under way."""
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / LOCK_NAME).open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        with _in_use_among_hosts(store):
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
def _in_use_among_hosts(store: Store) -> Iterator[None]:
    """The same among hosts: each build has a claim of its own, and waits for the one of a clear-up."""
    place = shared(store)
    if place is None:
        yield
        return
    with place.claims.hold(f"builds/{secrets.token_hex(8)}", _quiet):
        # Whoever clears up takes its claim first and looks for builds then, so one of the two sees the other.
        with place.claims.hold(CLEARING_UP, _quiet):
            pass
        yield


@contextmanager
def alone_among_hosts(store: SharedStore) -> Iterator[None]:
    """Hold a shared store for a clear-up. Raises RetryableError while a build of any host uses it."""
    with alone(store), store.claims.hold(CLEARING_UP, _quiet):
        if holders := store.claims.live():
            raise RetryableError(
                f"{store.url} is in use by {', '.join(holders)}: what they have made stands in no record yet",
                hint="run the same command when their builds are over",
            )
        yield


def _quiet(text: str) -> None:
    """Nobody needs to be told of a wait of seconds."""


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
