"""The loss around a model, along random directions: Li et al. 2018, arXiv:1712.09913.

A direction that is drawn at random says more of the weights' scale than of the loss: a network whose weights
are twice as large, with a norm behind them, computes the same and looks half as steep. So every filter of the
direction (the weights of one output feature, here one row of a matrix) is scaled to the length of the
model's own (section 4). At a share of 1 every row has been moved by its own length.

Shapes: V values of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Direction = Mapping[str, Tensor]


def filter_normalised_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction in which each row is as long as the model's; 0 for norms, as the paper has biases.

    Drawn on the CPU in the order of the parameters, so that a seed means the same direction everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            direction[name] = torch.zeros_like(weight.detach())
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        rows, own = drawn.flatten(1), weight.detach().flatten(1)
        scale = own.norm(dim=1) / rows.norm(dim=1).clamp_min(1e-12)
        direction[name] = (rows * scale[:, None]).view_as(weight)
    return direction


@torch.no_grad()
def loss_surface(
    model: nn.Module,
    directions: Sequence[Direction],
    shares: Sequence[Sequence[float]],
    loss: Callable[[], float],
) -> Iterator[float]:
    """`loss()` with the weights moved by `share` x direction, summed over the directions, for all `shares`.

    The weights are put back, bit for bit, when the iterator is used up or closed.
    """
    with _kept_weights(model) as kept:
        for point in shares:
            for name, weight in model.named_parameters():
                weight.copy_(kept[name])
                for share, direction in zip(point, directions, strict=True):
                    weight.add_(direction[name], alpha=share)
            yield loss()


@contextmanager
def _kept_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(kept[name])
