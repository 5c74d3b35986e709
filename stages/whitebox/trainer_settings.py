"""Everything that decides a training beside the model, the batches and the loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from stages.whitebox.optim import DecayShape, build_adamw, build_muon, warmup_decay
from stages.whitebox.training_state import Keep
from stages.whitebox.weight_average import keep_average

AT_LEAST_ONE = (
    "total_steps",
    "accumulation_steps",
    "rows_per_step",
    "max_skipped_in_a_row",
    "max_skipped_steps",
    "checkpoint_every_steps",
    "evaluate_every_steps",
)


@dataclass(frozen=True)
class TrainerSettings:
    """Everything that decides the result beside the model, the batches and the loss; a step is one update."""

    total_steps: int
    learning_rate: float
    """Peak of AdamW, which updates everything, or everything but the matrices of the layers."""
    matrix_learning_rate: float | None = None
    """Peak of Muon for the matrices of the layers; None leaves these to AdamW."""
    lora_plus_ratio: float = 1.0
    """How many times as fast the matrices B of adapters learn."""
    embedding_learning_rate: float | None = None
    """AdamW's peak for the embedding and the output matrix; None is `learning_rate`."""
    warmup_steps: int = 0
    decay_fraction: float = 0.5
    min_learning_rate_fraction: float = 0.0
    decay_shape: DecayShape = "linear"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    ema_decay: float | None = None
    """Of an average of the weights, which is evaluated and is the result; None keeps none."""
    accumulation_steps: int = 1
    """Micro batches of one update in each process."""
    rows_per_step: int | None = None
    """Rows of one update. Where it is given, a run may go on in other micro batches and processes."""
    spike_factor: float = 0.0
    """Skip a step whose gradient is this many times as long as usual; 0 skips what is not finite only."""
    max_skipped_in_a_row: int = 3
    max_skipped_steps: int = 20
    """So many skipped steps, one after the other or in all, end the run."""
    seed: int = 0
    compute_dtype: torch.dtype = torch.float32
    evaluate_every_steps: int = 100
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = None
    """Either, both or none of the two; the last step and a stop are always saved."""
    checkpoint_keep: Keep = Keep()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0")

    def learning_rate_share(self, step: int) -> float:
        """What share of the peak a step takes; the first step is 1."""
        return warmup_decay(
            step,
            self.total_steps,
            self.warmup_steps,
            self.decay_fraction,
            self.min_learning_rate_fraction,
            self.decay_shape,
        )

    def build_optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW alone, or Muon and AdamW."""
        optimizers = self._optimizers_of(model)
        if self.ema_decay is not None:
            for optimizer in optimizers:
                keep_average(optimizer, self.ema_decay)
        return optimizers

    def _optimizers_of(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        if self.matrix_learning_rate is None:
            rates = (self.lora_plus_ratio, self.embedding_learning_rate)
            return [build_adamw(model, self.learning_rate, self.betas, self.weight_decay, *rates)]
        return build_muon(
            model,
            self.learning_rate,
            self.matrix_learning_rate,
            self.betas,
            self.weight_decay,
            self.compute_dtype,
        )

    def deciding(self) -> dict[str, Any]:
        """Those that decide the weights, as JSON; when to look and when to save may change between starts."""
        fields = {**asdict(self), "betas": list(self.betas), "compute_dtype": str(self.compute_dtype)}
        # Where the rows of an update are known, it does not matter how they are cut.
        left_out = "rows_per_step" if self.rows_per_step is None else "accumulation_steps"
        return {
            name: value
            for name, value in fields.items()
            if name != left_out and not name.startswith(("evaluate_", "checkpoint_"))
        }
