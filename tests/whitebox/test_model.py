"""The decoder against transformers, and the properties that make it a causal language model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from stages.whitebox.config import ModelConfig
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.memory_probe import PeakBytes
from stages.whitebox.model import CausalLM
from stages.whitebox.rope_scaling import RopeScaling

Make = Callable[..., CausalLM]
VARIANTS = [(True, True), (True, False), (False, True), (False, False)]


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(4, 61, shape, generator=torch.Generator().manual_seed(seed))


def peer_of(model: CausalLM) -> torch.nn.Module:
    """The same weights in transformers, float32, its plainest attention."""
    transformers = pytest.importorskip("transformers")
    fields = model.config.to_hf()
    config = transformers.AutoConfig.for_model(**fields)
    config._attn_implementation = "eager"
    peer = transformers.AutoModelForCausalLM.from_config(config)
    weights = dict(model.state_dict())
    weights.setdefault("lm_head.weight", model.output_weight())
    peer.load_state_dict(weights, strict=True)
    return peer


@pytest.mark.parametrize(("qk_norm", "tied"), VARIANTS)
def test_logits_loss_and_every_gradient_are_those_of_transformers(
    make_model: Make, qk_norm: bool, tied: bool
) -> None:
    model = make_model(qk_norm=qk_norm, tie_word_embeddings=tied)
    peer = peer_of(model)
    assert type(peer).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    ids_BxT = random_ids(3, 17)
    logits_BxTxV = model(ids_BxT)
    loss = F.cross_entropy(logits_BxTxV[:, :-1].flatten(0, 1), ids_BxT[:, 1:].flatten())
    answer = peer(input_ids=ids_BxT, labels=ids_BxT)
    torch.testing.assert_close(logits_BxTxV, answer.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(loss, answer.loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    answer.loss.backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("position", [1, 6, 15])
def test_causality_by_gradient(make_model: Make, position: int) -> None:
    model = make_model()
    captured = {}

    def keep(_module: object, _args: object, output_BxTxD: torch.Tensor) -> torch.Tensor:
        captured["x"] = output_BxTxD.detach().requires_grad_()
        return captured["x"]

    model.model.embed_tokens.register_forward_hook(keep)
    model(random_ids(1, 16))[0, position].logsumexp(dim=-1).backward()
    influence_T = captured["x"].grad[0].abs().sum(dim=-1)
    assert (influence_T[: position + 1] > 0).all()
    assert (influence_T[position + 1 :] == 0).all()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("steps", [(16,), (1,) * 16, (10, 1, 5), (3, 13)])
def test_a_cache_changes_nothing(make_model: Make, steps: tuple[int, ...], window: int | None) -> None:
    model = make_model(sliding_window=window, sliding_layers=(1,))
    ids_BxT = random_ids(2, 16)
    cache = KVCache(model.config, batch=2, max_tokens=16)
    parts = [model(part, cache=cache) for part in ids_BxT.split(list(steps), dim=1)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids_BxT), atol=1e-5, rtol=1e-5)


def test_a_window_hides_what_lies_before_it(make_model: Make) -> None:
    """Two layers of three tokens each reach four tokens back, and no farther."""
    model = make_model(sliding_window=3)
    ids_BxT = random_ids(1, 12)
    other_BxT = ids_BxT.clone()
    other_BxT[0, :4] = random_ids(4, seed=5)
    found, expected = model(other_BxT), model(ids_BxT)
    assert not torch.allclose(found[:, 7], expected[:, 7])
    torch.testing.assert_close(found[:, 8:], expected[:, 8:], atol=1e-5, rtol=1e-5)


def test_dynamic_rope_reads_beyond_what_the_model_was_built_for(make_model: Make) -> None:
    model = make_model(rope_scaling=RopeScaling("dynamic", 2.0), max_position_embeddings=8)
    ids_BxT = random_ids(1, 16)
    positions_BxT = torch.arange(16)[None]
    torch.testing.assert_close(model(ids_BxT, positions_BxT), model(ids_BxT))
    short = make_model(max_position_embeddings=8)
    torch.testing.assert_close(model(ids_BxT[:, :8]), short(ids_BxT[:, :8]))
    with pytest.raises(ValueError, match="17 tokens, but the model was built for 16"):
        model(random_ids(1, 17))


def test_a_cache_that_was_cut_reads_another_continuation(make_model: Make) -> None:
    model = make_model()
    ids_BxT, other_BxT = random_ids(1, 12), random_ids(1, 4, seed=9)
    cache = KVCache(model.config, batch=1, max_tokens=12)
    model(ids_BxT, cache=cache)
    cache.truncate(8)
    found = model(other_BxT, cache=cache)
    expected = model(torch.cat([ids_BxT[:, :8], other_BxT], dim=1))[:, 8:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot cut a cache of 12"):
        cache.truncate(13)
    with pytest.raises(ValueError, match="do not fit a cache of 12"):
        model(other_BxT, cache=cache)


@pytest.mark.parametrize("window", [None, 4])
def test_packed_documents_see_nothing_of_each_other(make_model: Make, window: int | None) -> None:
    model = make_model(sliding_window=window)
    first, second = random_ids(1, 7), random_ids(1, 5, seed=2)
    packed = model(
        torch.cat([first, second], dim=1),
        positions_BxT=torch.tensor([[*range(7), *range(5)]]),
        document_ids_BxT=torch.tensor([[4] * 7 + [9] * 5]),
    )
    torch.testing.assert_close(packed[:, :7], model(first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 7:], model(second), atol=1e-5, rtol=1e-5)


def test_what_does_not_go_together_is_refused(make_model: Make, config: ModelConfig) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="49 tokens, but the model was built for 48"):
        model(random_ids(1, 49))
    with pytest.raises(ValueError, match="do not go together"):
        model(random_ids(1, 4), document_ids_BxT=torch.zeros(1, 4), cache=KVCache(config, 1, 8))


def test_fresh_weights_follow_the_table(config: ModelConfig) -> None:
    torch.manual_seed(0)
    weights = CausalLM(config).state_dict()
    assert torch.equal(weights["model.norm.weight"], torch.ones(32))
    assert weights["model.layers.0.mlp.gate_proj.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["model.layers.1.mlp.down_proj.weight"].std().item() == pytest.approx(0.01, rel=0.1)


def test_tables_made_in_inference_mode_can_be_trained_with(make_model: Make) -> None:
    model = make_model()
    with torch.inference_mode():
        model(random_ids(1, 8))
    model(random_ids(1, 8)).sum().backward()
    assert model.model.norm.weight.grad is not None


def test_under_autocast_the_loss_stays_close_and_weights_float32(make_model: Make) -> None:
    model = make_model()
    ids_BxT = random_ids(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids_BxT)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(ids_BxT), atol=0.15, rtol=0.05)


def test_compiled_layers_train_the_same_and_are_left_alone_in_evaluation(make_model: Make) -> None:
    model, ids_BxT = make_model(), random_ids(2, 8)
    expected = model(ids_BxT)
    model.compile_blocks(backend="eager")
    torch.testing.assert_close(model.train()(ids_BxT), expected)
    assert torch.equal(model.eval()(ids_BxT), expected)
    assert list(model.state_dict()) == list(make_model().state_dict())


@pytest.mark.parametrize("backend", [None, "eager"])
def test_recomputed_layers_have_the_same_gradients_and_keep_less(
    make_model: Make, backend: str | None
) -> None:
    ids_BxT, kept, gradients = random_ids(2, 24), [], []
    for recompute in (False, True):
        model = make_model().train()
        if backend:
            model.compile_blocks(backend=backend)
        model.activation_checkpointing = recompute
        with PeakBytes() as peak:
            model(ids_BxT).square().sum().backward()
        kept.append(peak.peak_bytes)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    if backend is None:  # the counter does not see into compiled code
        assert kept[1] < 0.8 * kept[0]
