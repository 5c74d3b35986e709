"""Activations, gradients, attention maps and the landscape, each against a plain computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stages.whitebox import attention
from stages.whitebox.activations import measure_layers
from stages.whitebox.attention_maps import HABITS, attention_maps, habits
from stages.whitebox.config import ModelConfig
from stages.whitebox.induction import wire_induction_circuit
from stages.whitebox.landscape import filter_normalised_direction, loss_surface
from stages.whitebox.model import CausalLM


@pytest.fixture
def model() -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(ModelConfig.from_depth(2, 61, max_position_embeddings=32)).eval()


@pytest.fixture
def ids_BxT() -> torch.Tensor:
    return torch.randint(4, 61, (3, 12), generator=torch.Generator().manual_seed(1))


def angles(config: ModelConfig, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of RoPE, 1xTx1xH."""
    turns_P = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles_TxH = (torch.arange(num_tokens)[:, None] * turns_P).repeat(1, 2)
    return angles_TxH.cos()[None, :, None], angles_TxH.sin()[None, :, None]


def plain_loss(model: CausalLM, ids_BxT: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(ids_BxT[:, :-1]).flatten(0, 1), ids_BxT[:, 1:].flatten())


def test_gradient_norms_are_those_of_backward_and_nothing_stays_behind(
    model: CausalLM, ids_BxT: torch.Tensor
) -> None:
    with torch.no_grad():  # as evaluation runs
        found = measure_layers(model, ids_BxT[:, :-1], ids_BxT[:, 1:])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    plain_loss(model, ids_BxT).backward()
    for block, layer in zip(model.model.layers, found, strict=True):
        squares = sum(float(p.grad.square().sum()) for p in block.parameters())
        assert layer.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_activations_are_those_of_the_layers_run_one_by_one(model: CausalLM, ids_BxT: torch.Tensor) -> None:
    found = measure_layers(model, ids_BxT[:, :-1], ids_BxT[:, 1:])
    rope = angles(model.config, ids_BxT.shape[1] - 1)
    x = model.model.embed_tokens(ids_BxT[:, :-1])
    for block, layer in zip(model.model.layers, found, strict=True):
        attended = block.self_attn(block.input_layernorm(x), rope).detach()
        fed = block.mlp(block.post_attention_layernorm(x + attended)).detach()
        x = (x + attended + fed).detach()
        for value, expected in (
            (layer.attention_rms, attended.std(correction=0).square() + attended.mean().square()),
            (layer.feed_forward_rms, fed.square().mean()),
            (layer.residual_rms, x.square().mean()),
        ):
            assert value == pytest.approx(math.sqrt(float(expected)), rel=1e-4)
        assert layer.largest == pytest.approx(float(x.abs().max()), rel=1e-5)


def test_maps_are_the_softmax_of_the_scores(model: CausalLM) -> None:
    ids = [5, 9, 5, 20, 33, 9]
    maps_LxNxTxT = attention_maps(model, ids)
    assert maps_LxNxTxT.shape == (2, 2, 6, 6)
    torch.testing.assert_close(maps_LxNxTxT.sum(-1), torch.ones(2, 2, 6))
    attn, rope = model.model.layers[0].self_attn, angles(model.config, len(ids))
    x = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor([ids])))
    q = attention.apply_rope(attn.q_norm(attn.q_proj(x).unflatten(-1, (-1, attn.head_dim))), *rope)[0]
    k = attention.apply_rope(attn.k_norm(attn.k_proj(x).unflatten(-1, (-1, attn.head_dim))), *rope)[0]
    for head in range(2):
        scores = q[:, head] @ k[:, head * k.shape[1] // 2].T / math.sqrt(attn.head_dim)
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
        torch.testing.assert_close(maps_LxNxTxT[0, head], scores.softmax(-1), atol=1e-5, rtol=1e-4)


def test_looking_leaves_the_model_as_it_was(model: CausalLM) -> None:
    attend, before = attention.attend, model(torch.tensor([[5, 9, 5]]))
    model.train()
    attention_maps(model, [5, 9, 5])
    assert model.training and attention.attend is attend
    with pytest.raises(ValueError, match="no tokens"):
        attention_maps(model, [])
    with pytest.raises(ValueError, match="the model was built for 32"):
        attention_maps(model, [5] * 40)
    assert model.training and attention.attend is attend
    assert torch.equal(model(torch.tensor([[5, 9, 5]])), before)


def test_the_wired_circuit_shows_its_two_habits() -> None:
    torch.manual_seed(0)
    model = CausalLM(ModelConfig.from_depth(4, 61, max_position_embeddings=64))
    wire_induction_circuit(model, 0)
    ids = [7, 20, 33, 41, 12, 50, 7, 20, 33, 41, 12, 50]
    maps_LxNxTxT = attention_maps(model, ids)
    before = max(habits(map_TxT, ids)["the token before"] for map_TxT in maps_LxNxTxT[0])
    followed = max(habits(map_TxT, ids)["what followed this token earlier"] for map_TxT in maps_LxNxTxT[1])
    assert before > 0.8
    assert followed > 0.5


def test_habits_of_maps_that_are_known() -> None:
    ids = [4, 5, 6, 4, 5]
    uniform = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
    diagonal = habits(torch.eye(5), ids)
    assert diagonal == dict(zip(HABITS, (1.0, 0.0, 0.0, 0.0), strict=True))
    assert habits(uniform, ids)["the first token"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    assert habits(uniform, ids)["what followed this token earlier"] == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert habits(uniform[:3, :3], ids[:3])["what followed this token earlier"] == 0.0


def test_every_row_of_a_direction_is_as_long_as_the_models(model: CausalLM) -> None:
    direction = filter_normalised_direction(model, seed=3)
    again, other = filter_normalised_direction(model, seed=3), filter_normalised_direction(model, seed=4)
    for name, weight in model.named_parameters():
        assert torch.equal(direction[name], again[name])
        if weight.ndim < 2:
            assert not direction[name].any()
            continue
        assert not torch.equal(direction[name], other[name])
        torch.testing.assert_close(direction[name].norm(dim=1), weight.detach().norm(dim=1))


def test_the_surface_is_the_loss_of_moved_weights_and_the_weights_come_back(
    model: CausalLM, ids_BxT: torch.Tensor
) -> None:
    directions = [filter_normalised_direction(model, seed) for seed in (0, 1)]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    points = [(0.0, 0.0), (0.5, 0.0), (-0.25, 0.75)]
    found = list(loss_surface(model, directions, points, lambda: plain_loss(model, ids_BxT).item()))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    for point, value in zip(points, found, strict=True):
        moved = CausalLM(model.config)
        first, second = directions
        moved.load_state_dict(
            {name: w + point[0] * first[name] + point[1] * second[name] for name, w in before.items()}
        )
        assert value == pytest.approx(plain_loss(moved, ids_BxT).item(), rel=1e-5)
    half = loss_surface(model, directions, points, lambda: 0.0)
    next(half)
    half.close()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
