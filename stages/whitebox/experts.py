"""Mixture of experts: each token goes through a few of many feed-forward layers (Shazeer et al. 2017,
arXiv:1701.06538).

A router scores all experts for each token and takes the best k. The tokens are then sorted by expert, so that
each expert's rows lie together, and one grouped product multiplies every run of rows with its own matrix: no
loop over experts, no padding, no token dropped. Two routers:

    softmax   Qwen3-MoE (arXiv:2505.09388); a loss pulls the loads together (`load_balancing_loss`)
    sigmoid   DeepSeek-V3 (arXiv:2412.19437); a bias per expert does, outside of the gradient
              (Wang et al. 2024, arXiv:2408.15664: `LoadBalancer`)

Shapes: B batch, T tokens, M = B x T, R = M x k rows, D width, F feed-forward, E experts, k experts of a
token, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.whitebox.config import ModelConfig
from stages.whitebox.device import in_product_dtype
from stages.whitebox.feed_forward import FeedForward

BIAS_STEP = 0.001
"""How far a bias moves per update of the weights: the paper's best, gamma in its algorithm 1."""

GROUPED_ALIGNMENT_BYTES = 16


class Routing(NamedTuple):
    """What a router did with M tokens, summed over them, for the loss and for the bias."""

    counts_E: Tensor
    """How many tokens took each expert, k M in all; without gradient."""
    probabilities_E: Tensor
    """Sum of the tokens' probabilities."""
    num_tokens: int


class Router(nn.Module):
    """Which k experts a token takes, and with which weights; in float32 whatever comes in."""

    e_score_correction_bias: Tensor
    load_E: Tensor | None
    """How many tokens took each expert in training since a `LoadBalancer` asked; None where none asks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_chosen, self.normalize = config.num_experts_per_tok, config.norm_topk_prob
        self.is_sigmoid, self.scale = config.scoring_func == "sigmoid", config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        if self.is_sigmoid:
            self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts))
        self.register_buffer("load_E", None, persistent=False)

    def forward(self, x_MxD: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Returns weights_Mxk, experts_Mxk, and what the balance needs."""
        with torch.autocast(x_MxD.device.type, enabled=False):
            logits_MxE = F.linear(x_MxD.float(), self.weight.float())
        scores_MxE = logits_MxE.sigmoid() if self.is_sigmoid else logits_MxE.softmax(dim=-1)
        # The bias says who is chosen and never how much it weighs, so it passes no gradient.
        preferred_MxE = scores_MxE + self.e_score_correction_bias if self.is_sigmoid else scores_MxE
        experts_Mxk = preferred_MxE.topk(self.num_chosen, dim=-1).indices
        weights_Mxk = scores_MxE.gather(1, experts_Mxk)
        if self.normalize:
            weights_Mxk = weights_Mxk / (weights_Mxk.sum(dim=-1, keepdim=True) + 1e-20)
        counts_E = _counts(experts_Mxk, logits_MxE.shape[1])
        if self.training and self.load_E is not None:
            self.load_E += counts_E
        routing = Routing(counts_E, scores_MxE.sum(dim=0), logits_MxE.shape[0])
        return weights_Mxk * self.scale, experts_Mxk, routing


class Experts(nn.Module):
    """E gated feed-forward layers; gate and up projection are one matrix, as in transformers 5."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.num_experts, config.moe_intermediate_size, config.hidden_size)
        self.gate_up_proj = nn.Parameter(torch.empty(shape[0], 2 * shape[1], shape[2]))
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))

    def forward(self, x_RxD: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert, `counts_E` of them for each; returns y_RxD."""
        gate_RxF, up_RxF = grouped_linear(x_RxD, self.gate_up_proj, counts_E).chunk(2, dim=-1)
        return grouped_linear(F.silu(gate_RxF) * up_RxF, self.down_proj, counts_E)


