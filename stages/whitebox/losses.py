"""Losses on hidden states, without ever holding the logits of all tokens.

At a vocabulary of 64k the logits of 8 x 1,024 tokens take 2.1 GB, several times what the rest of the model
takes. So every loss here goes over the tokens in chunks; a chunk's logits are made, used and forgotten.

Shapes: B batch, T tokens, D width, V vocabulary, M tokens that count (those with a target), C tokens of one
chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stages.whitebox.device import product_dtype

IGNORED = -100
"""A target with this value has no loss (Hugging Face's convention)."""

CHUNK_TOKENS = 512
"""Small enough that a chunk's logits stay in a CPU's cache."""
GPU_CHUNK_TOKENS = 4096
"""A GPU wants large products; at a vocabulary of 64k this many logits take 1 GB in float32."""
FEW_COUNTED = 0.75
"""Where fewer tokens have a target the others are cut out; above, copying costs more than it saves."""


def cross_entropy_sum(
    hidden_BxTxD: Tensor,
    weight_VxD: Tensor,
    targets_BxT: Tensor,
    chunk_tokens: int | None = None,
    z_loss: float = 0.0,
    fused: bool = False,
) -> tuple[Tensor, int]:
    """Sum over all counted tokens of -log p(target), in nats, exact as `F.cross_entropy(...,
    reduction="sum")`.

    The gradient of a chunk is made in the forward pass, while its logits are there: no second matrix product
    (as in Liger Kernel, Hsu et al. 2024, arXiv:2410.10989). So `backward` goes through it once only.

    Args:
        chunk_tokens: tokens whose logits are held at once; None chooses by the device.
        z_loss: adds `z_loss` x log(Z)^2 of every counted token, Z being the softmax's denominator. It keeps
            logits from drifting away together, which the cross-entropy does not see and 16-bit numbers do
            (PaLM, arXiv:2204.02311, section 5, with 1e-4; ST-MoE, arXiv:2202.08906, section 3.3).
        fused: everything between a chunk's products as one compiled kernel. For GPUs, where each operation
            reads and writes all logits of the chunk; on a CPU they stay in the cache and it gains nothing.

    Returns:
        The sum (a float32 scalar, 0 where nothing is counted) and the number of counted tokens.
    """
    hidden_MxD, targets_M, num_targets = _mostly_counted(hidden_BxTxD, targets_BxT)
    if not torch.is_grad_enabled():
        weight_VxD = weight_VxD.detach()  # a parameter asks for its gradient even where nobody wants one
    chunk_tokens = chunk_tokens or _chunk_tokens(hidden_MxD.device)
    nats_sum = _CrossEntropySum.apply(hidden_MxD, weight_VxD, targets_M, chunk_tokens, z_loss, fused)
    return nats_sum, num_targets


def token_log_probs(
    hidden_BxTxD: Tensor, weight_VxD: Tensor, targets_BxT: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """log p(target) of each token: logp_BxT in float32, 0 where the target is ignored.

    The backward pass makes a chunk's logits a second time instead of keeping them.
    """
    hidden_MxD, targets_M, _ = _mostly_counted(hidden_BxTxD, targets_BxT)
    chunk_tokens = chunk_tokens or _chunk_tokens(hidden_MxD.device)
    is_counted_M = targets_M != IGNORED
    logp_M = _TokenLogProbs.apply(hidden_MxD, weight_VxD, targets_M.where(is_counted_M, 0), chunk_tokens)
    empty_BxT = torch.zeros(targets_BxT.shape, dtype=torch.float32, device=targets_BxT.device)
    return empty_BxT.masked_scatter(targets_BxT != IGNORED, logp_M.masked_select(is_counted_M))


def sequence_log_probs(
    hidden_BxTxD: Tensor, weight_VxD: Tensor, targets_BxT: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """Sum of the counted tokens' log-probabilities per row: logp_B."""
    return token_log_probs(hidden_BxTxD, weight_VxD, targets_BxT, chunk_tokens).sum(dim=-1)


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Loss over a text per byte of it: compares models with different tokenizers.

    Raises:
        ValueError: there are no bytes.
    """
    if total_bytes <= 0:
        raise ValueError(f"bits per byte over {total_bytes} bytes; expected a text that is not empty")
    return total_nats / math.log(2) / total_bytes


def _counted(hidden_BxTxD: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor]:
    """Only the tokens with a target: in chats few have one, and the output matrix has less work."""
    targets = targets_BxT.reshape(-1)
    hidden = hidden_BxTxD.reshape(-1, hidden_BxTxD.shape[-1])
    counted = targets != IGNORED
    if bool(counted.all()):
        return hidden, targets
    return hidden[counted], targets[counted]


def _mostly_counted(hidden_BxTxD: Tensor, targets_BxT: Tensor) -> tuple[Tensor, Tensor, int]:
    """All tokens, or only those with a target where these are few; and how many have one."""
    num_targets = int((targets_BxT != IGNORED).sum())
    if num_targets < FEW_COUNTED * targets_BxT.numel():
        return *_counted(hidden_BxTxD, targets_BxT), num_targets
    return hidden_BxTxD.reshape(-1, hidden_BxTxD.shape[-1]), targets_BxT.reshape(-1), num_targets


def _chunk_tokens(device: torch.device) -> int:
    return GPU_CHUNK_TOKENS if device.type == "cuda" else CHUNK_TOKENS


def _logits(hidden_CxD: Tensor, weight_VxD: Tensor) -> Tensor:
    """The product in the type of the hidden states (bfloat16 when mixed), everything after it in float32."""
    return (hidden_CxD @ weight_VxD.T).float()


def _nats_and_gradient(logits_CxV: Tensor, targets_C: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Loss of a chunk, and its gradient by the logits: p (1 + 2 z log Z) - onehot(target).

    The exponentials serve both: first for log Z, then, divided by Z, as p. Tokens without a target have
    neither.
    """
    is_counted_Cx1 = (targets_C != IGNORED)[:, None]
    counts_Cx1 = is_counted_Cx1.float()
    target_Cx1 = torch.where(is_counted_Cx1, targets_C[:, None], 0)
    max_Cx1 = logits_CxV.amax(dim=1, keepdim=True).float()
    target_nats_Cx1 = max_Cx1 - logits_CxV.gather(1, target_Cx1)
    p_CxV = (
        logits_CxV.to(torch.float32, copy=True).sub_(max_Cx1).exp_()
    )  # twice as fast as one mixed subtraction
    sum_Cx1 = p_CxV.sum(dim=1, keepdim=True)
    log_sum_Cx1 = sum_Cx1.log()
    log_z_Cx1 = log_sum_Cx1 + max_Cx1
    nats_Cx1 = target_nats_Cx1 + log_sum_Cx1 + z_loss * log_z_Cx1.square()
    p_CxV.mul_(counts_Cx1 * (1 + 2 * z_loss * log_z_Cx1) / sum_Cx1)
    p_CxV.scatter_add_(1, target_Cx1, -counts_Cx1)
    return (nats_Cx1 * counts_Cx1).sum(), p_CxV.to(logits_CxV.dtype)


def _nats(logits_CxV: Tensor, targets_C: Tensor, z_loss: float) -> Tensor:
    """Loss of a chunk, as the formula says."""
    is_counted_C = targets_C != IGNORED
    target_Cx1 = torch.where(is_counted_C, targets_C, 0)[:, None]
    log_z_C = logits_CxV.float().logsumexp(dim=1)
    nats_C = log_z_C - logits_CxV.gather(1, target_Cx1).squeeze(1) + z_loss * log_z_C.square()
    return (nats_C * is_counted_C).sum()


def _nats_and_gradient_to_fuse(logits_CxV: Tensor, targets_C: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """`_nats_and_gradient` without a change in place: a compiler makes two passes over the logits of it."""
    is_counted_Cx1 = (targets_C != IGNORED)[:, None]
    wide_CxV = logits_CxV.float()
    max_Cx1 = wide_CxV.amax(dim=1, keepdim=True)
    log_z_Cx1 = (wide_CxV - max_Cx1).exp().sum(dim=1, keepdim=True).log() + max_Cx1
    is_target_CxV = torch.arange(wide_CxV.shape[1], device=wide_CxV.device) == targets_C[:, None]
    target_Cx1 = torch.where(is_target_CxV, wide_CxV, 0.0).sum(dim=1, keepdim=True)
    nats_Cx1 = log_z_Cx1 - target_Cx1 + z_loss * log_z_Cx1.square()
    p_CxV = (wide_CxV - log_z_Cx1).exp() * (1 + 2 * z_loss * log_z_Cx1)
    grad_CxV = torch.where(is_counted_Cx1, p_CxV - is_target_CxV.float(), 0.0)
    return torch.where(is_counted_Cx1, nats_Cx1, 0.0).sum(), grad_CxV.to(logits_CxV.dtype)


@cache
def _fused_chunk() -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    return torch.compile(_nats_and_gradient_to_fuse, dynamic=False)


class _CrossEntropySum(torch.autograd.Function):
    """One chunk's gradient needs only its own logits, so it is made beside them and added up."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MxD: Tensor,
        weight_VxD: Tensor,
        targets_M: Tensor,
        chunk_tokens: int,
        z_loss: float,
        fused: bool,
    ) -> Tensor:
        dtype = product_dtype(hidden_MxD)
        hidden, weight = hidden_MxD.to(dtype), weight_VxD.to(dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_MxD) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VxD, dtype=torch.float32) if wants_weight else None
        nats_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets_M), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                logits_CxV = hidden[part] @ weight.T
                if not (wants_hidden or wants_weight):
                    nats_sum += _nats(logits_CxV, targets_M[part], z_loss)
                    continue
                one_kernel = fused and len(logits_CxV) == chunk_tokens  # other lengths are compiled anew
                chunk = _fused_chunk() if one_kernel else _nats_and_gradient
                nats, grad_CxV = chunk(logits_CxV, targets_M[part], z_loss)
                nats_sum += nats
                if grad_hidden is not None:
                    grad_hidden[part] = grad_CxV @ weight
                if grad_weight is not None:
                    _add_product(grad_weight, grad_CxV.T, hidden[part])
        ctx.gradients, ctx.weight_dtype = (grad_hidden, grad_weight), weight_VxD.dtype
        return nats_sum

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        # Changed in place, and given away: another copy of the output matrix's gradient would be the peak.
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, (None, None)
        return (
            None if grad_hidden is None else grad_hidden.mul_(grad_out.to(grad_hidden.dtype)),
            None if grad_weight is None else grad_weight.mul_(grad_out).to(ctx.weight_dtype),
            *(None,) * 4,
        )


def _add_product(sum_VxD: Tensor, left_VxC: Tensor, right_CxD: Tensor) -> None:
    """sum += left @ right; with 16-bit factors too the sum stays in float32."""
    if left_VxC.dtype == sum_VxD.dtype:
        sum_VxD.addmm_(left_VxC, right_CxD)
    else:
        sum_VxD += left_VxC @ right_CxD


class _TokenLogProbs(torch.autograd.Function):
    """Keeps one number per token, the log of the softmax's denominator; backward makes the logits anew."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MxD: Tensor, weight_VxD: Tensor, targets_M: Tensor, chunk_tokens: int
    ) -> Tensor:
        ctx.dtype, ctx.chunk_tokens = product_dtype(hidden_MxD), chunk_tokens
        hidden, weight = hidden_MxD.to(ctx.dtype), weight_VxD.to(ctx.dtype)
        lse_M = torch.empty(len(targets_M), dtype=torch.float32, device=hidden.device)
        logp_M = torch.empty_like(lse_M)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets_M), chunk_tokens):
                part = slice(start, start + chunk_tokens)
                logits_CxV = _logits(hidden[part], weight)
                lse_M[part] = logits_CxV.logsumexp(dim=1)
                logp_M[part] = logits_CxV.gather(1, targets_M[part, None]).squeeze(1) - lse_M[part]
        ctx.save_for_backward(hidden_MxD, weight_VxD, targets_M, lse_M)
        return logp_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MxD, weight_VxD, targets_M, lse_M = ctx.saved_tensors
        hidden, weight = hidden_MxD.to(ctx.dtype), weight_VxD.to(ctx.dtype)
        grad_hidden = torch.zeros_like(hidden_MxD)
        grad_weight = torch.zeros_like(weight_VxD, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets_M), ctx.chunk_tokens):
                part = slice(start, start + ctx.chunk_tokens)
                grad_CxV = -(_logits(hidden[part], weight) - lse_M[part, None]).exp_()
                grad_CxV.scatter_add_(1, targets_M[part, None], torch.ones_like(grad_CxV[:, :1]))
                grad_CxV = (grad_CxV * grad_M[part, None]).to(ctx.dtype)
                grad_hidden[part] = grad_CxV @ weight
                _add_product(grad_weight, grad_CxV.T, hidden[part])
        return grad_hidden, grad_weight.to(weight_VxD.dtype), None, None
