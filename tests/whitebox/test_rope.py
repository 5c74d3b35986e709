"""Rotary embeddings: a rotation, and one that only distances come through."""

from __future__ import annotations

import torch

from stages.whitebox.rope import apply_rope, reference_apply_rope, rope_tables


def turned(x_H: torch.Tensor, position: int) -> torch.Tensor:
    cos_PxH, sin_PxH = rope_tables(64, x_H.shape[-1], 10_000.0)
    cos, sin = cos_PxH[None, position, None, None], sin_PxH[None, position, None, None]
    return apply_rope(x_H[None, None, None], cos, sin)[0, 0, 0]


def test_scores_depend_on_the_distance_only() -> None:
    q_H, k_H = torch.randn(2, 8, dtype=torch.float64)
    near = turned(q_H, 5) @ turned(k_H, 3)
    far_along = turned(q_H, 45) @ turned(k_H, 43)
    other_distance = turned(q_H, 45) @ turned(k_H, 40)
    torch.testing.assert_close(near, far_along, atol=1e-5, rtol=1e-5)
    assert not torch.isclose(near, other_distance, atol=1e-3)


def test_turning_keeps_lengths_and_position_zero_turns_nothing() -> None:
    x_H = torch.randn(8)
    torch.testing.assert_close(turned(x_H, 17).norm(), x_H.norm())
    assert torch.equal(turned(x_H, 0), x_H)


def test_pairs_are_half_a_head_apart_and_turn_at_their_own_speed() -> None:
    x_H = torch.zeros(8)
    x_H[1] = 1.0
    speed = 10_000.0 ** (-2 / 8)
    expected = torch.zeros(8)
    expected[1], expected[5] = torch.cos(torch.tensor(3 * speed)), torch.sin(torch.tensor(3 * speed))
    torch.testing.assert_close(turned(x_H, 3), expected)


def test_the_type_of_the_input_is_kept() -> None:
    assert turned(torch.randn(8).bfloat16(), 3).dtype == torch.bfloat16


def test_the_fast_form_and_its_gradient_are_the_formula() -> None:
    cos_PxH, sin_PxH = rope_tables(12, 8, 10_000.0)
    positions_BxT = torch.randint(0, 12, (2, 5))
    cos_BxTx1xH, sin_BxTx1xH = cos_PxH[positions_BxT][:, :, None], sin_PxH[positions_BxT][:, :, None]
    x_BxTxNxH = torch.randn(2, 5, 3, 8, requires_grad=True)
    weight = torch.randn(2, 5, 3, 8)
    found = apply_rope(x_BxTxNxH, cos_BxTx1xH, sin_BxTx1xH)
    expected = reference_apply_rope(x_BxTxNxH, cos_BxTx1xH, sin_BxTx1xH)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), x_BxTxNxH),
        torch.autograd.grad((expected * weight).sum(), x_BxTxNxH),
    )
