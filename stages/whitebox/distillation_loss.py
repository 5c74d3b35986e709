"""What a student learns from a teacher's logits, without ever holding those of all tokens.

Of each counted token, with temperature t (Hinton et al. 2015, arXiv:1503.02531, section 2):

    (1 - share) x -log p_student(target)  +  share x t^2 x KL(softmax(teacher / t) || softmax(student / t))

The gradient of the second part shrinks with 1/t^2, so t^2 keeps the two parts in proportion.

Shapes: B batch, T tokens, D width of the student, E width of the teacher, V vocabulary, M counted tokens, C
tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.whitebox.losses import CHUNK_TOKENS, IGNORED


def distillation_sum(
    hidden_BxTxD: Tensor,
    weight_VxD: Tensor,
    teacher_hidden_BxTxE: Tensor,
    teacher_weight_VxE: Tensor,
    targets_BxT: Tensor,
    temperature: float,
    share: float,
    weights_BxT: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, int]:
    """The sum over counted tokens, each as much as its weight, and how many are counted.

    The teacher gets no gradient. A chunk's logits are made, used and forgotten; the backward pass makes them
    again (Chen et al. 2016, arXiv:1604.06174).
    """
    counted_BxT = targets_BxT != IGNORED
    hidden_MxD, targets_M = hidden_BxTxD[counted_BxT], targets_BxT[counted_BxT]
    teacher_MxE = teacher_hidden_BxTxE[counted_BxT].detach()
    weights_M = torch.ones_like(targets_M, dtype=torch.float32)
    if weights_BxT is not None:
        weights_M = weights_BxT[counted_BxT]
    nats_sum = torch.zeros((), device=hidden_BxTxD.device)
    for start in range(0, len(targets_M), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        chunk = (hidden_MxD[part], weight_VxD, teacher_MxE[part], teacher_weight_VxE.detach())
        nats_C = checkpoint(_nats, *chunk, targets_M[part], temperature, share, use_reentrant=False)
        nats_sum = nats_sum + (nats_C * weights_M[part]).sum()
    return nats_sum, len(targets_M)


def _nats(
    hidden_CxD: Tensor,
    weight_VxD: Tensor,
    teacher_CxE: Tensor,
    teacher_weight_VxE: Tensor,
    targets_C: Tensor,
    temperature: float,
    share: float,
) -> Tensor:
    """The formula above, for one chunk: C."""
    logits_CxV = F.linear(hidden_CxD, weight_VxD).float()
    teacher_logits_CxV = F.linear(teacher_CxE, teacher_weight_VxE).float()
    log_p_CxV = (logits_CxV / temperature).log_softmax(dim=-1)
    teacher_log_p_CxV = (teacher_logits_CxV / temperature).log_softmax(dim=-1)
    kl_C = (teacher_log_p_CxV.exp() * (teacher_log_p_CxV - log_p_CxV)).sum(dim=-1)
    target_nats_C = F.cross_entropy(logits_CxV, targets_C, reduction="none")
    return (1 - share) * target_nats_C + share * temperature**2 * kl_C
