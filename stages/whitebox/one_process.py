"""What a training asks of the processes that share it, and the answers where there is only one.

`distributed.py` answers for several. This file is apart from it so that a run in one process pays nothing:
no torch.distributed, and not one operation more on its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class OneProcess:
    """Alone: every answer is what this process has."""

    rank = 0
    size = 1

    def prepare(self, model: nn.Module) -> None:
        """Share the model out, in place; before there are optimizers."""

    def local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What this process holds of each, as plain tensors on the same memory."""
        return list(tensors)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        return list(values)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each gradient the sum over all processes."""

    def gradient_norm(self, grads: Sequence[Tensor]) -> float:
        """The norm of the whole gradient, the same number everywhere."""
        return float(torch.nn.utils.get_total_norm(grads))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether it is up in any process."""
        return flags

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor that may be in parts, put together; every process has to ask for it."""
        return tensor.detach()

    def fill(self, target: Tensor, value: Tensor | None) -> None:
        """Give `target` (its part of) a whole value that the first process has."""
        assert value is not None
        with torch.no_grad():
            target.copy_(value)

    def share(self, fields: dict[str, Any] | None) -> dict[str, Any] | None:
        """JSON values of the first process, in every one."""
        return fields

    def texts(self, text: str) -> list[str]:
        """The text of every process, by rank."""
        return [text]

    @contextmanager
    def reading(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model may be evaluated: by every process the same, as some hold parts of it."""
        yield
