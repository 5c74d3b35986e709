"""Builds use a store together; clearing it up wants it alone."""

from __future__ import annotations

import asyncio
import fcntl
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.claims import CLEARING_UP, patience_seconds
from flows.stores import shared, store_name
from flows.threads import ShouldStop, held_in_thread
from stages.runtime.errors import RetryableError
from stages.runtime.store import Store

if TYPE_CHECKING:
    from flows.shared_store import SharedStore

LOCK_NAME = "in-use.lock"
POLL_SECONDS = 0.2


@asynccontextmanager
async def in_use(store: Store) -> AsyncIterator[None]:
    """Hold the store for a build, beside other builds. Waits for a clear-up that is under way.

    Cancels what it is held for, and raises RetryableError then, where another host has taken this build for
    dead: what the build found in the store may be cleared away.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    lost, over = threading.Event(), threading.Event()
    assert task is not None

    def lose() -> None:
        lost.set()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: over.is_set() or task.cancel())

    async with held_in_thread(lambda should_stop: _beside_others(store, should_stop, lose)):
        try:
            yield
        except asyncio.CancelledError:
            if lost.is_set() and task.uncancel() == 0:
                raise _taken_for_dead(store) from None
            raise
        finally:
            over.set()


def _taken_for_dead(store: Store) -> RetryableError:
    return RetryableError(
        f"nothing was heard of this build for {patience_seconds():g} s, and another host has taken it for "
        f"dead: it may have cleared up {store_name(store)}",
        hint="run the same command again: what was made here is kept, and sent again",
    )


@contextmanager
def _beside_others(store: Store, should_stop: ShouldStop, on_lost: Callable[[], None]) -> Iterator[None]:
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / LOCK_NAME).open("a") as file:
        while not _try_lock_shared(file.fileno()):
            if should_stop():
                raise InterruptedError(f"stopped while waiting for {store.root / LOCK_NAME}")
            time.sleep(POLL_SECONDS)
        with _in_use_among_hosts(store, should_stop, on_lost):
            yield


def _try_lock_shared(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    return False


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
def _in_use_among_hosts(store: Store, should_stop: ShouldStop, on_lost: Callable[[], None]) -> Iterator[None]:
    """The same among hosts: each build has a claim of its own, and waits for the one of a clear-up."""
    place = shared(store)
    if place is None:
        yield
        return
    with place.claims.hold(f"builds/{secrets.token_hex(8)}", _quiet, should_stop, on_lost):
        # Whoever clears up takes its claim first and looks for builds then, so one of the two sees the other.
        with place.claims.hold(CLEARING_UP, _quiet, should_stop):
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
