"""Batches made ahead are the source's, in its order, and no place is lost or doubled by a resume."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.prefetch import Prefetched


@pytest.fixture
def shards(counting_shards: Path) -> TokenShards:
    return TokenShards(counting_shards, "train")


def batches(shards: TokenShards) -> PackedBatches:
    return PackedBatches(shards, 2, 16, seed=3)


def test_the_same_batches_over_several_epochs(shards: TokenShards) -> None:
    plain, ahead = batches(shards), Prefetched(batches(shards))
    for _ in range(3 * plain.rows_per_epoch):
        expected, found = plain.next_batch(), ahead.next_batch()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert ahead.state_dict() == plain.state_dict()


@pytest.mark.parametrize("seen", [0, 1, 5])
def test_a_resume_goes_on_with_the_first_batch_that_nobody_saw(shards: TokenShards, seen: int) -> None:
    plain, first, second = batches(shards), Prefetched(batches(shards)), Prefetched(batches(shards))
    for _ in range(seen):
        plain.next_batch()
        first.next_batch()
    second.next_batch()  # it has another batch in the making, which must not come out
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        assert torch.equal(second.next_batch()["ids"], plain.next_batch()["ids"])


def test_the_next_batch_is_made_without_being_asked_for_in_another_thread() -> None:
    source = Slow()
    ahead = Prefetched(source)
    ahead.next_batch()
    assert source.made_second.wait(timeout=30)
    assert len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_an_error_of_the_thread_is_raised_where_the_batch_was_wanted() -> None:
    source = Slow(fail_at=2)
    ahead = Prefetched(source)
    assert ahead.next_batch()["number"].item() == 1
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.next_batch()
    ahead.load_state_dict({"made": 7})
    assert ahead.next_batch()["number"].item() == 8
    ahead.close()


class Slow:
    """Counts; says when its second batch was made, and by whom."""

    def __init__(self, fail_at: int = 0) -> None:
        self.made, self.fail_at, self.made_second = 0, fail_at, threading.Event()
        self.threads: set[int] = set()

    def next_batch(self) -> dict[str, torch.Tensor]:
        self.threads.add(threading.get_ident())
        self.made += 1
        if self.made == self.fail_at:
            raise OSError("the disk is gone")
        if self.made == 2:
            self.made_second.set()
        return {"number": torch.tensor(self.made)}

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = state["made"]
