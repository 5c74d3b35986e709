"""Attention over several texts that stand behind one another, one text at a time, for CPUs.

A mask over whole rows makes the kernel compute all T x T scores and throw most of them away: a row of 512
tokens that holds five conversations needs a fifth of them, and causal attention half of these. GPUs have
FlexAttention, which skips blocks; here every text is its own call.

A piece may also go on from the beginning of an earlier one: of a preference pair the chosen answer stands
behind its prompt, and the rejected one reads the same prompt without having it a second time (a tree of
texts, as Cai et al. 2024, arXiv:2401.10774, section 3.2 masks candidates).

Shapes: B batch, T tokens, N query heads, K key/value heads, H head size, M tokens of all rows, R of them that
are wanted, L tokens of a piece that ask, S tokens that they may read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox.blocked_attention import attend_in_blocks, few_sizes
from stages.whitebox.losses import IGNORED

SHORT_KEYS = 224
"""A piece that reads no more is faster with the fused kernel in float32 than with products in bfloat16, which
are small and slow then: 8.5 and 13.5 ms for 1,024 tokens in pieces of 96, 34 and 24 ms in pieces of 512."""


class Piece(NamedTuple):
    """So many tokens that read what is before them in the piece, and first the beginning of another."""

    num_tokens: int
    parent: int = 0
    """Number of the piece that it goes on from."""
    num_shared: int = 0
    """How many tokens of `parent` it reads, from its first one on; the parent itself goes on from none. With
    0 the piece begins by itself."""


@dataclass(frozen=True)
class Pieces:
    """All tokens of a batch, row by row."""

    pieces: tuple[Piece, ...]
    window: int | None = None
    """A token sees this many tokens, itself included; None is all before it."""
    asking: tuple[Tensor, ...] | None = None
    """Of each piece the tokens that look at others, counted within it; None is all of them."""

    def asked_by(self, wanted_R: Tensor) -> Pieces:
        """The same for queries of these tokens only, which are numbered row by row in rising order."""
        asking, begin = [], 0
        ends = torch.tensor([piece.num_tokens for piece in self.pieces]).cumsum(0)
        parts = wanted_R.tensor_split(torch.searchsorted(wanted_R, ends)[:-1])
        for part, piece in zip(parts, self.pieces, strict=True):
            asking.append(part - begin)
            begin += piece.num_tokens
        return replace(self, asking=tuple(asking))


def wanted_tokens(targets_M: Tensor) -> Tensor:
    """Numbers of the tokens with a target in rising order: wanted_R.

    With them some without a target, where there are enough: R is one of few sizes then (`few_sizes`).
    """
    has_target_M = targets_M != IGNORED
    wanted_R, others = has_target_M.nonzero()[:, 0], (~has_target_M).nonzero()[:, 0]
    return torch.cat([wanted_R, others[: few_sizes(len(wanted_R)) - len(wanted_R)]]).sort().values


def take(x_BxTxD: Tensor, wanted_R: Tensor) -> Tensor:
    """x_1xRxD of these tokens; any dimensions may follow."""
    # Not [], whose gradient is added in the order in which the threads come.
    return x_BxTxD.flatten(0, 1).index_select(0, wanted_R)[None]


def pieces_of(document_ids_BxT: Tensor, window: int | None = None) -> Pieces | None:
    """A piece for every document of every row; None where a document is in several places of its row."""
    lengths: list[int] = []
    for ids_T in document_ids_BxT:
        values, counts = ids_T.unique_consecutive(return_counts=True)
        if len(values) != len(values.unique()):
            return None
        lengths += counts.tolist()
    return Pieces(tuple(Piece(length) for length in lengths), window)


def attend_pieces(q_BxNxTxH: Tensor, k_BxKxTxH: Tensor, v_BxKxTxH: Tensor, mask: Pieces) -> Tensor:
    """Each piece by itself: o_BxNxTxH; q and o hold only the tokens that ask, 1xNxRxH, where not all do."""
    num_asking = [piece.num_tokens for piece in mask.pieces]
    k, v = (_split(x, num_asking) for x in (k_BxKxTxH, v_BxKxTxH))
    if mask.asking is not None:
        num_asking = [len(part) for part in mask.asking]
    outputs = []
    for number, q_NxLxH in enumerate(_split(q_BxNxTxH, num_asking)):
        piece, k_KxSxH, v_KxSxH = mask.pieces[number], k[number], v[number]
        if piece.num_shared:
            k_KxSxH = torch.cat([k[piece.parent][:, : piece.num_shared], k_KxSxH], dim=1)
            v_KxSxH = torch.cat([v[piece.parent][:, : piece.num_shared], v_KxSxH], dim=1)
        o_NxLxH = _attend_one(q_NxLxH, k_KxSxH, v_KxSxH, _mask_of(number, mask))
        outputs.append(o_NxLxH.transpose(0, 1))
    return torch.cat(outputs).unflatten(0, q_BxNxTxH.shape[::2]).transpose(1, 2)


def _split(x_BxNxTxH: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """x_NxLxH of every piece, without a copy."""
    return [part.transpose(0, 1) for part in x_BxNxTxH.transpose(1, 2).flatten(0, 1).split(list(lengths))]


def _mask_of(number: int, mask: Pieces) -> Tensor | None:
    """mask_LxS of a piece; None where all its tokens ask and see all before them."""
    piece = mask.pieces[number]
    num_read = piece.num_shared + piece.num_tokens
    has_window = mask.window is not None and mask.window < num_read
    if mask.asking is None and not piece.num_shared and not has_window:
        return None
    asking_L = torch.arange(piece.num_tokens) if mask.asking is None else mask.asking[number]
    query_Lx1 = (asking_L + piece.num_shared)[:, None]
    key_S = torch.arange(num_read)
    mask_LxS = key_S <= query_Lx1
    return mask_LxS & (key_S > query_Lx1 - mask.window) if has_window else mask_LxS


def _attend_one(q_NxLxH: Tensor, k_KxSxH: Tensor, v_KxSxH: Tensor, mask_LxS: Tensor | None) -> Tensor:
    dtype = v_KxSxH.dtype
    if dtype == torch.bfloat16 and k_KxSxH.shape[1] > SHORT_KEYS:
        mask_1x1xLxS = None if mask_LxS is None else mask_LxS[None, None]
        return attend_in_blocks(q_NxLxH[None], k_KxSxH[None], v_KxSxH[None], mask_1x1xLxS)[0]
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    with torch.autocast("cpu", enabled=False):
        o_1xNxLxH = F.scaled_dot_product_attention(
            q_NxLxH[None].to(wide),
            k_KxSxH[None].to(wide),
            v_KxSxH[None].to(wide),
            attn_mask=mask_LxS,
            is_causal=mask_LxS is None,
            enable_gqa=len(q_NxLxH) != len(k_KxSxH),
        )
    return o_1xNxLxH[0].to(dtype)
