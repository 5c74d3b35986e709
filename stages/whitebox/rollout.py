"""Many answers at once: the samples that reinforcement learning learns from.

A batch is laid out so that all rows end at the same column, however long their prompts are:

    column    0  1  2  3  4 | 5  6  7
    row 0     -  -  a  b  c | d  e  f      "-" is padding, which nobody looks at
    row 1     p  q  r  s  t | u  v  w

Each step every row reads one token, so the rows stay aligned, one cache serves all, and a row's mask is no
more than the column at which its prompt begins. The token that a row reads is the one that it has just
written; or, where something was put in (the result of a tool), the next token of that. A row that is done
leaves the batch. Prompts that occur several times, as in the groups of GRPO, are read once.

Every row draws from random numbers of its own, so its tokens do not depend on who else is in the batch (but
for the last bits of a matrix product, which depend on the number of rows).

Shapes: R rows, B rows that are still running, P different prompts, T tokens, S columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.whitebox.device import product_dtype
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.model import CausalLM

OnStop = Callable[[int, list[int]], Sequence[int]]
"""Gets the row and all that stands behind its prompt, and gives what is put in; nothing ends the row."""

LEAVE_SHARE = 0.25
"""Rows leave the batch when this share of it is done: each leave copies the cache of those that stay."""


@dataclass
class Rollout:
    """What stands behind one prompt: tokens that the model wrote, and tokens that were put in."""

    ids: list[int] = field(default_factory=list)
    is_sampled: list[bool] = field(default_factory=list)
    """False where a token was put in: the model did not choose it, so nothing is learned from it."""
    log_probs: list[float] = field(default_factory=list)
    """Of each token at the temperature of the draw, before top_p cuts; 0 where it was put in."""
    entropies: list[float] = field(default_factory=list)
    """Of the distribution that each token was drawn from, in nats; 0 where it was put in."""
    finished: bool = False
    """The model ended it with a stop token; otherwise its tokens ran out."""

    @property
    def num_sampled(self) -> int:
        """Tokens that the model wrote, stop tokens included."""
        return sum(self.is_sampled)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: 0 takes the most likely token each time; log-probabilities are then those at temperature 1.
    top_p: draw among the fewest tokens that together have this probability (arXiv:1904.09751).
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and top_p {self.top_p}; expected at least 0, and 0 to 1"
            )


@torch.no_grad()
def roll_out(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling,
    seeds: Sequence[int],
    on_stop: OnStop | None = None,
) -> list[Rollout]:
    """One rollout per prompt. The stop token is part of it: a policy has to learn to stop.

    Args:
        max_new_tokens: of one row, with all that is put in.
        seeds: one per row; the same seed and prompt give the same tokens.
        on_stop: asked when a row has written a stop token; what it returns is put in, and the row goes on.

    Raises:
        ValueError: a prompt is empty or fills the context, there is no room for a token, or there are more or
            fewer seeds than prompts.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; expected one seed per prompt")
    limit = model.config.max_position_embeddings
    if not prompts:
        return []
    lengths = sorted(map(len, prompts))
    if lengths[0] < 1 or lengths[-1] >= limit:
        raise ValueError(f"prompts of {lengths[0]} to {lengths[-1]} tokens; expected 1 to {limit - 1}")
    rows = [_Row(number, len(p), min(max_new_tokens, limit - len(p))) for number, p in enumerate(prompts)]
    batch = _Running(model, prompts, rows, sampling, seeds)
    while batch.rows:
        batch.write(set(stop_ids), on_stop)
        batch.leave()
        if batch.rows:
            batch.read()
    return [row.rollout for row in rows]


@dataclass
class _Row:
    number: int
    prompt_tokens: int
    room: int
    """Most tokens behind the prompt."""
    rollout: Rollout = field(default_factory=Rollout)
    put_in: list[int] = field(default_factory=list)
    """Tokens that it still has to read."""
    is_done: bool = False

    def add(self, token: int, log_prob: float, entropy: float, is_sampled: bool) -> None:
        self.rollout.ids.append(token)
        self.rollout.is_sampled.append(is_sampled)
        self.rollout.log_probs.append(log_prob)
        self.rollout.entropies.append(entropy)
        self.is_done = len(self.rollout.ids) >= self.room


