"""The chunked distillation loss and its gradients against torch's kl_div on plain logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stages.whitebox.distillation_loss import distillation_sum
from stages.whitebox.losses import cross_entropy_sum


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_kl_div_on_plain_logits(share: float, weighted: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(3, 7, 24), torch.randn(50, 24)
    targets = torch.randint(0, 50, (3, 7)).masked_fill(torch.rand(3, 7) < 0.4, -100)
    weights = torch.rand(3, 7) if weighted else None
    found, count = distillation_sum(
        hidden, weight, teacher_hidden, teacher_weight, targets, 2.0, share, weights, chunk_tokens=4
    )
    found.backward()
    ours = hidden.grad.clone(), weight.grad.clone()  # type: ignore[union-attr]
    hidden.grad = weight.grad = None
    counted = targets != -100
    logits, theirs = (hidden @ weight.T)[counted], (teacher_hidden @ teacher_weight.T)[counted]
    kl = F.kl_div(
        F.log_softmax(logits / 2, -1), F.log_softmax(theirs / 2, -1), reduction="none", log_target=True
    ).sum(-1)
    nats = F.cross_entropy(logits, targets[counted], reduction="none")
    each = (1 - share) * nats + share * 4 * kl
    wanted = (each * (weights[counted] if weights is not None else 1.0)).sum()
    wanted.backward()
    assert count == int(counted.sum())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-5)


def test_a_share_of_nothing_is_the_usual_loss_and_a_teacher_like_the_student_costs_nothing() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8), torch.randn(30, 8)
    targets = torch.randint(0, 30, (2, 5))
    plain, _ = cross_entropy_sum(hidden, weight, targets)
    found, _ = distillation_sum(hidden, weight, torch.randn(2, 5, 8), weight, targets, 2.0, 0.0)
    torch.testing.assert_close(found, plain)
    same, _ = distillation_sum(hidden, weight, hidden, weight, targets, 2.0, 1.0)
    assert abs(float(same)) < 1e-4


def test_no_logits_of_all_tokens_are_held() -> None:
    """The largest tensor that forward and backward make has a chunk's tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = function(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(t)
            )
            return made

    hidden, weight = torch.randn(1, 400, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    with Sizes():
        total, _ = distillation_sum(
            hidden, weight, torch.randn(1, 400, 4), torch.randn(500, 4), torch.randint(0, 500, (1, 400)),
            temperature=2.0, share=0.5, chunk_tokens=16,
        )  # fmt: skip
        total.backward()
    assert 16 * 500 <= max(sizes) < 400 * 500 / 4
