"""The static embedder: its formula, its loss by hand, and that training is repeatable and learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.runtime.store import file_sha256
from stages.whitebox.static_embedder import (
    ContrastiveSettings,
    PairBatch,
    StaticEmbedder,
    TokenBags,
    info_nce,
    initial_embedder,
    train_embedder,
)

VOCABULARY, WIDTH = 40, 8


@pytest.fixture
def embedder() -> StaticEmbedder:
    return initial_embedder(np.arange(VOCABULARY), WIDTH, seed=3)


class TwoHalves:
    """Anchors use the even tokens, positives the odd one above each: nothing in common but the pairing."""

    def draw(self, rng: np.random.Generator, batch_size: int) -> PairBatch:
        topics = rng.integers(VOCABULARY // 2, size=batch_size)
        anchors = [np.array([2 * topic]) for topic in topics]
        return PairBatch(anchors, [np.array([2 * topic + 1]) for topic in topics], topics)


def settings(**changes: float) -> ContrastiveSettings:
    values = {"num_steps": 60, "batch_size": 32, "learning_rate": 0.05, "temperature": 0.1, "seed": 0}
    return ContrastiveSettings(**{**values, **changes})  # type: ignore[arg-type]


def test_a_text_is_the_weighted_mean_of_its_tokens(embedder: StaticEmbedder) -> None:
    texts = [[1, 2, 2, 30], [7], [], [39, 0]]
    vectors = embedder.embed(texts)
    table = embedder.token_vectors.detach().numpy()
    weights = embedder.log_weights.detach().exp().numpy()
    for ids, vector in zip(texts, vectors, strict=True):
        total = sum((weights[i] * table[i] for i in ids), np.zeros(WIDTH))
        expected = total / np.linalg.norm(total) if ids else total
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert vectors.dtype == np.float32


def test_embedding_nothing_gives_no_rows(embedder: StaticEmbedder) -> None:
    assert embedder.embed([]).shape == (0, WIDTH)
    assert embedder.dimensions == WIDTH


def test_frequent_tokens_start_with_less_weight() -> None:
    weights = initial_embedder(np.array([0, 10, 10_000]), 4, seed=0).log_weights.detach().exp()
    assert weights[0] == pytest.approx(1) and weights[0] > weights[1] > weights[2]


def test_info_nce_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, positives = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    nats = 0.0
    for i in range(5):
        row = [math.exp(float(anchors[i] @ positives[j]) / 0.5) for j in range(5)]
        column = [math.exp(float(anchors[j] @ positives[i]) / 0.5) for j in range(5)]
        nats -= math.log(row[i] / sum(row)) / 10 + math.log(column[i] / sum(column)) / 10
    assert float(info_nce(anchors, positives, 0.5)) == pytest.approx(nats)


def test_pairs_of_one_document_are_no_negatives() -> None:
    vectors = torch.eye(3)[[0, 0, 1]]
    documents = torch.tensor([5, 5, 6])
    same = documents[:, None] == documents[None, :]
    masked = info_nce(vectors, vectors, 0.1, same)
    assert float(masked) < 1e-3
    assert float(info_nce(vectors, vectors, 0.1)) > 0.4


def test_the_gradient_of_the_loss_is_right() -> None:
    anchors, positives = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda a, p: info_nce(a, p, 0.3, same), (anchors, positives))


def test_training_learns_what_belongs_together(embedder: StaticEmbedder) -> None:
    losses: list[float] = []
    train_embedder(embedder, TwoHalves(), settings(), lambda step, loss: losses.append(loss))
    anchors = embedder.embed([[2 * topic] for topic in range(20)])
    positives = embedder.embed([[2 * topic + 1] for topic in range(20)])
    assert ((anchors @ positives.T).argmax(axis=1) == np.arange(20)).all()
    assert losses[-1] < 0.2 * losses[0] and len(losses) == 60


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        embedder = initial_embedder(np.ones(VOCABULARY), WIDTH, seed=0)
        train_embedder(embedder, TwoHalves(), settings(num_steps=5, seed=seed), lambda step, loss: None)
        embedder.save(tmp_path / name)
    assert file_sha256(tmp_path / "one") == file_sha256(tmp_path / "two")
    assert file_sha256(tmp_path / "one") != file_sha256(tmp_path / "other")


class Operations(TorchDispatchMode):
    """Names of all operations that run, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_no_gradient_is_added_up_in_the_order_in_which_threads_come(embedder: StaticEmbedder) -> None:
    # With two threads, a gradient through index_put had other last bits in 1 of 20 runs.
    with Operations() as operations:
        train_embedder(embedder, TwoHalves(), settings(num_steps=1), lambda step, loss: None)
    assert any(name.startswith("aten::index_add") for name in operations.names)
    assert not [name for name in operations.names if "index_put" in name]


def test_training_can_be_stopped_from_outside(embedder: StaticEmbedder) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        train_embedder(embedder, TwoHalves(), settings(), stop)


def test_a_saved_embedder_embeds_the_same(embedder: StaticEmbedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "embedder.safetensors")
    loaded = StaticEmbedder.load(tmp_path / "embedder.safetensors")
    texts = [[1, 2, 3], [20, 21]]
    np.testing.assert_allclose(loaded.embed(texts), embedder.embed(texts), atol=1e-6)


def test_wrong_shapes_and_files_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="do not belong together"):
        StaticEmbedder(torch.zeros(4, 2), torch.zeros(5))
    save_file({"token_vectors": torch.zeros(4, 2)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['token_weights'\]"):
        StaticEmbedder.load(tmp_path / "half.safetensors")


def test_bags_know_where_texts_begin() -> None:
    bags = TokenBags.of([[1, 2], [], np.array([3])])
    assert bags.ids_M.tolist() == [1, 2, 3] and bags.starts_N.tolist() == [0, 2, 2]
