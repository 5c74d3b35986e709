"""The average of the weights is the recursion written out, and the weights come back from an evaluation."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.weight_average import averaged_weights, keep_average, use_averages


def trained(steps: int, decay: float) -> tuple[torch.nn.Parameter, torch.optim.Optimizer, list[torch.Tensor]]:
    """A parameter after some steps of plain gradient descent, and its values after each."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    keep_average(optimizer, decay)
    values = []
    for step in range(steps):
        parameter.grad = torch.tensor([1.0, float(step)])
        optimizer.step()
        values.append(parameter.detach().clone())
    return parameter, optimizer, values


@pytest.mark.parametrize("decay", [0.5, 0.05, 0.999])
def test_it_is_the_recursion(decay: float) -> None:
    parameter, optimizer, values = trained(20, decay)
    expected = values[0].double()
    for step, value in enumerate(values):
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value.double()
    use_averages([optimizer])
    torch.testing.assert_close(parameter.detach().double(), expected)


def test_the_own_values_come_back_after_an_error_too() -> None:
    parameter, optimizer, values = trained(5, 0.9)
    with pytest.raises(KeyError), averaged_weights([optimizer]):
        assert not torch.equal(parameter, values[-1])
        raise KeyError
    assert torch.equal(parameter, values[-1])


def test_without_averages_nothing_happens() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with averaged_weights([torch.optim.SGD([parameter], lr=0.1)]):
        assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        keep_average(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), decay)
