"""Chunked losses are exact: against plain PyTorch, against TRL, and where nothing counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox import losses
from stages.whitebox.losses import (
    IGNORED,
    _nats,
    _nats_and_gradient,
    _nats_and_gradient_to_fuse,
    bits_per_byte,
    cross_entropy_sum,
    sequence_log_probs,
    token_log_probs,
)
from stages.whitebox.memory_probe import PeakBytes

B, T, D, V = 2, 13, 16, 37


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, targets; every third target is ignored."""
    torch.manual_seed(0)
    hidden = torch.randn(B, T, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    targets = torch.randint(0, V, (B, T))
    targets[:, ::3] = IGNORED
    return hidden, weight, targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="sum")


@pytest.mark.parametrize("chunk_tokens", [1, 5, 1024])
def test_cross_entropy_and_its_gradients_are_exact(
    case: tuple[Tensor, Tensor, Tensor], chunk_tokens: int
) -> None:
    hidden, weight, targets = case
    found, num_tokens = cross_entropy_sum(hidden, weight, targets, chunk_tokens=chunk_tokens)
    expected = plain(hidden, weight, targets)
    assert num_tokens == int((targets != IGNORED).sum())
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(3.0 * found, (hidden, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(3.0 * expected, (hidden, weight)))


@pytest.mark.parametrize("every", [1, 2, 6])
@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_z_loss_and_its_gradients_are_the_plain_formula(every: int, chunk_tokens: int) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(B, T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    targets = torch.full((B, T), IGNORED)
    targets[:, ::every] = torch.randint(0, V, targets[:, ::every].shape)
    log_z_BxT = (hidden @ weight.T).logsumexp(dim=-1)
    expected = plain(hidden, weight, targets) + 0.01 * log_z_BxT[targets != IGNORED].square().sum()
    found, num_targets = cross_entropy_sum(hidden, weight, targets, chunk_tokens, z_loss=0.01)
    assert num_targets == B * -(-T // every)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(2.0 * found, (hidden, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(2.0 * expected, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_for_a_compiler_is_the_form_in_place(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    logits, targets = 5 * torch.randn(9, V), torch.randint(0, V, (9,))
    targets[::4] = IGNORED
    in_place, to_fuse = (
        form(logits.to(dtype), targets, 0.01) for form in (_nats_and_gradient, _nats_and_gradient_to_fuse)
    )
    assert to_fuse[1].dtype == dtype
    torch.testing.assert_close(to_fuse, in_place)
    torch.testing.assert_close(in_place[0], _nats(logits.to(dtype), targets, 0.01))


def test_fused_chunks_are_exact_and_the_rest_of_a_batch_too(
    case: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = case
    targets[:, ::3] = 5
    fused: list[int] = []

    def chunk(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        fused.append(len(logits))
        return _nats_and_gradient_to_fuse(logits, *others)

    monkeypatch.setattr(losses, "_fused_chunk", lambda: chunk)
    found, _ = cross_entropy_sum(hidden, weight, targets, chunk_tokens=10, fused=True)
    assert fused == [10, 10]
    expected = plain(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    )


def test_z_loss_alone_pulls_the_softmax_denominator_to_one() -> None:
    hidden, weight = torch.ones(1, 1, 1), torch.full((5, 1), 3.0, requires_grad=True)
    loss, _ = cross_entropy_sum(hidden, weight, torch.zeros(1, 1, dtype=torch.long), z_loss=1.0)
    without, _ = cross_entropy_sum(hidden, weight, torch.zeros(1, 1, dtype=torch.long))
    of_z = torch.autograd.grad(loss, weight)[0] - torch.autograd.grad(without, weight)[0]
    torch.testing.assert_close(of_z, torch.full((5, 1), 2 * (3.0 + math.log(5)) / 5))


@pytest.mark.parametrize("target", [V, -1])
def test_a_target_outside_the_vocabulary_is_no_token(
    case: tuple[Tensor, Tensor, Tensor], target: int
) -> None:
    hidden, weight, targets = case
    targets[0, 1] = target
    with pytest.raises(RuntimeError, match=r"out of bounds"):
        cross_entropy_sum(hidden, weight, targets)


def test_float64_inputs_give_float64_gradients(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = (part.detach() for part in case)
    h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    found = torch.autograd.grad(-token_log_probs(h, w, targets, chunk_tokens=2).sum(), (h, w))
    expected = torch.autograd.grad(plain(h, w, targets), (h, w))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_only_the_gradient_that_is_asked_for_is_made(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = case
    loss, _ = cross_entropy_sum(hidden, weight.detach(), targets)
    expected = torch.autograd.grad(plain(hidden, weight, targets), hidden)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), expected)


@pytest.mark.parametrize("chunk_tokens", [4, 1024])
def test_token_log_probs_and_their_gradients_are_exact(
    case: tuple[Tensor, Tensor, Tensor], chunk_tokens: int
) -> None:
    hidden, weight, targets = case
    found_BxT = token_log_probs(hidden, weight, targets, chunk_tokens=chunk_tokens)
    all_logp = (hidden @ weight.T).log_softmax(dim=-1)
    expected_BxT = all_logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets != IGNORED)
    torch.testing.assert_close(found_BxT, expected_BxT)
    factor_BxT = torch.randn(B, T)
    found = torch.autograd.grad((found_BxT * factor_BxT).sum(), (hidden, weight))
    expected = torch.autograd.grad((expected_BxT * factor_BxT).sum(), (hidden, weight))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        sequence_log_probs(hidden, weight, targets, chunk_tokens), expected_BxT.sum(dim=-1)
    )


def test_nothing_to_predict_is_zero_and_not_nan(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = case
    ignored = torch.full_like(targets, IGNORED)
    loss, num_tokens = cross_entropy_sum(hidden, weight, ignored)
    assert (loss.item(), num_tokens) == (0.0, 0)
    assert all(not g.any() for g in torch.autograd.grad(loss, (hidden, weight)))
    logp_B = sequence_log_probs(hidden, weight, ignored)
    assert logp_B.tolist() == [0.0, 0.0]
    assert all(not g.any() for g in torch.autograd.grad(logp_B.sum(), (hidden, weight)))


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = 1e4 * torch.eye(4)[None], torch.eye(4)
    loss, _ = cross_entropy_sum(hidden, weight, torch.tensor([[0, 1, 2, 0]]))
    assert loss.item() == pytest.approx(1e4)


def test_autocast_gives_bfloat16_products_and_float32_losses(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = case
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, num_tokens = cross_entropy_sum(hidden, weight, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss / num_tokens, plain(hidden, weight, targets) / num_tokens, atol=0.05, rtol=0
    )
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    assert (grad_hidden.dtype, grad_weight.dtype) == (torch.float32, torch.float32)


def test_all_logits_are_never_kept_for_the_backward_pass() -> None:
    hidden = torch.randn(1, 64, 8, requires_grad=True)
    weight = torch.randn(512, 8, requires_grad=True)
    targets = torch.randint(0, 512, (1, 64))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        cross_entropy_sum(hidden, weight, targets, chunk_tokens=8)
        token_log_probs(hidden, weight, targets, chunk_tokens=8)
    assert kept
    assert max(kept) <= weight.numel() < 64 * 512


def test_a_large_vocabulary_takes_a_fraction_of_the_plain_losses_memory() -> None:
    hidden = torch.randn(1, 1024, 16, requires_grad=True)
    weight = torch.randn(4096, 16, requires_grad=True)
    targets = torch.randint(0, 4096, (1, 1024))
    peaks, gradients = [], []
    for loss in (
        lambda: cross_entropy_sum(hidden, weight, targets, 64)[0],
        lambda: plain(hidden, weight, targets),
    ):
        with PeakBytes() as peak:
            gradients.append(torch.autograd.grad(loss(), (hidden, weight)))
        peaks.append(peak.peak_bytes)
    assert peaks[0] < peaks[1] / 8
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm()


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(2) * 30, 10) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="over 0 bytes"):
        bits_per_byte(1.0, 0)


def test_without_gradients_a_parameter_gives_the_same_loss_and_no_graph() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(B, T, D), torch.nn.Parameter(torch.randn(V, D))
    targets = torch.randint(0, V, (B, T))
    expected, _ = cross_entropy_sum(hidden, weight, targets)
    with torch.no_grad():
        found, _ = cross_entropy_sum(hidden, weight, targets)
    assert torch.equal(found, expected) and not found.requires_grad and expected.requires_grad
