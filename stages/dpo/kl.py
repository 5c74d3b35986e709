"""How far a policy has gone from the model that it began as, on answers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stages.dpo.experience import ExperienceBatches, answer_row
from stages.dpo.sampled_answers import Answer
from stages.whitebox.checkpoint import load_model
from stages.whitebox.losses import IGNORED
from stages.whitebox.policy_losses import kl_to_reference


@torch.no_grad()
def kl_per_token(batches: ExperienceBatches, answers: Sequence[Answer], reference_folder: Path) -> float:
    """Mean of the k3 estimate over the tokens that the policy chose, in nats.

    The reference is opened for this and dropped again, unless training keeps one: between evaluations only
    one model sits in memory.
    """
    policy = batches.answerer.model
    device = policy.output_weight().device
    reference = batches.reference or load_model(reference_folder, device, dtype=torch.float32)
    total, num_tokens = 0.0, 0
    rows = sorted(map(answer_row, answers), key=lambda row: len(row["ids"]))
    for start in range(0, len(rows), batches.batch_rows):
        batch = batches.tensors(rows[start : start + batches.batch_rows])
        logp_RxT, reference_RxT = (batches.log_probs(model, batch) for model in (policy, reference))
        total += float(kl_to_reference(logp_RxT, reference_RxT).sum())
        num_tokens += int((batch["targets"] != IGNORED).sum())
    return total / num_tokens
