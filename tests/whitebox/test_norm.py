"""RMSNorm: the fast form and its gradient are the formula, in 32 and in 16 bits."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.norm import RMSNorm, reference_rms_norm


@pytest.fixture
def norm() -> RMSNorm:
    torch.manual_seed(0)
    module = RMSNorm(16, eps=1e-6)
    torch.nn.init.normal_(module.weight)
    return module


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 16), (2, 5, 3, 16)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_the_fast_form_and_its_gradients_are_the_formula(
    norm: RMSNorm, shape: tuple[int, ...], scale: float
) -> None:
    x = (scale * torch.randn(shape)).requires_grad_()
    factor = torch.randn(shape)
    found, expected = norm(x), reference_rms_norm(x, norm.weight, norm.eps)
    torch.testing.assert_close(found, expected)
    mine = torch.autograd.grad((found * factor).sum(), (x, norm.weight))
    formula = torch.autograd.grad((expected * factor).sum(), (x, norm.weight))
    torch.testing.assert_close(mine, formula, atol=1e-5 / scale, rtol=1e-4)


def test_sixteen_bits_do_not_overflow(norm: RMSNorm) -> None:
    x = torch.full((2, 16), 3e30, dtype=torch.bfloat16)
    x[0] = 1e-30
    found = norm(x / 1e15)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, reference_rms_norm(x / 1e15, norm.weight, norm.eps))


def test_the_result_has_a_root_mean_square_of_one_before_the_weight() -> None:
    found = RMSNorm(64, eps=1e-6)(7 * torch.randn(5, 64))
    torch.testing.assert_close(found.square().mean(dim=-1), torch.ones(5), atol=1e-4, rtol=0)
