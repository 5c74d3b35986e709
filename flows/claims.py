"""One maker per artifact among hosts: claims, as objects that only conditional writes touch.

A claim is `claims/<name>.json`. Whoever creates it (if it is not there) has it, and writes a higher counter
into it every few seconds (if it is as last written). Whoever waits watches the counter; when that has not
moved for `patience` seconds *of the waiter's own monotonic clock*, the holder is taken for dead and the claim
is written over (if it is as last seen). No clock of one host is compared with that of another.

A holder that was only slow finds its next renewal refused: it has lost, and stops what it does. Should it
come to publish all the same, that is refused by the manifest's own conditional write (flows/shared_store.py):
claims save work, the manifest decides.

On one host the flock beside it comes first. It also tells that a claim of this host's is a dead one's: who
holds the flock and finds the claim that was last taken under it need not wait.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flows.object_storage import Content, ObjectStorage, Stored
from flows.storage_errors import Changed, Unsupported
from stages.runtime.errors import GlassworksError, UserError
from stages.runtime.lock import exclusive
from stages.runtime.store import write_durably

PATIENCE_VARIABLE = "GLASSWORKS_CLAIM_SECONDS"
PATIENCE_SECONDS = 30.0
#: The claim of who clears up the store (flows/store_use.py).
CLEARING_UP = "gc"
RENEWALS_PER_PATIENCE = 6
POLLS_PER_PATIENCE = 30

Say = Callable[[str], None]


@dataclass
class Claim:
    """A claim that we hold, until `release` or until somebody takes it over."""

    name: str
    token: str
    etag: str
    counter: int = 0
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when a renewal was refused: another host has it now."""
    _released: threading.Event = field(default_factory=threading.Event)
    _flock: ExitStack = field(default_factory=ExitStack)
    _renewing: threading.Thread | None = None


