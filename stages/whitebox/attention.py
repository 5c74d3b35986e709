"""Causal self-attention with grouped queries, twice: once to read, once to run.

`reference_attend` is the formula (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1); `attend` is the
same through PyTorch's fused kernel. A test holds them together. Grouped queries: Ainslie et al. 2023,
arXiv:2305.13245.

Shapes: B batch, T tokens, S cached and new tokens, D width, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.whitebox.config import ModelConfig
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.norm import RMSNorm
from stages.whitebox.rope import apply_rope


def document_mask(document_ids_BxT: Tensor) -> Tensor:
    """True where a token (row) may look at a token (column): not later, and in the same document.

    Returns:
        mask_Bx1xTxT: every row has at least its own token, so no softmax is over nothing.
    """
    num_tokens = document_ids_BxT.shape[1]
    same_BxTxT = document_ids_BxT[:, :, None] == document_ids_BxT[:, None, :]
    causal_TxT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=document_ids_BxT.device).tril()
    return (same_BxTxT & causal_TxT)[:, None]


def continuation_mask(num_cached: int, num_new: int, device: torch.device) -> Tensor:
    """The causal mask of `num_new` tokens that follow `num_cached` others: mask_1x1xTxS."""
    query_T = torch.arange(num_cached, num_cached + num_new, device=device)
    key_S = torch.arange(num_cached + num_new, device=device)
    return (key_S[None, :] <= query_T[:, None])[None, None]


def reference_attend(
    q_BxNxTxH: Tensor, k_BxKxSxH: Tensor, v_BxKxSxH: Tensor, mask_Bx1xTxS: Tensor | None = None
) -> Tensor:
    """Attention as the formula says; arguments and result as in `attend`."""
    num_new, num_all = q_BxNxTxH.shape[2], k_BxKxSxH.shape[2]
    if mask_Bx1xTxS is None:
        mask_Bx1xTxS = continuation_mask(num_all - num_new, num_new, q_BxNxTxH.device)
    queries_per_key = q_BxNxTxH.shape[1] // k_BxKxSxH.shape[1]
    k_BxNxSxH = k_BxKxSxH.repeat_interleave(queries_per_key, dim=1)
    v_BxNxSxH = v_BxKxSxH.repeat_interleave(queries_per_key, dim=1)
    scores_BxNxTxS = q_BxNxTxH @ k_BxNxSxH.transpose(-1, -2) / math.sqrt(q_BxNxTxH.shape[-1])
    scores_BxNxTxS = scores_BxNxTxS.masked_fill(~mask_Bx1xTxS, -math.inf)
    return scores_BxNxTxS.softmax(dim=-1) @ v_BxNxSxH


def attend(
    q_BxNxTxH: Tensor, k_BxKxSxH: Tensor, v_BxKxSxH: Tensor, mask_Bx1xTxS: Tensor | None = None
) -> Tensor:
    """Attention through the fused kernel, which never holds all scores.

    Args:
        mask_Bx1xTxS: True where a query may look; None means causal, with the queries as the last T of S
            tokens.

    Returns:
        o_BxNxTxH.
    """
    num_new, num_all = q_BxNxTxH.shape[2], k_BxKxSxH.shape[2]
    if mask_Bx1xTxS is None and 1 < num_new < num_all:
        mask_Bx1xTxS = continuation_mask(num_all - num_new, num_new, q_BxNxTxH.device)
    return F.scaled_dot_product_attention(
        q_BxNxTxH,
        k_BxKxSxH,
        v_BxKxSxH,
        attn_mask=mask_Bx1xTxS,
        is_causal=mask_Bx1xTxS is None and num_new > 1,
        enable_gqa=q_BxNxTxH.shape[1] != k_BxKxSxH.shape[1],
    )


class Attention(nn.Module):
    """Projections, per-head normalisation (Qwen3), RoPE, attention, output projection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.key_value_size, bias=False)
        self.o_proj = nn.Linear(config.query_size, config.hidden_size, bias=False)
        # QK-norm (Henry et al. 2020, arXiv:2010.04245) bounds the scores, so that a high learning rate
        # stays stable.
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BxTxD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_Bx1xTxS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """`rope` holds cos_BxTx1xH and sin_BxTx1xH of the tokens' positions. Returns y_BxTxD."""
        q_BxTxNxH = apply_rope(self.q_norm(self._heads(self.q_proj(x_BxTxD))), *rope)
        k_BxTxKxH = apply_rope(self.k_norm(self._heads(self.k_proj(x_BxTxD))), *rope)
        v_BxTxKxH = self._heads(self.v_proj(x_BxTxD))
        k_BxKxSxH, v_BxKxSxH = k_BxTxKxH.transpose(1, 2), v_BxTxKxH.transpose(1, 2)
        if cache is not None:
            k_BxKxSxH, v_BxKxSxH = cache.extend(self.layer, k_BxKxSxH, v_BxKxSxH)
        o_BxNxTxH = attend(q_BxTxNxH.transpose(1, 2), k_BxKxSxH, v_BxKxSxH, mask_Bx1xTxS)
        return self.o_proj(o_BxNxTxH.transpose(1, 2).flatten(2))

    def _heads(self, x_BxTxW: Tensor) -> Tensor:
        return x_BxTxW.unflatten(-1, (-1, self.head_dim))
