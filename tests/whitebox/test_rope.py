"""Rotary embeddings: a rotation, and one that only distances come through."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.rope import apply_rope, reference_apply_rope, rope_frequencies, rope_tables
from stages.whitebox.rope_scaling import RopeScaling, read_rope_scaling

SCALINGS = [
    RopeScaling("linear", 4.0),
    RopeScaling("dynamic", 2.0),
    RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
    RopeScaling("yarn", 4.0, 32768),
    RopeScaling("yarn", 16.0, 2048, beta_fast=32.0, beta_slow=1.0, attention_factor=1.0),
    RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=0.5, truncate=False),
]


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


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10_000.0), (128, 500_000.0), (20, 1e6)])
def test_scaled_frequencies_are_bit_for_bit_those_of_transformers(
    scaling: RopeScaling, head_dim: int, theta: float
) -> None:
    transformers = pytest.importorskip("transformers")
    parameters = {"rope_theta": theta, **scaling.to_hf()}
    config = transformers.LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=1000,
        rope_parameters=parameters,
    )
    make = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling.rope_type]
    expected, factor = make(config, seq_len=1700)
    assert torch.equal(rope_frequencies(head_dim, theta, scaling, stretch=1.7), expected)
    assert scaling.score_scale() == factor
    assert read_rope_scaling({"rope_parameters": parameters}) == scaling


def test_scaling_is_read_in_the_old_places_too() -> None:
    old = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 100}
    assert read_rope_scaling(old) == RopeScaling("yarn", 4.0, 100)
    outside = {**old, "original_max_position_embeddings": 25}
    assert read_rope_scaling(outside) == RopeScaling("yarn", 4.0, 25)
    both = {
        "full_attention": {"rope_type": "linear", "factor": 2.0},
        "sliding_attention": {"rope_type": "default"},
    }
    with pytest.raises(ValueError, match="another RoPE for each kind of layer"):
        read_rope_scaling({"rope_parameters": both})
    with pytest.raises(ValueError, match=r"factor is 0\.5"):
        RopeScaling("linear", 0.5)
