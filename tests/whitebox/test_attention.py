"""The fused kernel does what the formula says, with every mask."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.attention import (
    attend,
    block_mask,
    continuation_mask,
    document_mask,
    reference_attend,
)

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


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3, 1, 100])
@pytest.mark.parametrize("has_documents", [True, False])
def test_three_ways_agree_with_windows_and_documents(window: int | None, has_documents: bool) -> None:
    """On a CPU FlexAttention runs uncompiled and has no gradient; the next test has it where CUDA is."""
    q, k, v = heads(N, 11), heads(K, 11), heads(K, 11)
    ids = torch.tensor([[0] * 5 + [1] * 6, [5] * 10 + [9]])
    plain = document_mask(ids, window) if has_documents else continuation_mask(0, 11, q.device, window)
    expected = reference_attend(q, k, v, plain)
    found = attend(q, k, v, plain)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    fused = torch.autograd.grad(found.square().sum(), (q, k, v))
    torch.testing.assert_close(fused, gradients, atol=1e-5, rtol=1e-4)
    blocks = block_mask(ids if has_documents else None, 11, q.device, window)
    with torch.no_grad():
        torch.testing.assert_close(attend(q.detach(), k.detach(), v.detach(), blocks), expected)
        half = attend(q.detach(), k.detach(), v.detach().bfloat16(), blocks)  # as autocast leaves them
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has a gradient on CUDA only")
@pytest.mark.parametrize("window", [None, 40])
def test_flex_has_the_gradient_of_the_formula(window: int | None) -> None:
    q, k, v = (torch.randn(B, n, 200, 64, device="cuda", requires_grad=True) for n in (N, K, K))
    ids = torch.arange(200, device="cuda").div(70, rounding_mode="floor").repeat(B, 1)
    expected = reference_attend(q, k, v, document_mask(ids, window))
    found = attend(q, k, v, block_mask(ids, 200, q.device, window))
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    ours = torch.autograd.grad(found.square().sum(), (q, k, v))
    torch.testing.assert_close(ours, gradients, atol=5e-2, rtol=5e-2)


def test_a_window_holds_the_token_itself_and_those_just_before() -> None:
    mask = continuation_mask(2, 2, torch.device("cpu"), window=2)
    assert mask[0, 0].tolist() == [[False, True, True, False], [False, False, True, True]]
    documents = document_mask(torch.tensor([[3, 3, 3, 8]]), window=2)
    assert documents[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
