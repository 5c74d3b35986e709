"""Log-probabilities of answers without padding, and without computing a common beginning twice.

Of a preference pair both answers follow the same prompt, and often begin alike. What depends on these tokens
alone is the same for both, so the second row goes on from the first where they part: a pair costs prompt +
chosen + rejected and not twice the prompt. And rows of different lengths stand behind one another instead of
being filled up to the longest. Both change the speed, and the result to rounding only.

Shapes: B rows, T tokens, M tokens that are computed, R of them with a target, E targets of answers (those of
a common beginning count for both rows).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox.blocked_attention import few_sizes
from stages.whitebox.losses import IGNORED, token_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.text_pieces import Piece, Pieces, wanted_tokens


class Laid(NamedTuple):
    """Rows laid end to end."""

    ids_1xM: Tensor
    targets_M: Tensor
    positions_1xM: Tensor
    pieces: Pieces
    answer_tokens_E: Tensor
    """Number within M of each token that has a target, and once more for every row that shares it."""
    answer_rows_E: Tensor
    """The row that it counts for."""


def row_log_probs(model: CausalLM, ids_BxT: Tensor, targets_BxT: Tensor) -> Tensor:
    """Sum of the log-probabilities of each row's targets: logp_B, as `losses.sequence_log_probs` has it.

    Args:
        ids_BxT: padded on the right; row b of the second half may begin like row b of the first.
        targets_BxT: what each token has to predict, -100 where nothing counts.
    """
    if not bool((targets_BxT != IGNORED).any()):
        return torch.zeros(len(ids_BxT), device=ids_BxT.device)
    laid = filled_up(lay_end_to_end(ids_BxT, targets_BxT))
    wanted_R = wanted_tokens(laid.targets_M)
    h_1xRxD = model.hidden_states(laid.ids_1xM, laid.positions_1xM, pieces=laid.pieces, wanted_R=wanted_R)
    logp_R = token_log_probs(h_1xRxD, model.output_weight(), laid.targets_M[None, wanted_R])[0]
    number_E = torch.searchsorted(wanted_R, laid.answer_tokens_E)
    # index_select and not [], whose gradient is added in the order in which the threads come.
    logp_E = logp_R.index_select(0, number_E)
    return logp_R.new_zeros(len(ids_BxT)).index_add(0, laid.answer_rows_E, logp_E)


def lay_end_to_end(ids_BxT: Tensor, targets_BxT: Tensor) -> Laid:
    """Cuts what is behind each row's last target, and what the row shares with its partner."""
    lengths, shared = _lengths(targets_BxT), _shared(ids_BxT, targets_BxT)
    pieces: list[Piece] = []
    begins: list[int] = []  # where in M the first token of each row stands
    parts, tokens, rows = [], [], []
    num_laid = 0
    for row, (length, num_shared) in enumerate(zip(lengths, shared, strict=True)):
        parent = row - len(shared) // 2 if num_shared else row
        begins.append(num_laid)
        answer_L = (targets_BxT[row, :length] != IGNORED).nonzero()[:, 0]
        own_L = answer_L + num_laid - num_shared
        tokens.append(torch.where(answer_L < num_shared, answer_L + begins[parent], own_L))
        rows.append(torch.full_like(answer_L, row))
        pieces.append(Piece(length - num_shared, parent, num_shared))
        parts.append(torch.arange(num_shared, length, device=ids_BxT.device) + row * ids_BxT.shape[1])
        num_laid += length - num_shared
    place_M = torch.cat(parts)
    return Laid(
        ids_BxT.reshape(-1)[place_M][None],
        targets_BxT.reshape(-1)[place_M],
        (place_M % ids_BxT.shape[1])[None],
        Pieces(tuple(pieces)),
        torch.cat(tokens),
        torch.cat(rows),
    )


def filled_up(laid: Laid) -> Laid:
    """Behind the rows a piece without a target that makes M one of few sizes, for few programs in memory."""
    count = few_sizes(laid.ids_1xM.shape[1]) - laid.ids_1xM.shape[1]
    if not count:
        return laid
    return laid._replace(
        ids_1xM=F.pad(laid.ids_1xM, (0, count)),
        targets_M=F.pad(laid.targets_M, (0, count), value=IGNORED),
        positions_1xM=F.pad(laid.positions_1xM, (0, count)),
        pieces=Pieces((*laid.pieces.pieces, Piece(count))),
    )


def _lengths(targets_BxT: Tensor) -> list[int]:
    """Tokens up to the last one that has a target; what follows, padding too, predicts nothing."""
    place_T = torch.arange(1, targets_BxT.shape[1] + 1, device=targets_BxT.device)
    return [int(length) for length in (place_T * (targets_BxT != IGNORED)).amax(dim=1)]


def _shared(ids_BxT: Tensor, targets_BxT: Tensor) -> list[int]:
    """How many tokens of a row, targets included, are its partner's: 0 in the first half.

    One token at least stays the row's own, where it has any.
    """
    half = len(ids_BxT) // 2
    if 2 * half != len(ids_BxT):
        return [0] * len(ids_BxT)
    same_PxT = (ids_BxT[:half] == ids_BxT[half:]) & (targets_BxT[:half] == targets_BxT[half:])
    equal = same_PxT.long().cumprod(dim=1).sum(dim=1).tolist()
    lengths = _lengths(targets_BxT)
    limits = zip(equal, lengths[:half], lengths[half:], strict=True)
    return [0] * half + [max(0, min(number, first, second - 1)) for number, first, second in limits]
