"""The grouped products against experts one by one, the two ways to balance them, and what does not vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from stages.whitebox.experts import (
    LoadBalancer,
    MixtureOfExperts,
    grouped_linear,
    load_balancing_loss,
    reference_experts,
)
from stages.whitebox.model import CausalLM

Make = Callable[..., CausalLM]
SOFTMAX = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SIGMOID = {**SOFTMAX, "scoring_func": "sigmoid", "n_shared_experts": 1}


def mixture_of(make_model: Make, **fields: Any) -> MixtureOfExperts:
    mixture = make_model(**fields).model.layers[0].mlp
    assert isinstance(mixture, MixtureOfExperts)
    return mixture


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(4, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fields", [SOFTMAX, SIGMOID, {**SOFTMAX, "num_experts_per_tok": 6}])
def test_values_and_gradients_are_those_of_experts_one_by_one(
    make_model: Make, fields: dict[str, Any]
) -> None:
    mixture = mixture_of(make_model, **fields)
    x_BxTxD = torch.randn(2, 9, 32, requires_grad=True)
    y_BxTxD = mixture(x_BxTxD)
    weights, chosen, _ = mixture.gate(x_BxTxD.flatten(0, 1))
    expected = reference_experts(x_BxTxD.flatten(0, 1), weights, chosen, mixture.experts).view_as(y_BxTxD)
    if "n_shared_experts" in fields:
        expected = expected + mixture.shared_experts(x_BxTxD)
    torch.testing.assert_close(y_BxTxD, expected, atol=1e-5, rtol=1e-5)
    inputs = (x_BxTxD, *mixture.parameters())
    found = torch.autograd.grad(y_BxTxD.square().sum(), inputs)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected.square().sum(), inputs), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(4, 8), (3, 8), (4, 6)])
def test_an_expert_without_tokens_has_a_gradient_of_zero(num_outputs: int, num_inputs: int) -> None:
    """Widths that the grouped product takes, and widths that it refuses."""
    x_RxI = torch.randn(5, num_inputs)
    weight_ExOxI = torch.randn(4, num_outputs, num_inputs, requires_grad=True)
    y_RxO = grouped_linear(x_RxI, weight_ExOxI, torch.tensor([2, 0, 3, 0]))
    torch.testing.assert_close(
        y_RxO, torch.cat([x_RxI[:2] @ weight_ExOxI[0].T, x_RxI[2:] @ weight_ExOxI[2].T])
    )
    y_RxO.square().sum().backward()
    assert weight_ExOxI.grad is not None
    assert (weight_ExOxI.grad[[1, 3]] == 0).all()
    assert (weight_ExOxI.grad[[0, 2]] != 0).all()


def test_the_loss_is_that_of_transformers(make_model: Make) -> None:
    peer = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    model = make_model(**SOFTMAX)
    logits = []
    for block in model.model.layers:
        gate = block.mlp.gate
        gate.register_forward_hook(lambda m, args, _: logits.append(F.linear(args[0], m.weight)))
    model(random_ids(2, 11))
    expected = peer.load_balancing_loss_func(tuple(logits), num_experts=6, top_k=2)
    torch.testing.assert_close(model.router_loss(), expected)
    weights = [block.mlp.gate.weight for block in model.model.layers]
    found = torch.autograd.grad(model.router_loss(), weights, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, weights))


def test_equal_loads_have_a_loss_of_the_number_chosen(make_model: Make) -> None:
    mixture = mixture_of(make_model, **SOFTMAX)
    mixture(torch.randn(1, 12, 32))
    assert mixture.routing is not None
    equal = mixture.routing._replace(counts_E=torch.full((6,), 4), probabilities_E=torch.full((6,), 2.0))
    assert float(load_balancing_loss([equal])) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no layer has chosen experts"):
        load_balancing_loss([])


def test_the_bias_brings_the_loads_together_and_moves_only_in_training(make_model: Make) -> None:
    model = make_model(**SIGMOID)
    balancer = LoadBalancer(model, step=0.005)
    router = model.model.layers[0].mlp.gate
    x_MxD = torch.randn(400, 32) + torch.randn(32)  # what all tokens share prefers some experts

    def spread() -> float:
        counts_E = router(x_MxD)[2].counts_E.float()
        return float(counts_E.std() / counts_E.mean())

    model.eval()
    before = spread()
    balancer.update()
    assert (router.e_score_correction_bias == 0).all()
    for _ in range(150):
        model.train()
        router(x_MxD)
        balancer.update()
    model.eval()
    assert spread() < before / 3
    assert LoadBalancer(make_model(**SOFTMAX)).routers == []


def test_a_step_of_the_bias_is_the_paper_s(make_model: Make) -> None:
    """Algorithm 1: plus gamma below the mean load, minus gamma above, over all micro batches of an update."""
    model = make_model(**SIGMOID).train()
    balancer, router = LoadBalancer(model), model.model.layers[1].mlp.gate
    loads = torch.zeros(6)
    for seed in (1, 2):
        model(random_ids(2, 10, seed=seed))
        loads += model.model.layers[1].mlp.routing.counts_E
    balancer.update()
    expected = [0.001 * ((loads.mean() > load).int() - (loads.mean() < load).int()) for load in loads]
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor(expected))


@pytest.mark.parametrize("fields", [SOFTMAX, SIGMOID])
def test_fresh_weights_and_files(make_model: Make, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    weights = CausalLM(make_model(**fields).config).state_dict()
    assert weights["model.layers.0.mlp.experts.gate_up_proj"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["model.layers.0.mlp.experts.down_proj"].std().item() == pytest.approx(0.01, rel=0.1)
    assert weights["model.layers.0.mlp.gate.weight"].std().item() == pytest.approx(0.02, rel=0.2)


def test_the_same_bits_whatever_the_number_of_threads(make_model: Make) -> None:
    gradients = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = make_model(**SOFTMAX)
        model(random_ids(2, 24)).logsumexp(dim=-1).sum().backward()
        gradients.append(model.model.layers[0].mlp.experts.gate_up_proj.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_under_autocast_products_are_bfloat16_and_routing_is_not(make_model: Make) -> None:
    mixture, x_BxTxD = mixture_of(make_model, **SOFTMAX), torch.randn(1, 9, 32)
    expected = mixture(x_BxTxD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, weights = mixture(x_BxTxD), mixture.gate(x_BxTxD[0])[0]
    assert (found.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


def test_compiled_layers_give_the_same_and_the_loss_comes_out(make_model: Make) -> None:
    model, ids_BxT = make_model(**SOFTMAX).train(), random_ids(2, 8)
    expected, loss = model(ids_BxT), model.router_loss().detach()
    model.compile_blocks(backend="aot_eager")
    torch.testing.assert_close(model(ids_BxT), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.router_loss().detach(), loss)
    model.router_loss().backward()
    assert model.model.layers[0].mlp.gate.weight.grad is not None


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_balancer_makes_no_layer_compile_for_itself(
    make_model: Make, activation_checkpointing: bool
) -> None:
    """The layers are the same but for their weights: what one compiles to serves all."""
    model, ids_BxT = make_model(**SIGMOID).train(), random_ids(2, 8)
    model.activation_checkpointing = activation_checkpointing
    balancer = LoadBalancer(model)
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile_blocks(backend=counter)  # type: ignore[arg-type]
    for _ in range(2):
        model(ids_BxT).sum().backward()
        loads = [block.mlp.gate.load_E for block in model.model.layers]
        # Activations that are computed again choose again, every layer as often: only signs are looked at.
        assert all(float(load_E.sum()) in (32.0, 64.0) for load_E in loads)
        graphs = counter.frame_count
        balancer.update()
        assert all(float(load_E.sum()) == 0 for load_E in loads)
    alone = make_model(**SIGMOID, num_hidden_layers=1).train()
    alone.activation_checkpointing = activation_checkpointing
    LoadBalancer(alone)
    torch._dynamo.reset()
    of_one_layer = CompileCounter()
    alone.compile_blocks(backend=of_one_layer)  # type: ignore[arg-type]
    alone(ids_BxT).sum().backward()
    assert len(model.model.layers) > 1 and graphs == counter.frame_count == of_one_layer.frame_count
