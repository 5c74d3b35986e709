"""The gate and its gradients are the formula, and keep two tensors only."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.swiglu import reference_swiglu, swiglu


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1.0), (torch.float32, 40.0), (torch.bfloat16, 1.0)]
)
def test_it_and_its_gradients_are_the_formula(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    gate, up = (scale * torch.randn(3, 5, 7)).to(dtype).requires_grad_(), torch.randn(3, 5, 7).to(dtype)
    up.requires_grad_()
    factor = torch.randn(3, 5, 7).to(dtype)
    found, expected = swiglu(gate, up), reference_swiglu(gate, up)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (gate, up), factor), torch.autograd.grad(expected, (gate, up), factor)
    )


def test_without_gradients_it_is_the_same() -> None:
    gate, up = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(swiglu(gate, up), reference_swiglu(gate, up))


def test_only_its_two_inputs_are_kept() -> None:
    gate, up = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        swiglu(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])
