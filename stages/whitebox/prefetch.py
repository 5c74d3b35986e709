"""The next batch is read and put together while the model computes on this one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stages.whitebox.trainer import Batches

#: A batch, the place of the next one, and where its rows came from.
_Made = tuple[dict[str, Tensor], dict[str, Any], Any]


class Prefetched:
    """The same batches in the same order as `source`, each made one call ahead in a thread of its own.

    Reading memory-mapped shards waits for the disk, where the thread waits instead of the training. What is
    saved is the place of the next batch that nobody has seen: a resumed run misses none and repeats none.
    Nobody else may use `source` meanwhile. Errors of the thread are raised by `next_batch`.

    Args:
        pin_memory: in memory that a GPU copies from without the CPU waiting.
    """

    def __init__(self, source: Batches, pin_memory: bool = False) -> None:
        self._source, self._pin_memory = source, pin_memory
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._place = source.state_dict()
        self._coming: Future[_Made] | None = None
        self.last_place: Any = None
        """The source's, of the batch that was given last."""

    def next_batch(self) -> dict[str, Tensor]:
        """The batch that was made ahead; the one after it is begun."""
        coming = self._coming or self._thread.submit(self._make)
        self._coming = None  # an error is raised once, not for ever
        batch, self._place, self.last_place = coming.result()
        self._coming = self._thread.submit(self._make)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch that `next_batch` returns, as the source would give it."""
        return self._place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved place; what was made ahead is dropped."""
        if self._coming is not None:
            self._coming.exception()  # waits: two threads at one source would mix its places
        self._coming = None
        self._source.load_state_dict(state)
        self._place = self._source.state_dict()

    def describe(self, start: dict[str, Any], end: dict[str, Any]) -> str:
        """What the source says of the rows between two places."""
        if self._coming is not None:
            self._coming.exception()
        return str(getattr(self._source, "describe", "batches from {} to {}".format)(start, end))

    def close(self) -> None:
        """Ends the thread; the object is of no use afterwards."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self) -> _Made:
        batch = self._source.next_batch()
        if self._pin_memory and torch.cuda.is_available():
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch, self._source.state_dict(), getattr(self._source, "last_place", None)
