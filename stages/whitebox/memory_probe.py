"""How many rows fit into memory at once: tried on a GPU, counted on a CPU.

The rows of one update are the recipe's; they are worked off in micro batches, whose size decides the memory
and, but for rounding, not the result. A GPU says when it is full. A CPU swaps or kills instead, so there the
tensors of small steps are counted.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.whitebox.device import is_out_of_memory

Step = Callable[[int], object]
"""Forward and backward pass over that many rows."""


class PeakBytes(TorchDispatchMode):
    """Counts the memory of all tensors made within it, and its peak; the same on every machine.

    Tensors that were there before count for nothing, and neither does what compiled code or a single
    operation makes and drops inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_now, self.peak_bytes = 0, 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known and storage.data_ptr() not in before:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        num_bytes = storage.nbytes()
        self.bytes_now += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.bytes_now)
        weakref.finalize(storage, self._forget, num_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.bytes_now -= num_bytes


class RowsThatFit(NamedTuple):
    """How many rows at once, and the peak of their step; of a single row's step where not even one fits."""

    rows: int
    peak_bytes: float


def count_rows_that_fit(step: Step, limit_bytes: float, max_rows: int) -> RowsThatFit:
    """The most rows, at most `max_rows`, whose step stays within the limit, without ever exceeding it.

    Twice the rows take at most twice the memory, so rows are doubled and counted while that fits. What is
    left to the next doubling is read from the line through the last two counts: not from the first two,
    because with few rows the peak is another (at the loss, say, and not in the layers).
    """
    rows, peak = 1, _peak_bytes(step, 1)
    if peak > limit_bytes:
        return RowsThatFit(0, peak)
    bytes_per_row = float(peak)
    while 2 * peak <= limit_bytes and 2 * rows <= max_rows:
        before, peak = peak, _peak_bytes(step, 2 * rows)
        bytes_per_row = (peak - before) / rows
        rows *= 2
    more = min(int((limit_bytes - peak) / max(bytes_per_row, 1.0)), rows - 1, max_rows - rows)
    return RowsThatFit(rows + more, peak + more * bytes_per_row)


def largest_that_runs(step: Step, sizes: list[int]) -> int:
    """The largest of `sizes` whose step does not run out of memory, found by trying the largest first.

    Raises:
        torch.OutOfMemoryError: not even the smallest fits.
    """
    for num_rows in sorted(sizes, reverse=True):
        try:
            step(num_rows)
            return num_rows
        except RuntimeError as error:
            if not is_out_of_memory(error) or num_rows == min(sizes):
                raise
        # The error holds the frames of the failed step, and these its tensors, until here.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise ValueError("there is no size to try")


def _peak_bytes(step: Step, num_rows: int) -> int:
    with PeakBytes() as counter:
        step(num_rows)
    return counter.peak_bytes


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
