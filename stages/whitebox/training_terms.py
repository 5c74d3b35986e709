"""What goes into a training and what comes out: losses, batches, a summary, two ways to end early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class StepLoss:
    """The loss of a micro batch, summed over `num_targets` (with gradient); `metrics` are means.

    Where targets do not count the same, `weight` is the sum of their weights, by which the sum is divided.
    """

    loss_sum: Tensor
    num_targets: int
    metrics: dict[str, float] = field(default_factory=dict)
    weight: float | None = None


class Batches(Protocol):
    """An endless source of micro batches whose place can be saved; its state must be JSON values."""

    def next_batch(self) -> dict[str, Tensor]:
        """Tensors by name, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved place."""
        ...


@dataclass
class TrainingSummary:
    """What a finished run did; the sums go on across kills and resumes."""

    steps: int = 0
    num_targets: int = 0
    seconds: float = 0.0
    """In training steps alone, without evaluation and checkpoints."""
    last: dict[str, float] = field(default_factory=dict)
    """The latest value of everything that was reported."""
    history: dict[str, list[list[float]]] = field(default_factory=dict)
    """[step, value] of everything that was reported, at most about 1,000 points each."""

    @property
    def tokens_per_second(self) -> float:
        """Targets per second of training."""
        return self.num_targets / self.seconds if self.seconds else 0.0


class TrainingStopped(Exception):
    """The run was asked to stop; its checkpoint is saved."""


class TrainingDiverged(ValueError):
    """Too many steps had a loss or a gradient that is no number, or a gradient far too long."""


LossFn = Callable[[Any, dict[str, Tensor]], StepLoss]