class MixtureOfExperts(nn.Module):
    """Router, chosen experts, and where the configuration says so experts that all tokens share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        if config.n_shared_experts:
            shared_size = config.n_shared_experts * config.moe_intermediate_size
            self.shared_experts = FeedForward(config.hidden_size, shared_size)
        self.routing: Routing | None = None
        """Of the latest forward pass; the loss of `load_balancing_loss` goes back through it."""

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        """Returns y_BxTxD."""
        x_MxD = x_BxTxD.flatten(0, -2)
        weights_Mxk, experts_Mxk, self.routing = self.gate(x_MxD)
        # Rows of a token, then rows of an expert: permutations, whose gradients add nothing in varying order.
        order_R = experts_Mxk.flatten().argsort(stable=True)
        x_RxD = x_MxD[:, None].expand(-1, experts_Mxk.shape[1], -1).flatten(0, 1).index_select(0, order_R)
        y_RxD = self.experts(x_RxD, self.routing.counts_E)
        y_MxkxD = y_RxD.index_select(0, order_R.argsort()).unflatten(0, experts_Mxk.shape)
        y_BxTxD = (weights_Mxk[:, None].to(y_MxkxD.dtype) @ y_MxkxD).view_as(x_BxTxD)
        return y_BxTxD + self.shared_experts(x_BxTxD) if hasattr(self, "shared_experts") else y_BxTxD


def grouped_linear(x_RxI: Tensor, weight_ExOxI: Tensor, counts_E: Tensor) -> Tensor:
    """Each run of `counts_E[e]` rows times its own matrix, transposed: y_RxO. One call for all experts.

    Widths that do not fill 16 bytes, which the grouped kernel refuses, go one by one.
    Measured on a CPU, forward and backward, against a loop over the experts and against one product padded to
    the longest run: 64 experts of 192, 4 a token, 29.1, 32.9 and 66.4 ms; 4 of 768, one a token, 22.8, 23.1
    and 32.5 (tests/benchmarks/grouped_products.py).
    """
    x_RxI, weight_ExOxI = in_product_dtype(x_RxI), in_product_dtype(weight_ExOxI)  # unknown to autocast
    row_bytes = [size * x_RxI.element_size() for size in weight_ExOxI.shape[1:]]
    if any(size % GROUPED_ALIGNMENT_BYTES for size in row_bytes):
        runs = zip(x_RxI.split(counts_E.tolist()), weight_ExOxI, strict=True)
        return torch.cat([F.linear(rows_MxI, weight_OxI) for rows_MxI, weight_OxI in runs])
    offsets_E = counts_E.cumsum(0).to(torch.int32)
    return F.grouped_mm(x_RxI, weight_ExOxI.transpose(-1, -2), offs=offsets_E)


def reference_experts(x_MxD: Tensor, weights_Mxk: Tensor, experts_Mxk: Tensor, experts: Experts) -> Tensor:
    """The same as it is defined: each token through each of its experts, y_MxD. Slow."""
    rows = []
    for x_D, weights_k, experts_k in zip(x_MxD, weights_Mxk, experts_Mxk, strict=True):
        parts = []
        for weight, expert in zip(weights_k, experts_k, strict=True):
            gate_F, up_F = (experts.gate_up_proj[expert] @ x_D).chunk(2)
            parts.append(weight * (experts.down_proj[expert] @ (F.silu(gate_F) * up_F)))
        rows.append(torch.stack(parts).sum(dim=0))
    return torch.stack(rows)


def load_balancing_loss(routings: Iterable[Routing]) -> Tensor:
    """E sum_e (share of tokens that took e) x (mean probability of e), over all layers; k when equal.

    Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6, as transformers' `load_balancing_loss_func`. The
    shares have no gradient; it goes through the probabilities.

    Raises:
        ValueError: there are no routings; the model has no experts, or has read nothing yet.
    """
    found = list(routings)
    if not found:
        raise ValueError(
            "no layer has chosen experts yet; this is for models with num_experts after a forward pass"
        )
    counts_E = torch.stack([routing.counts_E for routing in found]).sum(dim=0)
    probabilities_E = torch.stack([routing.probabilities_E for routing in found]).sum(dim=0)
    num_rows = sum(routing.num_tokens for routing in found)
    return len(counts_E) * (counts_E.float() / num_rows) @ (probabilities_E / num_rows)


def _counts(experts_Mxk: Tensor, num_experts: int) -> Tensor:
    """By comparison and not bincount, which on a GPU waits for the result."""
    numbers_E = torch.arange(num_experts, device=experts_Mxk.device)
    return (experts_Mxk.flatten()[:, None] == numbers_E).sum(dim=0)


class LoadBalancer:
    """Keeps the loads of a sigmoid router's experts equal by its bias; call it after every update.

    Between two calls it adds up what the routers chose in training, over all micro batches and, where
    torch.distributed runs, over all processes.
    """

    def __init__(self, model: nn.Module, step: float = BIAS_STEP) -> None:
        self.routers = [
            module for module in model.modules() if isinstance(module, Router) and module.is_sigmoid
        ]
        self.step = step
        # In the routers and not here: a hook of its own for each layer would be compiled for each layer.
        for router in self.routers:
            router.load_E = torch.zeros_like(router.e_score_correction_bias)

    def forget(self) -> None:
        """What was chosen since the last update counts no more."""
        for load_E in self._loads():
            load_E.zero_()

    def _loads(self) -> list[Tensor]:
        return [router.load_E for router in self.routers if router.load_E is not None]

    @torch.no_grad()
    def update(self) -> None:
        """An expert with less than the mean load is preferred a little more, one with more a little less."""
        for router, load_E in zip(self.routers, self._loads(), strict=True):
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(load_E)
            router.e_score_correction_bias += self.step * (load_E.mean() - load_E).sign()
        self.forget()
