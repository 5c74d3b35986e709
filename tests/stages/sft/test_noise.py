"""NEFTune's noise: its size against transformers' own, bit-exact on resume, none in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stages.runtime.errors import StopRequested
from stages.runtime.store import file_sha256
from stages.sft.noise import EmbeddingNoise

WIDTH = 64


def ours(length: int, alpha: float, padding: int = 0) -> torch.Tensor:
    documents = torch.tensor([[1] * length + [0] * padding])
    return torch.cat([EmbeddingNoise(alpha, 0).noise(documents, [place], WIDTH) for place in range(40)])


@pytest.mark.parametrize(("length", "alpha"), [(10, 5.0), (40, 15.0)])
def test_it_is_as_large_as_that_of_transformers(length: int, alpha: float) -> None:
    from transformers.integrations.neftune import neftune_post_forward_hook

    torch.manual_seed(0)
    module: Any = SimpleNamespace(training=True, neftune_noise_alpha=alpha)
    empty = torch.zeros(1, length, WIDTH)
    theirs = torch.cat([neftune_post_forward_hook(module, None, empty.clone()) for _ in range(40)])
    found, most = ours(length, alpha), alpha / np.sqrt(length * WIDTH)
    assert (
        float(found.abs().max()) == pytest.approx(most, rel=1e-3)
        and float(found.abs().max()) <= most * 1.0001
    )
    assert float(found.std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert abs(float(found.mean())) < 0.02 * most


def test_a_conversation_counts_its_own_length_and_padding_gets_none() -> None:
    noise = EmbeddingNoise(5.0, 0)
    documents = torch.tensor([[1] * 4 + [2] * 16 + [0] * 3])
    (packed,) = noise.noise(documents, [7], WIDTH)
    uniform = 2 * np.random.default_rng([0, 7]).random((23, WIDTH), np.float32) - 1
    for part, length in ((slice(0, 4), 4), (slice(4, 20), 16)):
        wanted = uniform[part] * np.float32(5.0 / np.sqrt(length * WIDTH))
        np.testing.assert_allclose(packed[part].numpy(), wanted, rtol=1e-6)
    assert (packed[20:] == 0).all()


def test_it_does_not_depend_on_the_other_rows_of_a_batch() -> None:
    noise, documents = EmbeddingNoise(5.0, 3), torch.ones(2, 9, dtype=torch.long)
    both = noise.noise(documents, [4, 5], WIDTH)
    assert torch.equal(both[1:], noise.noise(documents[1:], [5], WIDTH))
    assert not torch.equal(both[0], both[1])
    wider = noise.noise(torch.tensor([[1] * 9 + [0] * 6]), [5], WIDTH)
    assert torch.equal(wider[:, :9], both[1:])


def test_it_is_on_only_while_training_and_an_alpha_of_0_adds_none() -> None:
    embedding = torch.nn.Embedding(10, WIDTH)
    ids = torch.arange(5)[None]
    batch = {"document_ids": torch.ones(1, 5, dtype=torch.long), "places": torch.tensor([0])}
    plain = embedding(ids)
    with EmbeddingNoise(5.0, 0).added(embedding, batch):
        assert not torch.equal(embedding(ids), plain)
    assert torch.equal(embedding(ids), plain)
    with EmbeddingNoise(0.0, 0).added(embedding, batch):
        assert torch.equal(embedding(ids), plain)


def test_a_stopped_run_with_noise_ends_with_the_same_bits(
    tuned: Any, run_sft: Callable[..., Any], tmp_path: Path
) -> None:
    noisy = run_sft(neftune_alpha=5.0, max_steps=6)
    with pytest.raises(StopRequested, match="stopped after step 3"):
        run_sft(neftune_alpha=5.0, max_steps=6, work=tmp_path / "work", stop_after=3)
    resumed = run_sft(neftune_alpha=5.0, max_steps=6, work=tmp_path / "work")
    plain = run_sft(max_steps=6)
    weights = [file_sha256(run.outputs["model"] / "model.safetensors") for run in (noisy, resumed, plain)]
    assert weights[0] == weights[1] != weights[2]
    assert noisy.metrics["base_validation_loss"] == plain.metrics["base_validation_loss"]
