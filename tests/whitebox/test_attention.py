"""The fused kernel does what the formula says, with every mask."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.attention import attend, continuation_mask, document_mask, reference_attend

B, N, K, H = 2, 4, 2, 8


def heads(num_heads: int, num_tokens: int) -> torch.Tensor:
    return torch.randn(B, num_heads, num_tokens, H, requires_grad=True)


@pytest.mark.parametrize(("num_new", "num_all"), [(9, 9), (1, 9), (4, 9), (1, 1)])
def test_fused_and_reference_agree_with_and_without_cached_tokens(num_new: int, num_all: int) -> None:
    q, k, v = heads(N, num_new), heads(K, num_all), heads(K, num_all)
    expected = reference_attend(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    fused = torch.autograd.grad(attend(q, k, v).square().sum(), (q, k, v))
    torch.testing.assert_close(fused, gradients, atol=1e-5, rtol=1e-4)


def test_fused_and_reference_agree_within_documents() -> None:
    q, k, v = heads(N, 7), heads(K, 7), heads(K, 7)
    mask = document_mask(torch.tensor([[0, 0, 0, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 9]]))
    torch.testing.assert_close(attend(q, k, v, mask), reference_attend(q, k, v, mask))


def test_document_mask_is_causal_blocks() -> None:
    mask = document_mask(torch.tensor([[3, 3, 8]]))
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [False, False, True]]


def test_continuation_mask_sees_all_cached_tokens() -> None:
    mask = continuation_mask(2, 2, torch.device("cpu"))
    assert mask[0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]
