"""Where each head looks: the attention weights of a short text, and the habits that a head may have.

The weights are what attention makes of the identity matrix as values, so nothing of the formula stands here a
second time: mask, scaling and grouped heads are those of `attention.attend`, whatever they become.

Shapes: L layers, N query heads, K key/value heads, T tokens, H head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.whitebox import attention
from stages.whitebox.model import CausalLM

HABITS = ("itself", "the token before", "the first token", "what followed this token earlier")


@torch.no_grad()
def attention_maps(model: CausalLM, ids: Sequence[int]) -> Tensor:
    """How much each token (row) looks at each token (column): weights_LxNxTxT, every row sums to 1.

    Raises:
        ValueError: there are no ids, or more than the model reads.
    """
    if not ids:
        raise ValueError("attention maps of no tokens; give a text")
    training = model.training
    model.eval()
    try:
        with _recorded() as maps:
            model.hidden_states(torch.tensor([list(ids)], device=model.output_weight().device))
    finally:
        model.train(training)
    return torch.stack([map_1xNxTxT[0] for map_1xNxTxT in maps]).float().cpu()


@contextmanager
def _recorded() -> Iterator[list[Tensor]]:
    """The weights of every call of `attend`, in the order of the layers."""
    maps: list[Tensor] = []
    attend: Callable[..., Tensor] = attention.attend

    def record(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Tensor:
        identity_TxT = torch.eye(k.shape[2], dtype=v.dtype, device=v.device)
        maps.append(attend(q, k, identity_TxT.expand(*k.shape[:2], -1, -1), *rest, **named))
        return attend(q, k, v, *rest, **named)

    attention.attend = record
    try:
        yield maps
    finally:
        attention.attend = attend


def habits(map_TxT: Tensor, ids: Sequence[int]) -> dict[str, float]:
    """Share of a head's attention that each of `HABITS` explains, over the tokens to which it can apply.

    The last one is what an induction head does (Olsson et al. 2022, arXiv:2209.11895): at the second "the" it
    looks at what stood behind the first. 0 where a text has no token to which a habit applies.
    """
    num_tokens = len(ids)
    itself = [(t, t) for t in range(1, num_tokens)]
    before = [(t, t - 1) for t in range(2, num_tokens)]
    first = [(t, 0) for t in range(2, num_tokens)]
    followed = [
        (t, earlier + 1) for t in range(num_tokens) for earlier in range(t - 1) if ids[earlier] == ids[t]
    ]
    return {
        name: _share(map_TxT, pairs)
        for name, pairs in zip(HABITS, (itself, before, first, followed), strict=True)
    }


def _share(map_TxT: Tensor, pairs: Sequence[tuple[int, int]]) -> float:
    """The weight on all pairs, per row that is in one of them."""
    if not pairs:
        return 0.0
    rows, columns = zip(*pairs, strict=True)
    return float(map_TxT[list(rows), list(columns)].sum()) / len(set(rows))
