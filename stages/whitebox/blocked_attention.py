"""Attention in bfloat16 on a CPU, as plain matrix products over blocks of queries.

PyTorch's fused kernel for CPUs takes as long in bfloat16 as in float32, because little of its time goes to
products. Here all heads of a block are one batched product in bfloat16, and no block looks at keys behind its
last query, which saves up to half of them. As in FlashAttention (Dao et al. 2022, arXiv:2205.14135) no scores
are kept: the backward pass makes them again, so memory grows with the length of a text and not with its
square.

`attention.reference_attend` is the formula; a test holds them together.

Shapes: B batch, T queries, S keys, N query heads, K key/value heads, G = N / K queries of a key head, H head
size, L queries of one block, P keys that they may look at; BK and GL are products of two of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_QUERIES = 128
"""Fewer skip more keys that are not looked at, and make products too small to be fast."""
EVEN_TOKENS = 32
"""Queries are filled up to a multiple of this: oneDNN, which has the products in bfloat16, writes a program
for every new shape and keeps a thousand of them."""
MAX_BLOCKS = 8
"""A compiler writes out the loop over them."""


def few_sizes(count: int) -> int:
    """The next number of tokens of which there are few: 16 from each power of two to the next.

    So what is filled up to it comes in few shapes; on the average it is 3 % more.
    """
    step = max(EVEN_TOKENS, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def attend_in_blocks(
    q_BxNxTxH: Tensor, k_BxKxSxH: Tensor, v_BxKxSxE: Tensor, mask_Bx1xTxS: Tensor | None = None
) -> Tensor:
    """Causal attention; the queries are the last T of S tokens, or with a mask any of them in rising order.

    Args:
        mask_Bx1xTxS: True where a query may look, never behind its own place; None is causal. B may be 1.

    Returns:
        o_BxNxTxE, in the type of `v`.
    """
    dtype, num_queries = v_BxKxSxE.dtype, q_BxNxTxH.shape[2]
    q_BxNxTxH, k_BxKxSxH = q_BxNxTxH.to(dtype), k_BxKxSxH.to(dtype)
    more = -num_queries % EVEN_TOKENS
    if more == 0:
        return _BlockedAttention.apply(q_BxNxTxH, k_BxKxSxH, v_BxKxSxE, mask_Bx1xTxS)
    more_keys = more
    if mask_Bx1xTxS is not None:
        more_keys += -(k_BxKxSxH.shape[2] + more) % EVEN_TOKENS
        mask_Bx1xTxS = F.pad(F.pad(mask_Bx1xTxS, (0, more_keys)), (0, 0, 0, more), value=True)
    q_BxNxTxH = F.pad(q_BxNxTxH, (0, 0, 0, more))
    k_BxKxSxH, v_BxKxSxE = (F.pad(x, (0, 0, 0, more_keys)) for x in (k_BxKxSxH, v_BxKxSxE))
    return _BlockedAttention.apply(q_BxNxTxH, k_BxKxSxH, v_BxKxSxE, mask_Bx1xTxS)[:, :, :num_queries]


class _BlockedAttention(torch.autograd.Function):
    """o = p v with p = softmax(q k' / sqrt(H)), where ' transposes. The gradient do passes as dv = p' do,
    dp = do v', ds = p (dp - sum(dp p)) / sqrt(H) with the sum over keys, dq = ds k, dk = ds' q."""

    @staticmethod
    def forward(
        ctx: Any, q_BxNxTxH: Tensor, k_BxKxSxH: Tensor, v_BxKxSxE: Tensor, mask_Bx1xTxS: Tensor | None
    ) -> Tensor:
        q_BKxGxTxH = q_BxNxTxH.unflatten(1, (k_BxKxSxH.shape[1], -1)).flatten(0, 1)
        k_BKxSxH, v_BKxSxE = k_BxKxSxH.flatten(0, 1), v_BxKxSxE.flatten(0, 1)
        outputs = []
        with torch.autocast("cpu", enabled=False):
            for asking, seen in _blocks(q_BKxGxTxH.shape[2], k_BKxSxH.shape[1]):
                q_BKxGLxH = q_BKxGxTxH[:, :, asking].flatten(1, 2)
                bias_GLxP = _bias(q_BKxGxTxH, asking, seen, mask_Bx1xTxS)
                p_BKxGLxP = _weights(q_BKxGLxH, k_BKxSxH[:, seen], bias_GLxP)
                o_BKxGLxE = p_BKxGLxP @ v_BKxSxE[:, seen]
                outputs.append(o_BKxGLxE.unflatten(1, (q_BKxGxTxH.shape[1], asking.stop - asking.start)))
        ctx.save_for_backward(q_BKxGxTxH, k_BKxSxH, v_BKxSxE, mask_Bx1xTxS)
        return torch.cat(outputs, dim=2).reshape(*q_BxNxTxH.shape[:3], v_BxKxSxE.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad_BxNxTxE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BKxGxTxH, k_BKxSxH, v_BKxSxE, mask_Bx1xTxS = ctx.saved_tensors
        num_rows, num_groups = grad_BxNxTxE.shape[0], q_BKxGxTxH.shape[1]
        do_BKxGxTxE = grad_BxNxTxE.reshape(*q_BKxGxTxH.shape[:3], v_BKxSxE.shape[-1])
        grad_queries = []
        grad_k_BKxSxH = torch.zeros_like(k_BKxSxH, dtype=torch.float32)  # of many blocks, so not in 16 bits
        grad_v_BKxSxE = torch.zeros_like(v_BKxSxE, dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for asking, seen in _blocks(q_BKxGxTxH.shape[2], k_BKxSxH.shape[1]):
                q_BKxGLxH = q_BKxGxTxH[:, :, asking].flatten(1, 2)
                do_BKxGLxE = do_BKxGxTxE[:, :, asking].flatten(1, 2)
                bias_GLxP = _bias(q_BKxGxTxH, asking, seen, mask_Bx1xTxS)
                p_BKxGLxP = _weights(q_BKxGLxH, k_BKxSxH[:, seen], bias_GLxP)
                dp_BKxGLxP = do_BKxGLxE @ v_BKxSxE[:, seen].transpose(1, 2)
                ds_BKxGLxP = torch.ops.aten._softmax_backward_data(dp_BKxGLxP, p_BKxGLxP, -1, p_BKxGLxP.dtype)
                ds_BKxGLxP = ds_BKxGLxP * _scale(q_BKxGLxH)
                grad_v_BKxSxE[:, seen] += p_BKxGLxP.transpose(1, 2) @ do_BKxGLxE
                grad_k_BKxSxH[:, seen] += ds_BKxGLxP.transpose(1, 2) @ q_BKxGLxH
                dq_BKxGLxH = ds_BKxGLxP @ k_BKxSxH[:, seen]
                grad_queries.append(dq_BKxGLxH.unflatten(1, (num_groups, asking.stop - asking.start)))
        grad_q_BKxGxTxH = torch.cat(grad_queries, dim=2)
        dtype = q_BKxGxTxH.dtype
        return (
            grad_q_BKxGxTxH.unflatten(0, (num_rows, -1)).flatten(1, 2),
            grad_k_BKxSxH.to(dtype).unflatten(0, (num_rows, -1)),
            grad_v_BKxSxE.to(dtype).unflatten(0, (num_rows, -1)),
            None,
        )


def _blocks(num_queries: int, num_keys: int) -> Iterator[tuple[slice, slice]]:
    """Queries of each block, and the keys up to the last of them; one empty block where nobody asks."""
    size = max(BLOCK_QUERIES, math.ceil(num_queries / MAX_BLOCKS))
    for start in range(0, max(num_queries, 1), size):
        end = min(start + size, num_queries)
        yield slice(start, end), slice(0, num_keys - num_queries + end)


def _weights(q_BKxGLxH: Tensor, k_BKxPxH: Tensor, bias_GLxP: Tensor) -> Tensor:
    scores_BKxGLxP = torch.baddbmm(bias_GLxP, q_BKxGLxH, k_BKxPxH.transpose(1, 2), alpha=_scale(q_BKxGLxH))
    return scores_BKxGLxP.softmax(dim=-1)


def _scale(q_BKxGLxH: Tensor) -> float:
    return 1 / math.sqrt(q_BKxGLxH.shape[-1])


def _bias(q_BKxGxTxH: Tensor, asking: slice, seen: slice, mask_Bx1xTxS: Tensor | None) -> Tensor:
    """0 where a query may look and minus infinity where not: bias_GLxP, or bias_BKxGLxP with a mask."""
    num_all, num_groups = q_BKxGxTxH.shape[:2]
    num_asking, num_seen = asking.stop - asking.start, seen.stop
    minus = q_BKxGxTxH.new_full((num_asking, num_seen), -math.inf)
    if mask_Bx1xTxS is None:
        return minus.triu(num_seen - num_asking + 1).repeat(num_groups, 1)
    mask_BxLxP = mask_Bx1xTxS[:, 0, asking, seen]
    bias_BxGLxP = minus.masked_fill(mask_BxLxP, 0.0).repeat(1, num_groups, 1)
    return bias_BxGLxP.repeat_interleave(num_all // len(bias_BxGLxP), dim=0)
