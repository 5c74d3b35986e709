"""Text out of a model, one token at a time.

Shapes: B batch (1 here), T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from stages.whitebox.device import product_dtype
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.model import CausalLM


class TokenConstraint(Protocol):
    """Says which tokens may come next; a grammar is one."""

    def allowed_V(self) -> Tensor | None:
        """True where a token may come next; None where every token may."""
        ...

    def accept(self, token_id: int) -> None:
        """Takes note of the token that was chosen."""
        ...


def generate(
    model: CausalLM,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    constraint: TokenConstraint | None = None,
) -> list[int]:
    """The tokens that the model puts behind the prompt, without the stop token.

    Ends at a stop token, after `max_new_tokens`, or where the model's context is full. The same arguments
    give the same tokens.

    Args:
        temperature: 0 takes the most likely token each time.
        top_k: draw among this many most likely tokens only.
        top_p: draw among the fewest tokens that together have this probability (Holtzman et al. 2019,
            arXiv:1904.09751).

    Raises:
        ValueError: the prompt is empty or fills the context, or the constraint allows no token.
    """
    new_tokens = stream(
        model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        constraint=constraint,
    )
    return list(new_tokens)


@torch.no_grad()
def stream(
    model: CausalLM,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    constraint: TokenConstraint | None = None,
) -> Iterator[int]:
    """`generate`, token by token as they come."""
    _check(model, prompt_ids, temperature)
    weight = model.output_weight()
    room = min(max_new_tokens, model.config.context_limit - len(prompt_ids))
    cache = KVCache(model.config, 1, len(prompt_ids) + room, product_dtype(weight), weight.device)
    generator = torch.Generator().manual_seed(seed)
    ids_1xT = torch.tensor([list(prompt_ids)], device=weight.device)
    for _ in range(room):
        h_1xTxD = model.hidden_states(ids_1xT, cache=cache)
        logits_V = model.logits(h_1xTxD[0, -1]).cpu()
        token_id = choose(logits_V, temperature, top_k, top_p, generator, constraint)
        if token_id in stop_ids:
            return
        if constraint is not None:
            constraint.accept(token_id)
        yield token_id
        ids_1xT = torch.tensor([[token_id]], device=weight.device)


def choose(
    logits_V: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
    constraint: TokenConstraint | None = None,
) -> int:
    """One token out of the logits of the next position; arguments as in `generate`."""
    allowed_V = constraint.allowed_V() if constraint is not None else None
    if allowed_V is not None:
        if not bool(allowed_V.any()):
            raise ValueError("the constraint allows no token here; it should end the text instead")
        logits_V = logits_V.masked_fill(~allowed_V, -torch.inf)
    if temperature == 0.0:
        return int(logits_V.argmax())
    logits_V = logits_V / temperature
    logits_V = logits_V if top_k is None else _keep_top_k(logits_V, top_k)
    logits_V = logits_V if top_p is None else _keep_top_p(logits_V, top_p)
    return int(torch.multinomial(logits_V.softmax(dim=-1), 1, generator=generator))


def _keep_top_k(logits_V: Tensor, top_k: int) -> Tensor:
    smallest_kept = logits_V.topk(min(top_k, logits_V.numel())).values[-1]
    return logits_V.masked_fill(logits_V < smallest_kept, -torch.inf)


def _keep_top_p(logits_V: Tensor, top_p: float) -> Tensor:
    sorted_V, order_V = logits_V.sort(descending=True)
    probs_V = sorted_V.softmax(dim=-1)
    # A token goes when those before it reach top_p already, so the most likely one always stays.
    drop_V = probs_V.cumsum(dim=-1) - probs_V >= top_p
    return logits_V.masked_fill(drop_V.scatter(0, order_V, drop_V), -torch.inf)


def _check(model: CausalLM, prompt_ids: Sequence[int], temperature: float) -> None:
    if not prompt_ids:
        raise ValueError("the prompt has no tokens; begin with at least the BOS id")
    limit = model.config.context_limit
    if len(prompt_ids) >= limit:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and the model's context {limit}; shorten the prompt"
        )
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}, expected 0 (greedy) or more")
