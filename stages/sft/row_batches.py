"""Packed rows as an endless stream of batches whose place can be saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.whitebox.blocked_attention import EVEN_TOKENS
from stages.whitebox.packing import PackedRows


class RowBatches:
    """Rows in a new order each epoch, `batch_size` at a time; the last of an epoch are filled from the next.

    The order follows from `seed` and the number of the epoch alone.
    """

    def __init__(self, rows: PackedRows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._arrays = {
            "ids": rows.ids_RxT,
            "targets": rows.targets_RxT,
            "document_ids": rows.document_ids_RxT,
            "positions": rows.positions_RxT,
        }
        self._weights_RxT = rows.target_weights_RxT
        self._drawn = 0

    def next_batch(self) -> dict[str, Tensor]:
        """ "ids", "targets", "document_ids", "positions", each BxT int64; "places" of the rows in the stream.

        Where targets do not count the same there are "weights" too, BxT float32.
        """
        first = self._drawn
        picked = self.next_rows()
        return {**self.batch_of(picked), "places": torch.arange(first, self._drawn)}

    def next_rows(self) -> list[int]:
        """Numbers of the rows of the next batch."""
        picked = []
        for place in range(self._drawn, self._drawn + self.batch_size):
            epoch, within = divmod(place, self.rows.num_rows)
            picked.append(int(self._order(epoch)[within]))
        self._drawn += self.batch_size
        return picked

    def batch_of(self, picked: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these rows, without most columns that are padding in all of them."""
        width = int((self.rows.document_ids_RxT[picked] > 0).sum(axis=1).max())
        width += -width % EVEN_TOKENS  # slicing ends at the last column
        batch = {
            name: torch.from_numpy(array[picked, :width].astype(np.int64))
            for name, array in self._arrays.items()
        }
        if self._weights_RxT is not None:
            batch["weights"] = torch.from_numpy(self._weights_RxT[picked, :width])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How many rows were drawn, and of what."""
        return {"seed": self.seed, "num_rows": self.rows.num_rows, "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place. Raises ValueError when it is one of other rows or another seed."""
        mine = self.state_dict()
        for name in ("seed", "num_rows"):
            if state[name] != mine[name]:
                raise ValueError(f"the saved batches have {name} {state[name]}, these have {mine[name]}")
        self._drawn = int(state["drawn"])

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.rows.num_rows)
        return self._permutation
