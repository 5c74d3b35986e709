"""The loss of a micro batch of answers, for grpo and ppo. R rows (answers), T tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stages.dpo.experience import ExperienceBatches
from stages.dpo.spec import DpoConfig
from stages.dpo.value_model import ValueModel
from stages.whitebox.losses import IGNORED, token_log_probs
from stages.whitebox.policy_losses import clipped_policy_loss, clipped_value_loss, kl_to_reference, summed
from stages.whitebox.trainer import LossFn, StepLoss


def policy_loss(config: DpoConfig, batches: ExperienceBatches) -> LossFn:
    """Clipped policy loss; grpo adds the price of the KL here, ppo has it in the reward and adds values."""

    def loss(model: Any, batch: dict[str, Tensor]) -> StepLoss:
        policy = model.policy if isinstance(model, ValueModel) else model
        mask_RxT = (batch["targets"] != IGNORED).float()
        if not bool(mask_RxT.any()):  # dynamic sampling found too few groups that differ
            return StepLoss(mask_RxT.sum(), 0)
        hidden_RxTxD = policy.hidden_states(batch["ids"])
        logp_RxT = token_log_probs(
            hidden_RxTxD / config.rollout_temperature, policy.output_weight(), batch["targets"]
        )
        old_RxT = batch.get("old", logp_RxT.detach())  # answers of this very policy: the ratio is 1
        clipped = clipped_policy_loss(
            logp_RxT, old_RxT, batch["advantages"], config.clip_low, config.clip_high
        )
        metrics = {"clipped_share": _mean(clipped.is_clipped_RxT, mask_RxT)}
        loss_RxT = clipped.loss_RxT
        if "reference" in batch:
            kl_RxT = kl_to_reference(logp_RxT, batch["reference"], old_RxT)
            metrics["kl"] = _mean(kl_RxT.detach(), mask_RxT)
            if not isinstance(model, ValueModel):
                loss_RxT = loss_RxT + config.kl_coefficient * kl_RxT
        if isinstance(model, ValueModel):
            values_RxT = model.values_of(hidden_RxTxD)
            errors_RxT = clipped_value_loss(values_RxT, batch["values"], batch["returns"], config.value_clip)
            metrics["value_loss"] = _mean(errors_RxT.detach(), mask_RxT)
            loss_RxT = loss_RxT + config.value_coefficient * errors_RxT
        total, count = summed(loss_RxT, mask_RxT, config.loss_mean, config.max_answer_tokens)
        return StepLoss(total, count, metrics | batches.stats)

    return loss


def _mean(values_RxT: Tensor, mask_RxT: Tensor) -> float:
    return float((values_RxT * mask_RxT).sum() / mask_RxT.sum().clamp(min=1))
