"""Claims among hosts: one holder, and a dead one's claim goes to who waits, by the waiter's own clock."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.claims import Claim, Claims, patience_seconds
from flows.object_storage import ObjectStorage
from stages.runtime.errors import UserError

NAME = "sft/0123"


def host(folder: Path, url: str, patience: float = 3.0, **options: Any) -> Claims:
    return Claims(ObjectStorage(url), folder, patience, **options)


def take(claims: Claims, **options: Any) -> Claim:
    return claims.acquire(NAME, lambda text: None, lambda: False, **options)


def go_silent(claim: Claim) -> None:
    """What a kill -9 of the host does to a claim."""
    claim._released.set()
    assert claim._renewing is not None
    claim._renewing.join()
    claim._flock.close()


def test_who_waits_is_told_once_and_has_it_next(tmp_path: Path, s3: Any) -> None:
    first, second = host(tmp_path / "a", s3.url, 1.0), host(tmp_path / "b", s3.url, 1.0)
    held = take(first)
    told: list[str] = []
    waiting = threading.Thread(
        target=lambda: second.release(second.acquire(NAME, told.append, lambda: False)), daemon=True
    )
    waiting.start()
    waiting.join(2.5)  # longer than its patience: the holder renews
    assert waiting.is_alive() and not held.lost.is_set()
    first.release(held)
    waiting.join(30)
    assert not waiting.is_alive()
    assert len(told) == 1 and "waiting for another host: process" in told[0]
    assert ObjectStorage(s3.url).listing("claims/") == {}


def test_a_silent_claim_is_taken_over_by_the_waiters_clock_alone(tmp_path: Path, s3: Any) -> None:
    go_silent(take(host(tmp_path / "a", s3.url)))
    hours = iter(range(0, 100_000, 1200))  # each look at it, 20 minutes have gone by
    begun = time.monotonic()
    second = host(tmp_path / "b", s3.url, patience=3600.0, clock=lambda: float(next(hours)))
    second._pause = 0.01
    second.release(take(second))
    assert time.monotonic() - begun < 60


def test_who_lost_it_is_told_and_leaves_the_other_alone(tmp_path: Path, s3: Any) -> None:
    storage, lost = ObjectStorage(s3.url), threading.Event()
    claims = host(tmp_path / "a", s3.url, 0.6)
    claim = take(claims, on_lost=lost.set)
    storage.put(f"claims/{NAME}.json", b'{"token": "of another"}')
    assert lost.wait(30) and claim.lost.is_set()
    claims.release(claim)
    found = storage.get(f"claims/{NAME}.json")
    assert found is not None and found.data == b'{"token": "of another"}'


def test_an_answer_that_was_lost_is_no_lost_claim(tmp_path: Path, s3: Any) -> None:
    claims = host(tmp_path / "a", s3.url, 600.0)
    claim = take(claims)
    assert claims._write(NAME, claim.token, 1, claim.etag) is not None  # as if nobody had heard the answer
    assert claims._write(NAME, claim.token, 1, claim.etag) is not None
    claims.release(claim)


def test_the_same_host_does_not_wait_for_its_own_dead(tmp_path: Path, s3: Any) -> None:
    go_silent(take(host(tmp_path / "a", s3.url, 600.0)))
    again = host(tmp_path / "a", s3.url, 600.0)
    told: list[str] = []
    again.release(again.acquire(NAME, told.append, lambda: False))
    assert told == []


def test_waiting_can_be_stopped(tmp_path: Path, s3: Any) -> None:
    held = take(host(tmp_path / "a", s3.url))
    stop = iter([False, False, True, True])
    with pytest.raises(InterruptedError):
        host(tmp_path / "b", s3.url).acquire(NAME, lambda text: None, lambda: next(stop))
    go_silent(held)


def test_a_patience_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSWORKS_CLAIM_SECONDS", "soon")
    with pytest.raises(UserError, match="expected seconds"):
        patience_seconds()
