"""The rows of one process, out of a global batch that is the same whatever the number of processes.

An update of R rows in W processes: rank k takes rows k R / W to (k + 1) R / W, in micro batches of one
shape. Where that does not come out even, a few rows without targets fill up: they cost time and count
nothing. Every process passes over the rows of the others, so all stand at the same place after each update,
which is the place of a training in one process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.whitebox.batches import PackedBatches
from stages.whitebox.losses import IGNORED


@dataclass(frozen=True)
class Share:
    """How the rows of an update are divided among processes and micro batches."""

    rows_per_step: int
    num_processes: int
    largest_micro_batch: int

    def __post_init__(self) -> None:
        if self.rows_per_step < self.num_processes:
            raise ValueError(
                f"an update has {self.rows_per_step} rows, fewer than the {self.num_processes} processes; "
                "start fewer, or set global_batch_tokens higher"
            )

    @property
    def rows_per_process(self) -> int:
        """The most that one has; others may have one less."""
        return math.ceil(self.rows_per_step / self.num_processes)

    @property
    def accumulation_steps(self) -> int:
        """Micro batches of each process in one update."""
        return math.ceil(self.rows_per_process / self.largest_micro_batch)

    @property
    def micro_batch_size(self) -> int:
        """Rows of each of them."""
        return math.ceil(self.rows_per_process / self.accumulation_steps)

    def rows_of(self, rank: int) -> range:
        """The rows of one process within an update: at least one, and at most one more than another has."""
        rows, count = self.rows_per_step, self.num_processes
        return range(rank * rows // count, (rank + 1) * rows // count)


class RankBatches:
    """What one process sees of the batches that all share; its place is the same in every process."""

    def __init__(self, source: PackedBatches, share: Share, rank: int) -> None:
        self.source, self.share, self.mine = source, share, share.rows_of(rank)
        self._taken = 0
        """Micro batches of the present update that were handed out."""

    def next_batch(self) -> dict[str, Tensor]:
        """`micro_batch_size` rows; those behind the own ones are the last one again, without targets."""
        if self._taken == 0:
            self.source.skip_rows(self.mine.start)
        size = self.share.micro_batch_size
        num_rows = min(size, len(self.mine) - self._taken * size)
        batch = self._filled(self.source.next_rows(num_rows), num_rows) if num_rows > 0 else self._last
        self._last = {**batch, "targets": torch.full_like(batch["targets"], IGNORED)}
        self._taken += 1
        if self._taken == self.share.accumulation_steps:
            self.source.skip_rows(self.share.rows_per_step - self.mine.stop)
            self._taken = 0
        return batch

    def _filled(self, batch: dict[str, Tensor], num_rows: int) -> dict[str, Tensor]:
        missing = self.share.micro_batch_size - num_rows
        if missing == 0:
            return batch
        filled = {name: torch.cat([t, t[-1:].expand(missing, -1)]) for name, t in batch.items()}
        filled["targets"][num_rows:] = IGNORED
        return filled

    @property
    def last_place(self) -> tuple[dict[str, int], dict[str, int]] | None:
        """Of the own rows in the last batch that had any."""
        return self.source.last_place

    def describe(self, start: dict[str, Any], end: dict[str, Any]) -> str:
        """As the source does."""
        return self.source.describe(start, end)

    def state_dict(self) -> dict[str, Any]:
        """The place in the rows of all; between updates the same in every process."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at an update that begins there."""
        self.source.load_state_dict(state)
        self._taken = 0
