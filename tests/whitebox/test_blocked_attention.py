"""Attention by blocks does what the formula says; in bfloat16 it is as close to it as the fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox import blocked_attention
from stages.whitebox.attention import attend, continuation_mask, document_mask, reference_attend
from stages.whitebox.blocked_attention import (
    BLOCK_QUERIES,
    EVEN_TOKENS,
    MAX_BLOCKS,
    attend_in_blocks,
    few_sizes,
)


def drawn(num_heads: int, num_tokens: int, size: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, num_tokens, num_heads, size, requires_grad=True).transpose(1, 2)


@pytest.mark.parametrize(
    ("query_heads", "key_heads", "num_new", "num_all"),
    [
        (4, 2, 300, 300),
        (4, 4, 5, 5),
        (6, 2, 140, 200),
        (2, 1, BLOCK_QUERIES * MAX_BLOCKS + 7, BLOCK_QUERIES * MAX_BLOCKS + 7),
    ],
)
@pytest.mark.parametrize("has_mask", [False, True])
def test_outputs_and_gradients_are_those_of_the_formula(
    query_heads: int, key_heads: int, num_new: int, num_all: int, has_mask: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = drawn(query_heads, num_new, 8), drawn(key_heads, num_all, 8), drawn(key_heads, num_all, 5)
    mask = continuation_mask(num_all - num_new, num_new, q.device, window=50) if has_mask else None
    if has_mask and num_new == num_all:
        mask = document_mask(torch.randint(0, 3, (2, num_all)).sort(dim=1).values)
    expected, found = reference_attend(q, k, v, mask), attend_in_blocks(q, k, v, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    ours = torch.autograd.grad(found.square().sum(), (q, k, v))
    torch.testing.assert_close(ours, gradients, atol=5e-5, rtol=1e-4)


def test_some_of_the_queries_in_rising_order() -> None:
    torch.manual_seed(0)
    q, k, v = drawn(2, 300, 8), drawn(2, 300, 8), drawn(2, 300, 8)
    wanted = torch.arange(1, 300, 2)
    mask = continuation_mask(0, 300, q.device)[:, :, wanted]
    found = attend_in_blocks(q[:, :, wanted], k, v, mask)
    torch.testing.assert_close(found, reference_attend(q, k, v)[:, :, wanted], atol=1e-5, rtol=1e-5)


def test_where_nobody_asks_nothing_has_a_gradient() -> None:
    q, k, v = drawn(4, 0, 8), drawn(2, 9, 8), drawn(2, 9, 5)
    found = attend_in_blocks(q, k, v, continuation_mask(0, 9, q.device)[:, :, :0])
    assert found.shape == (2, 4, 0, 5)
    for gradient in torch.autograd.grad(found.sum(), (q, k, v)):
        assert not gradient.any()


def test_in_bfloat16_as_close_to_the_formula_as_the_fused_kernel() -> None:
    torch.manual_seed(0)
    q, k, v = drawn(4, 300, 64), drawn(2, 300, 64), drawn(2, 300, 64)
    exact = [x.double().detach().requires_grad_() for x in (q, k, v)]
    expected = reference_attend(*exact)
    weights = torch.randn(expected.shape)
    gradients = torch.autograd.grad((expected * weights).sum(), exact)

    def errors(output: Tensor, inputs: tuple[Tensor, ...]) -> list[float]:
        own = torch.autograd.grad((output.float() * weights).sum(), inputs)
        pairs = zip((output, *own), (expected, *gradients), strict=True)
        return [float((ours - right).detach().norm() / right.detach().norm()) for ours, right in pairs]

    inputs = tuple(x.detach().bfloat16().requires_grad_() for x in (q, k, v))
    fused = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    blocked = attend(*inputs)
    assert blocked.dtype == torch.bfloat16
    for ours, theirs in zip(errors(blocked, inputs), errors(fused, inputs), strict=True):
        assert ours < max(0.005, 1.6 * theirs)


def test_bfloat16_goes_by_blocks_and_float32_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def record(num_queries: int, num_keys: int) -> object:
        sizes.append(num_queries)
        return blocks(num_queries, num_keys)

    blocks = blocked_attention._blocks
    monkeypatch.setattr(blocked_attention, "_blocks", record)
    wide = [x.detach() for x in (drawn(2, 6, 8), drawn(2, 6, 8), drawn(2, 6, 8))]
    attend(*wide)
    assert sizes == []
    attend(*(x.bfloat16() for x in wide))
    assert sizes == [EVEN_TOKENS]


def test_no_query_reads_a_block_behind_it() -> None:
    for num_queries, num_keys in ((300, 300), (5, 9), (4000, 4000)):
        blocks = list(blocked_attention._blocks(num_queries, num_keys))
        assert len(blocks) <= MAX_BLOCKS
        assert [number for asking, _ in blocks for number in range(asking.start, asking.stop)] == list(
            range(num_queries)
        )
        assert all(seen == slice(0, num_keys - num_queries + asking.stop) for asking, seen in blocks)


def test_filled_up_counts_are_few_and_close() -> None:
    sizes = {count: few_sizes(count) for count in range(10_000)}
    assert all(0 <= size - count <= max(EVEN_TOKENS - 1, count / 16) for count, size in sizes.items())
    assert all(size % EVEN_TOKENS == 0 and few_sizes(size) == size for size in sizes.values())
    assert len({size for count, size in sizes.items() if 1024 < count <= 4096}) == 32
