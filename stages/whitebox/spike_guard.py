"""Steps that would hurt: a loss or a gradient that is not finite, or a gradient far longer than usual.

Such a step is left out: no update, weights and moments stay. One bad row of data costs one step and not the
run. A run whose steps go bad one after the other has another fault, and stops. PaLM (Chowdhery et al. 2022,
arXiv:2204.02311, section 5.1) skipped the batches around its spikes, and they did not come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stages.whitebox.training_terms import Batches

LEVEL_STEPS = 50
"""The running level is a mean over about this many steps; before so many no gradient counts as too long."""
NAMED_BATCHES = 3

Place = tuple[dict[str, Any], dict[str, Any]]
"""The states of the batches before and after a micro batch."""


@dataclass
class SpikeGuard:
    """Judges each step. What it knows is part of the checkpoint, so a resumed run judges the same."""

    spike_factor: float
    """A gradient this many times as long as usual is a spike; 0 lets every finite one pass."""
    max_in_a_row: int
    max_skipped: int
    log_level: float = 0.0
    """Running mean of the logarithm of the gradient's norm: no single one moves it far."""
    num_accepted: int = 0
    num_in_a_row: int = 0
    num_skipped: int = 0

    def why_not_loss(self, loss: float) -> str | None:
        """What is wrong with the loss, None when nothing is."""
        return None if math.isfinite(loss) else f"the loss is {loss}"

    def why_not_gradient(self, grad_norm: float) -> str | None:
        """What is wrong with the gradient, None when nothing is."""
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self.spike_factor > 0 and self.num_accepted >= LEVEL_STEPS:
            level = math.exp(self.log_level)
            if grad_norm > self.spike_factor * level:
                return (
                    f"the gradient norm is {grad_norm:.3g}, {grad_norm / level:.0f} times its running level"
                )
        return None

    def accept(self, grad_norm: float) -> None:
        """The step was taken."""
        self.num_in_a_row = 0
        self.num_accepted += 1
        share = 1 / min(self.num_accepted, LEVEL_STEPS)
        self.log_level += share * (math.log(max(grad_norm, 1e-30)) - self.log_level)

    def skip(self) -> None:
        """The step was left out."""
        self.num_in_a_row += 1
        self.num_skipped += 1

    def why_stop(self) -> str | None:
        """Why the run should end, None while it should not."""
        if self.num_in_a_row >= self.max_in_a_row:
            return f"{self.num_in_a_row} steps in a row had to be skipped"
        if self.num_skipped >= self.max_skipped:
            return f"{self.num_skipped} steps had to be skipped in all"
        return None

    def state_dict(self) -> dict[str, float]:
        """What was seen so far, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name.startswith(("log_", "num_"))}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""
        for name in self.state_dict():
            setattr(self, name, state[name])


def place_of_last(batches: Batches, before: dict[str, Any]) -> Place:
    """Where the last micro batch came from: its own rows where the batches know them."""
    return getattr(batches, "last_place", None) or (before, batches.state_dict())


def whereabouts(batches: Batches, micro_losses: Sequence[Tensor], places: Sequence[Place]) -> str:
    """The micro batches whose loss is no number; where all are finite, everything that the step read.

    Batches with a method `describe(start, end)` say in their own words what lies between two states.
    """
    bad = [number for number, loss in enumerate(micro_losses) if not bool(torch.isfinite(loss))]
    spans = [places[number] for number in bad[:NAMED_BATCHES]] or [(places[0][0], places[-1][1])]
    describe = getattr(batches, "describe", "batches from {} to {}".format)
    return ", ".join(str(describe(start, end)) for start, end in spans)
