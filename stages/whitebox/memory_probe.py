"""How many rows fit into memory at once: tried on a GPU, counted on a CPU.

The rows of one update are the recipe's; they are worked off in micro batches, whose size decides the memory
and, but for rounding, not the result. A GPU says when it is full. A CPU swaps or kills instead, so there the
tensors of a small step are counted; what a step takes grows linearly with its rows.
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


class LinearMemory(NamedTuple):
    """Peak bytes of a step over r rows: `fixed_bytes` + r x `bytes_per_row`."""

    fixed_bytes: float
    bytes_per_row: float

    def rows_within(self, limit_bytes: float) -> int:
        """The most rows whose step stays below the limit; 0 where not even one does."""
        return max(0, int((limit_bytes - self.fixed_bytes) // max(self.bytes_per_row, 1.0)))


def count_memory(step: Step, rows: tuple[int, int] = (1, 2)) -> LinearMemory:
    """The line through the peaks of two small steps."""
    few, many = rows
    peaks = []
    for num_rows in (few, many):
        with PeakBytes() as counter:
            step(num_rows)
        peaks.append(counter.peak_bytes)
    per_row = (peaks[1] - peaks[0]) / (many - few)
    return LinearMemory(peaks[0] - few * per_row, per_row)


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


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