class Claims:
    """The claims of one shared store. Safe to use from several threads."""

    def __init__(
        self,
        storage: ObjectStorage,
        folder: Path,
        patience: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._patience = patience_seconds() if patience is None else patience
        self._pause = self._patience / POLLS_PER_PATIENCE
        self._clock = clock

    def acquire(
        self,
        name: str,
        on_wait: Say,
        should_stop: Callable[[], bool],
        on_lost: Callable[[], None] = lambda: None,
    ) -> Claim:
        """Take the claim and keep it alive from a thread. While another has it, say so once and wait.

        `name` is like `sft/0f3c...`. `on_lost` is called from that thread when the claim was taken over.
        Raises InterruptedError when `should_stop` turns true, RetryableError where the storage cannot be
        reached.
        """
        lock = self._folder / f"{name}.lock"
        with ExitStack() as flock:
            flock.enter_context(exclusive(lock, on_wait, should_stop))
            claim = self._take(name, on_wait, should_stop)
            write_durably(self._note(name), claim.token)
            claim._flock = flock.pop_all()
        claim._renewing = threading.Thread(target=self._keep, args=(claim, on_lost), daemon=True)
        claim._renewing.start()
        return claim

    def release(self, claim: Claim) -> None:
        """Give it back. What cannot be removed now, because the network is away, runs out by itself."""
        claim._released.set()
        if claim._renewing is not None:
            claim._renewing.join()
        with claim._flock, suppress(Changed, GlassworksError):
            if not claim.lost.is_set():
                self._remove(claim.name, claim.token, claim.counter + 1, claim.etag)
            self._note(claim.name).unlink(missing_ok=True)

    def _remove(self, name: str, token: str, counter: int, etag: str) -> None:
        """Remove a claim if it is as last seen. Raises Changed where it is not.

        Some storage (MinIO, by its issue 21677) removes an object whatever the condition, and some refuses
        conditions here. So the condition is that of a write: whoever has just written a claim has it for as
        long as others are patient.
        """
        if (ours := self._write(name, token, counter, etag)) is None:
            raise Changed(_key(name))
        try:
            self._storage.delete(_key(name), ours)
        except Unsupported:
            self._storage.delete(_key(name))

    @contextmanager
    def hold(
        self,
        name: str,
        on_wait: Say,
        should_stop: Callable[[], bool] = lambda: False,
        on_lost: Callable[[], None] = lambda: None,
    ) -> Iterator[Claim]:
        """`acquire`, and `release` at the end."""
        claim = self.acquire(name, on_wait, should_stop, on_lost)
        try:
            yield claim
        finally:
            self.release(claim)

    def live(self) -> list[str]:
        """Who holds claims, but for the one on clearing up: watches until the dead are told from the living.

        Claims of the dead are removed, if nobody lives.
        """
        watched = self._others()
        deadline = self._clock() + self._patience
        while watched and self._clock() < deadline:
            time.sleep(self._pause)
            now = self._others()
            if moved := [key for key, stored in now.items() if watched.get(key) != stored]:
                return sorted({_holder(self._storage.get(key)) for key in moved})
            watched = {key: stored for key, stored in watched.items() if key in now}
        try:
            for key, stored in watched.items():
                self._remove(_name(key), secrets.token_hex(8), 0, stored.etag)
        except Changed:
            return sorted({_holder(self._storage.get(key)) for key in self._others()})
        return []

    def _others(self) -> dict[str, Stored]:
        found = self._storage.listing("claims/")
        return {key: stored for key, stored in found.items() if key != _key(CLEARING_UP)}

    def _take(self, name: str, on_wait: Say, should_stop: Callable[[], bool]) -> Claim:
        token = secrets.token_hex(8)
        seen, since, told = "", self._clock(), False
        while not should_stop():
            found = self._storage.get(_key(name))
            if found is None:
                if (etag := self._write(name, token, 0, None)) is not None:
                    return Claim(name, token, etag)
                continue
            if found.etag != seen:
                seen, since = found.etag, self._clock()
            dead = self._was_ours(name, found) or self._clock() - since > self._patience
            if dead and (etag := self._write(name, token, 0, found.etag)) is not None:
                return Claim(name, token, etag)
            if not told and not dead:
                on_wait(f"waiting for another host: {_holder(found)} is making {name}")
                told = True
            time.sleep(self._pause)
        raise InterruptedError(f"stopped while waiting for the claim on {name}")

    def _write(self, name: str, token: str, counter: int, before: str | None) -> str | None:
        """Write the claim if it is as it was `before`; its tag, or None where it is another's by now."""
        record = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "counter": counter}
        data = json.dumps(record | {"since": datetime.now(UTC).isoformat(timespec="seconds")}).encode()
        try:
            if before is None:
                return self._storage.create(_key(name), data)
            return self._storage.replace(_key(name), data, before)
        except Changed:
            # An answer that got lost on its way looks the same: the second attempt finds what the first
            # wrote.
            found = self._storage.get(_key(name))
            return found.etag if found is not None and _record(found).get("token") == token else None

    def _keep(self, claim: Claim, on_lost: Callable[[], None]) -> None:
        while not claim._released.wait(self._patience / RENEWALS_PER_PATIENCE):
            claim.counter += 1
            with suppress(GlassworksError):  # the storage is away: whether we have lost shows when it is back
                etag = self._write(claim.name, claim.token, claim.counter, claim.etag)
                if etag is None:
                    claim.lost.set()
                    on_lost()
                    return
                claim.etag = etag

    def _note(self, name: str) -> Path:
        """Where the token of the claim that was last taken under this host's flock is written down."""
        return self._folder / f"{name}.token"

    def _was_ours(self, name: str, found: Content) -> bool:
        try:
            return self._note(name).read_text(encoding="utf-8") == _record(found).get("token")
        except OSError:
            return False


def patience_seconds() -> float:
    """After how long a silence a claim is taken over. UserError where the variable is no such number."""
    text = os.environ.get(PATIENCE_VARIABLE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UserError(
            f"{PATIENCE_VARIABLE} is {text!r}, expected seconds", hint=f"unset {PATIENCE_VARIABLE}"
        )
    return seconds


def _key(name: str) -> str:
    return f"claims/{name}.json"


def _name(key: str) -> str:
    return key.removeprefix("claims/").removesuffix(".json")


def _record(found: Content) -> dict[str, object]:
    try:
        record = json.loads(found.data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _holder(found: Content | None) -> str:
    """`process 4711 on HOST since 2026-05-01T10:00:00+00:00`, by that host's clock."""
    record = _record(found) if found is not None else {}
    if not {"pid", "host", "since"} <= record.keys():
        return "another process"
    return f"process {record['pid']} on {record['host']}"
