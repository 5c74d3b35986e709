"""Causal self-attention with grouped queries, twice: once to read, once to run.

`reference_attend` is the formula (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1); `attend` is the
same through PyTorch's fused kernels. A test holds them together. Grouped queries: Ainslie et al. 2023,
arXiv:2305.13245. Sliding window: Jiang et al. 2023, arXiv:2310.06825.

Shapes: B batch, T tokens, S cached and new tokens, D width, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from stages.whitebox.blocked_attention import attend_in_blocks
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import in_product_dtype
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.norm import RMSNorm
from stages.whitebox.rope import apply_rope
from stages.whitebox.text_pieces import Pieces, attend_pieces, take

Mask = Tensor | BlockMask | Pieces
"""True where a query may look, Bx1xTxS; the same as blocks, most of which FlexAttention skips; or texts that
look only at themselves."""


def document_mask(document_ids_BxT: Tensor, window: int | None = None) -> Tensor:
    """True where a token (row) may look at a token (column): not later, and in the same document.

    Args:
        window: not farther back than this many tokens, the token itself included.

    Returns:
        mask_Bx1xTxT: every row has at least its own token, so no softmax is over nothing.
    """
    same_BxTxT = document_ids_BxT[:, :, None] == document_ids_BxT[:, None, :]
    causal_1x1xTxT = continuation_mask(0, document_ids_BxT.shape[1], document_ids_BxT.device, window)
    return same_BxTxT[:, None] & causal_1x1xTxT


def continuation_mask(
    num_cached: int, num_new: int, device: torch.device, window: int | None = None
) -> Tensor:
    """The causal mask of `num_new` tokens that follow `num_cached` others: mask_1x1xTxS."""
    query_Tx1 = torch.arange(num_cached, num_cached + num_new, device=device)[:, None]
    key_S = torch.arange(num_cached + num_new, device=device)
    seen_TxS = key_S <= query_Tx1
    if window is not None:
        seen_TxS &= key_S > query_Tx1 - window
    return seen_TxS[None, None]


def block_mask(
    document_ids_BxT: Tensor | None, num_tokens: int, device: torch.device, window: int | None = None
) -> BlockMask:
    """`document_mask` for FlexAttention (arXiv:2412.05496), which never looks at blocks that are all False.

    Args:
        document_ids_BxT: None where every row is one document.
    """

    def may_look(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = key <= query
        if window is not None:
            allowed = allowed & (key > query - window)
        if document_ids_BxT is not None:
            allowed = allowed & (document_ids_BxT[row, query] == document_ids_BxT[row, key])
        return allowed

    rows = None if document_ids_BxT is None else document_ids_BxT.shape[0]
    return create_block_mask(may_look, rows, None, num_tokens, num_tokens, device=device)


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


def attend(q_BxNxTxH: Tensor, k_BxKxSxH: Tensor, v_BxKxSxH: Tensor, mask: Mask | None = None) -> Tensor:
    """Attention through the fused kernels, which never hold all scores.

    Args:
        mask: where a query may look; None means causal, with the queries as the last T of S tokens.

    Returns:
        o_BxNxTxH.
    """
    if isinstance(mask, Pieces):
        return attend_pieces(q_BxNxTxH, k_BxKxSxH, v_BxKxSxH, mask)
    has_groups = q_BxNxTxH.shape[1] != k_BxKxSxH.shape[1]
    if isinstance(mask, BlockMask):
        # Under autocast norms and RoPE leave float32; the other kernel casts by itself.
        q_BxNxTxH, k_BxKxSxH = q_BxNxTxH.to(v_BxKxSxH.dtype), k_BxKxSxH.to(v_BxKxSxH.dtype)
        return _flex(q_BxNxTxH)(q_BxNxTxH, k_BxKxSxH, v_BxKxSxH, block_mask=mask, enable_gqa=has_groups)
    num_new, num_all = q_BxNxTxH.shape[2], k_BxKxSxH.shape[2]
    if num_new > 1 and v_BxKxSxH.device.type == "cpu" and v_BxKxSxH.dtype == torch.bfloat16:
        return attend_in_blocks(q_BxNxTxH, k_BxKxSxH, v_BxKxSxH, mask)
    if mask is None and 1 < num_new < num_all:
        mask = continuation_mask(num_all - num_new, num_new, q_BxNxTxH.device)
    return F.scaled_dot_product_attention(
        q_BxNxTxH,
        k_BxKxSxH,
        v_BxKxSxH,
        attn_mask=mask,
        is_causal=mask is None and num_new > 1,
        enable_gqa=has_groups,
    )


def _flex(q_BxNxTxH: Tensor) -> Callable[..., Tensor]:
    """FlexAttention is fast only compiled; on a CPU it is here to be tested, and compiling would not pay."""
    return _compiled_flex() if q_BxNxTxH.is_cuda and not torch.compiler.is_compiling() else flex_attention


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


class Attention(nn.Module):
    """Projections, per-head normalisation (Qwen3), RoPE, attention, output projection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.window = config.window_of(layer)
        self.q_proj = nn.Linear(config.hidden_size, config.query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.query_size, config.hidden_size, bias=config.attention_output_bias)
        # QK-norm (Henry et al. 2020, arXiv:2010.04245) bounds the scores, so that a high learning rate
        # stays stable.
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BxTxD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask | None = None,
        cache: KVCache | None = None,
        wanted_R: Tensor | None = None,
    ) -> Tensor:
        """`rope` holds cos_BxTx1xH and sin_BxTx1xH of the tokens' positions; `mask` has the window in it.

        Returns y_BxTxD, or y_1xRxD of the tokens `wanted_R`; then `mask` is made for these.
        """
        x_BxTxD = in_product_dtype(x_BxTxD)
        asking_BxTxD, turn = x_BxTxD, rope
        if wanted_R is not None:
            asking_BxTxD = take(x_BxTxD, wanted_R)
            turn = tuple(take(table.expand(*x_BxTxD.shape[:2], -1, -1), wanted_R) for table in rope)
        q_BxTxNxH = apply_rope(self.q_norm(self._heads(self.q_proj(asking_BxTxD))), *turn)
        k_BxTxKxH = apply_rope(self.k_norm(self._heads(self.k_proj(x_BxTxD))), *rope)
        v_BxTxKxH = self._heads(self.v_proj(x_BxTxD))
        k_BxKxSxH, v_BxKxSxH = k_BxTxKxH.transpose(1, 2), v_BxTxKxH.transpose(1, 2)
        if cache is not None:
            k_BxKxSxH, v_BxKxSxH = cache.extend(self.layer, k_BxKxSxH, v_BxKxSxH)
            if self.window is not None and x_BxTxD.shape[1] == 1:  # decoding: the window is the last of them
                k_BxKxSxH, v_BxKxSxH = k_BxKxSxH[:, :, -self.window :], v_BxKxSxH[:, :, -self.window :]
        o_BxNxTxH = attend(q_BxTxNxH.transpose(1, 2), k_BxKxSxH, v_BxKxSxH, mask)
        return self.o_proj(o_BxNxTxH.transpose(1, 2).flatten(2))

    def _heads(self, x_BxTxW: Tensor) -> Tensor:
        return x_BxTxW.unflatten(-1, (-1, self.head_dim))