class _Running:
    """The rows that are not done, their cache, and the logits of the token that each gets next."""

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        rows: list[_Row],
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> None:
        self.model, self.rows, self.sampling = model, list(rows), sampling
        self.device = model.output_weight().device
        different = {
            tuple(prompt): number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))
        }
        prompt_of_row = torch.tensor([different[tuple(prompt)] for prompt in prompts], device=self.device)
        width = max(map(len, prompts))
        self.uniform_RxT = torch.stack(
            [_uniforms(seed, model.config.max_position_embeddings) for seed in seeds]
        )
        room, dtype = width + max(row.room for row in rows), product_dtype(model.output_weight())
        self.cache = KVCache(model.config, len(different), room, dtype, self.device)
        starts = [width - len(prompt) for prompt in different]
        self.starts_B = torch.tensor(starts, device=self.device)
        padded = [
            [model.config.pad_token_id] * start + list(p) for start, p in zip(starts, different, strict=True)
        ]
        self.logits_BxV = self._forward(torch.tensor(padded, device=self.device))
        self._keep(prompt_of_row)

    def write(self, stop_ids: set[int], on_stop: OnStop | None) -> None:
        """The next token of every row: drawn, or the next of what was put in."""
        uniform_B = torch.stack([self.uniform_RxT[row.number, len(row.rollout.ids)] for row in self.rows])
        drawn = draw(self.logits_BxV, uniform_B.to(self.device), self.sampling)
        for row, token, log_prob, entropy in zip(self.rows, *(t.tolist() for t in drawn), strict=True):
            if row.is_done:
                continue
            if row.put_in:
                row.add(row.put_in.pop(0), 0.0, 0.0, is_sampled=False)
                continue
            row.add(token, log_prob, entropy, is_sampled=True)
            if token in stop_ids:
                row.put_in = list(on_stop(row.number, row.rollout.ids)) if on_stop is not None else []
                row.rollout.finished = not row.put_in
                row.is_done = row.is_done or not row.put_in

    def leave(self) -> None:
        """Done rows go when they are many enough, or all of them."""
        staying = [place for place, row in enumerate(self.rows) if not row.is_done]
        if len(self.rows) - len(staying) < LEAVE_SHARE * len(self.rows) and staying:
            return
        self.rows = [self.rows[place] for place in staying]
        if staying:
            self._keep(torch.tensor(staying, device=self.device))

    def read(self) -> None:
        """Every row reads its latest token."""
        latest = [[row.rollout.ids[-1]] for row in self.rows]
        self.logits_BxV = self._forward(torch.tensor(latest, device=self.device))

    def _keep(self, places: Tensor) -> None:
        self.starts_B, self.logits_BxV = self.starts_B[places], self.logits_BxV[places]
        self.cache.select(places)

    def _forward(self, ids_BxT: Tensor) -> Tensor:
        """Logits behind the last token. The model's layers, with positions and masks of their own per row."""
        model, start, num_tokens = self.model, self.cache.length, ids_BxT.shape[1]
        columns_T = torch.arange(start, start + num_tokens, device=self.device)
        # Padding, and rows that are done but have not left, have no positions: any will do.
        last = model.config.max_position_embeddings - 1
        positions_BxT = (columns_T - self.starts_B[:, None]).clamp(min=0, max=last)
        rope = model.rope(ids_BxT, positions_BxT)
        config = model.config
        windows = [config.window_of(layer) for layer in range(config.num_hidden_layers)]
        masks = {window: self._mask(columns_T, window) for window in set(windows)}
        x_BxTxD = model.model.embed_tokens(ids_BxT)
        for block, window in zip(model.model.layers, windows, strict=True):
            x_BxTxD = block(x_BxTxD, rope, masks[window], self.cache)
        self.cache.advance(num_tokens)
        return model.logits(model.model.norm(x_BxTxD[:, -1]))

    def _mask(self, columns_T: Tensor, window: int | None) -> Tensor:
        """True where the token of a column may look, Bx1xTxS.

        Padding looks at itself, because a softmax over nothing is no number; nothing else looks at it.
        """
        keys_S = torch.arange(int(columns_T[-1]) + 1, device=self.device)
        seen_TxS = keys_S <= columns_T[:, None]
        if window is not None:
            seen_TxS = seen_TxS & (keys_S > columns_T[:, None] - window)
        begun_BxTxS = (keys_S >= self.starts_B[:, None])[:, None] | (keys_S == columns_T[:, None])
        mask_Bx1xTxS = (begun_BxTxS & seen_TxS)[:, None]
        # A single token's keys are cut to the window by the attention itself.
        return mask_Bx1xTxS if window is None or len(columns_T) > 1 else mask_Bx1xTxS[..., -window:]


def draw(logits_BxV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """A token per row with its log-probability and the entropy there: token_B, logp_B, entropy_B.

    A uniform number chooses the first token at which the cumulated probability is above it.
    """
    logp_BxV = (logits_BxV / (sampling.temperature or 1.0)).log_softmax(dim=-1)
    probs_BxV = logp_BxV.exp()
    entropy_B = -(probs_BxV * logp_BxV).sum(dim=-1)
    if sampling.temperature == 0:
        token_B = logits_BxV.argmax(dim=-1)
    else:
        kept_BxV = probs_BxV if sampling.top_p == 1 else _most_likely(probs_BxV, sampling.top_p)
        sums_BxV = kept_BxV.double().cumsum(dim=-1)
        wanted_Bx1 = uniform_B.double()[:, None] * sums_BxV[:, -1:]
        token_B = torch.searchsorted(sums_BxV, wanted_Bx1, right=True)[:, 0].clamp(
            max=logits_BxV.shape[1] - 1
        )
    return token_B, logp_BxV.gather(1, token_B[:, None])[:, 0], entropy_B


def _most_likely(probs_BxV: Tensor, top_p: float) -> Tensor:
    sorted_BxV, order_BxV = probs_BxV.sort(dim=-1, descending=True)
    # A token goes when those before it reach top_p already, so the most likely one always stays.
    drop_BxV = sorted_BxV.cumsum(dim=-1) - sorted_BxV >= top_p
    return probs_BxV.masked_fill(drop_BxV.scatter(1, order_BxV, drop_BxV), 0.0)


def _uniforms(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
