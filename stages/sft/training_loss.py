"""What a micro batch costs: the assistant's tokens by weight, with noise and a teacher where wanted.

Shapes: B rows, T tokens, R tokens that are trained on, D width, E width of the teacher, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.sft.noise import EmbeddingNoise
from stages.sft.spec import SftConfig
from stages.whitebox.distillation_loss import distillation_sum
from stages.whitebox.losses import cross_entropy_sum, token_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.text_pieces import wanted_tokens
from stages.whitebox.trainer import StepLoss

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """A larger model of the same vocabulary; temperature and share as in `distillation_loss.py`."""

    model: CausalLM
    temperature: float
    share: float


@dataclass(frozen=True)
class TrainingLoss:
    """Called with the model and a batch of `RowBatches`; each conversation sees only itself."""

    noise: EmbeddingNoise
    teacher: Teacher | None = None

    def __call__(self, model: CausalLM, batch: Batch) -> StepLoss:
        """The loss summed over what is trained on; it is divided by the sum of the weights."""
        wanted_R = wanted_tokens(batch["targets"].flatten())
        with self.noise.added(model.model.embed_tokens, batch):
            hidden_1xRxD = _hidden_of(model, batch, wanted_R)
        loss_sum, num_targets = self._sum(hidden_1xRxD, model.output_weight(), batch, wanted_R)
        weights = batch.get("weights")
        return StepLoss(loss_sum, num_targets, weight=None if weights is None else float(weights.sum()))

    def _sum(
        self, hidden_1xRxD: Tensor, weight_VxD: Tensor, batch: Batch, wanted_R: Tensor
    ) -> tuple[Tensor, int]:
        targets_1xR = batch["targets"].flatten()[None, wanted_R]
        weights_1xR = batch["weights"].flatten()[None, wanted_R] if "weights" in batch else None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_1xRxE = _hidden_of(self.teacher.model, batch, wanted_R)
            return distillation_sum(
                hidden_1xRxD,
                weight_VxD,
                teacher_1xRxE,
                self.teacher.model.output_weight(),
                targets_1xR,
                self.teacher.temperature,
                self.teacher.share,
                weights_1xR,
            )
        if weights_1xR is None:
            return cross_entropy_sum(hidden_1xRxD, weight_VxD, targets_1xR)
        return _weighted_cross_entropy(hidden_1xRxD, weight_VxD, targets_1xR, weights_1xR)


def training_loss(config: SftConfig, teacher: Teacher | None) -> TrainingLoss:
    """The loss that the settings ask for; a teacher whose share is 0 is not asked."""
    noise = EmbeddingNoise(config.neftune_alpha, config.seed)
    return TrainingLoss(noise, teacher if config.teacher_share else None)


def _weighted_cross_entropy(
    hidden_BxTxD: Tensor, weight_VxD: Tensor, targets_BxT: Tensor, weights_BxT: Tensor
) -> tuple[Tensor, int]:
    logp_BxT = token_log_probs(hidden_BxTxD, weight_VxD, targets_BxT)
    return -(logp_BxT * weights_BxT).sum(), int((weights_BxT > 0).sum())


def _hidden_of(model: CausalLM, batch: Batch, wanted_R: Tensor) -> Tensor:
    """Of the tokens that are read, 1xRxD: of a prompt nobody reads more than keys and values."""
    return model.hidden_states(batch["ids"], batch["positions"], batch["document_ids"], wanted_R=wanted_R)
