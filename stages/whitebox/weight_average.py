"""The exponential moving average of the weights (EMA): Polyak and Juditsky 1992.

Single steps jump around the path of the training; their average lies on it, and scores as if the learning
rate had come down already. The average is kept beside the optimizer's moments, as "average", so that
checkpoints hold it and a resumed run goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

AVERAGE, NUM_AVERAGED = "average", "num_averaged"


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """From now on each `optimizer.step()` updates the averages of its parameters.

    average = decay x average + (1 - decay) x weight. Early on the decay is (1 + t) / (10 + t) after t steps
    if that is less: with the full one the first weights, which are noise, would stay for 1 / (1 - decay)
    steps.

    Raises:
        ValueError: `decay` is not between 0 and 1.
    """
    if not 0 < decay < 1:
        raise ValueError(f"the decay of the average is {decay}, expected a number between 0 and 1")

    def update(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        with torch.no_grad():
            for parameter in _parameters(optimizer):
                _update(optimizer.state[parameter], parameter, decay)

    optimizer.register_step_post_hook(update)


@contextmanager
def averaged_weights(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Within it the parameters hold their averages, where there are any; then their own values again."""
    optimizers = list(optimizers)
    kept = [(parameter, parameter.detach().clone()) for parameter, _ in _averages(optimizers)]
    use_averages(optimizers)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, own in kept:
                parameter.copy_(own)


def use_averages(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Overwrites the parameters with their averages, where there are any."""
    with torch.no_grad():
        for parameter, average in _averages(optimizers):
            parameter.copy_(average)


def _update(state: dict[str, Tensor], weight: Tensor, decay: float) -> None:
    if AVERAGE not in state:
        state[AVERAGE] = weight.detach().clone()
        state[NUM_AVERAGED] = torch.zeros((), dtype=torch.float32)
    state[NUM_AVERAGED] = state[
        NUM_AVERAGED
    ].cpu()  # from a checkpoint it may come on a GPU, and be waited for
    done = float(state[NUM_AVERAGED])
    state[AVERAGE].lerp_(weight, 1 - min(decay, (1 + done) / (10 + done)))
    state[NUM_AVERAGED] += 1


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    for group in optimizer.param_groups:
        yield from (parameter for parameter in group["params"] if parameter.grad is not None)


def _averages(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[tuple[Tensor, Tensor]]:
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            if AVERAGE in state:
                yield parameter, state[AVERAGE]
