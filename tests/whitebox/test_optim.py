"""Which parameter gets which update, and the learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stages.whitebox.model import CausalLM
from stages.whitebox.muon import Muon, orthogonalize
from stages.whitebox.optim import build_adamw, build_muon, warmup_decay

Make = Callable[..., CausalLM]


def names_in(model: CausalLM, group: dict[str, object]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is other for other in group["params"])}


def test_adamw_decays_matrices_and_neither_norms_nor_embeddings(make_model: Make) -> None:
    model = make_model(tie_word_embeddings=False)
    decayed, kept = build_adamw(model, lr=1e-3, weight_decay=0.2).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.2, 0.0)
    assert "model.embed_tokens.weight" in names_in(model, kept)
    assert all("norm" in name or "embed" in name for name in names_in(model, kept))
    assert "lm_head.weight" in names_in(model, decayed)
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out(make_model: Make) -> None:
    model = make_model()
    model.model.embed_tokens.requires_grad_(False)
    groups = build_adamw(model, lr=1e-3).param_groups
    assert all("model.embed_tokens.weight" not in names_in(model, group) for group in groups)


def test_muon_takes_the_layers_matrices_and_adamw_the_rest(make_model: Make) -> None:
    model = make_model(tie_word_embeddings=False)
    muon, adamw = build_muon(model, lr=1e-3, matrix_lr=1e-2)
    matrices, others = names_in(model, muon.param_groups[0]), names_in(model, adamw.param_groups[0])
    assert all(name.endswith("_proj.weight") for name in matrices)
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= others
    assert len(matrices) + len(others) == len(list(model.parameters()))


def test_experts_are_matrices_that_muon_makes_orthogonal_one_by_one(make_model: Make) -> None:
    model = make_model(num_experts=3, num_experts_per_tok=1, moe_intermediate_size=8, qk_norm=True)
    muon, _ = build_muon(model, lr=0.1, matrix_lr=0.1, weight_decay=0.0)
    stack = model.model.layers[0].mlp.experts.down_proj
    assert any(stack is parameter for group in muon.param_groups for parameter in group["params"])
    alone = [torch.nn.Parameter(matrix.detach().clone()) for matrix in stack]
    stack.grad = torch.randn_like(stack)
    for parameter, grad in zip(alone, stack.grad, strict=True):
        parameter.grad = grad.clone()
    muon.step()
    Muon(alone, lr=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]))


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    found = orthogonalize(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    agreement = (found * (left @ right)).sum() / (found.norm() * (left @ right).norm())
    assert agreement > 0.97


def test_orthogonalize_of_nothing_is_nothing() -> None:
    assert not orthogonalize(torch.zeros(4, 6)).any()


def test_a_muon_step_has_the_length_of_the_learning_rate_and_lowers_the_loss() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, 12))
    wanted = torch.randn(12, 12)
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        before = weight.detach().clone()
        loss = (weight - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert torch.linalg.matrix_norm(weight.detach() - before, 2) < 0.05 * 1.3
    assert losses[-1] < 0.5 * losses[0]


def test_muon_decays_weights_without_gradient_direction() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def shares(total: int, warmup: int, decay: float, minimum: float = 0.0) -> list[float]:
    return [round(warmup_decay(s, total, warmup, decay, minimum), 3) for s in range(1, total + 1)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, 2, 0.5), [0.5, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        ((6, 0, 1.0), [0.857, 0.714, 0.571, 0.429, 0.286, 0.143]),
        ((6, 2, 1.0), [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        ((4, 0, 0.0), [1, 1, 1, 1]),
        ((5, 1, 0.4, 0.5), [1, 1, 1, 0.833, 0.667]),
        ((3, 9, 0.5), [0.333, 0.667, 1]),
        ((1, 0, 0.5), [1.0]),
    ],
)
def test_warm_up_stable_decay(arguments: tuple[int, int, float], expected: list[float]) -> None:
    assert shares(*arguments) == expected


def test_the_cosine_is_torchs() -> None:
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=10, eta_min=0.1)
    for step in range(1, 10):
        sgd.step()
        theirs.step()
        assert warmup_decay(step, 9, 0, 1.0, 0.1, "cosine") == pytest.approx(theirs.get_last_lr()[0])
    assert warmup_decay(2, 9, 2, 0.5, shape="cosine") == 1


@pytest.mark.parametrize("step", [0, 9])
def test_steps_outside_the_run_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step is {step}, expected 1 to 8"):
        warmup_decay(step, 8, 2, 0.5)
