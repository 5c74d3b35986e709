"""What goes on in each layer: how large its activations and its gradients are.

A residual stream that grows much faster than its depth, one feature a thousand times the others (Sun et al.
2024, arXiv:2402.17762), a layer whose gradient is nothing beside the rest: all of it shows here before it
shows in the loss. One forward and one backward pass of a few hundred tokens; nothing of the model changes.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM


@dataclass(frozen=True)
class LayerStatistics:
    """Of one layer. Root mean squares are over all tokens and features."""

    residual_rms: float
    """The residual stream behind the layer."""
    attention_rms: float
    """What attention added to it."""
    feed_forward_rms: float
    """What the feed-forward half added."""
    largest: float
    """The largest value of the residual stream, by size."""
    grad_norm: float
    """Norm of the gradient of the mean loss with respect to all weights of the layer."""


def measure_layers(model: CausalLM, ids_BxT: Tensor, targets_BxT: Tensor) -> list[LayerStatistics]:
    """The statistics of every layer on these tokens, the first layer first.

    Gradients are made for the weights and not stored in them. Runs as the model stands, in training or in
    evaluation; in training a compiled layer runs compiled, and calls no hooks.
    """
    with torch.enable_grad(), _kept_outputs(model) as kept:
        hidden_BxTxD = model.hidden_states(ids_BxT)
        nats, num_targets = cross_entropy_sum(hidden_BxTxD, model.output_weight(), targets_BxT)
        layers = [list(block.parameters()) for block in model.model.layers]
        # An expert that no token chose has no gradient.
        flat = [parameter for layer in layers for parameter in layer]
        grads = torch.autograd.grad(nats / num_targets, flat, allow_unused=True)
    statistics, start = [], 0
    for block, parameters in zip(model.model.layers, layers, strict=True):
        own = [grad for grad in grads[start : start + len(parameters)] if grad is not None]
        start += len(parameters)
        statistics.append(
            LayerStatistics(
                residual_rms=_rms(kept[block]),
                attention_rms=_rms(kept[block.self_attn]),
                feed_forward_rms=_rms(kept[block.mlp]),
                largest=float(kept[block].abs().max()),
                grad_norm=float(torch.nn.utils.get_total_norm(own)),
            )
        )
    return statistics


@contextmanager
def _kept_outputs(model: CausalLM) -> Iterator[dict[nn.Module, Tensor]]:
    """The last output of every layer and of its halves, by module."""
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept[module] = (output[0] if isinstance(output, tuple) else output).detach()

    watched = [part for block in model.model.layers for part in (block, block.self_attn, block.mlp)]
    handles = [part.register_forward_hook(keep) for part in watched]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
