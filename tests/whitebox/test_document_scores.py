"""Document scores: the sums of `evaluate_bits_per_byte`, taken apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stages.whitebox.batches import TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.document_scores import DocumentScores, documents_within, score_documents
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.model import CausalLM

LENGTHS = (40, 3, 17, 1, 90, 25)  # ids without BOS and EOS; the fifth is longer than a window


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    folder = tmp_path_factory.mktemp("tokens")
    generator = np.random.default_rng(0)
    documents = [[1, *generator.integers(5, 200, size=length), 2] for length in LENGTHS]
    tensors = {
        "tokens": np.concatenate(documents).astype(np.uint16),
        "doc_offsets": np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64),
        "doc_num_bytes": np.array([3 * length for length in LENGTHS], dtype=np.int64),
    }
    save_file(tensors, folder / "validation-00000.safetensors", metadata={"vocab_size": "200"})
    return TokenShards(folder, "validation")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    torch.manual_seed(0)
    model = CausalLM(ModelConfig(200, 32, 64, 1, 2, 1, 16, max_position_embeddings=64)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5.0 if parameter.ndim > 1 else 1.0)
    return model


def test_sums_are_those_of_the_evaluation(model: CausalLM, shards: TokenShards) -> None:
    done: list[tuple[int, int]] = []
    scores = score_documents(
        model,
        shards,
        np.arange(6),
        context_tokens=32,
        batch_tokens=70,
        on_scored=lambda *counts: done.append(counts),
    )
    reference = evaluate_bits_per_byte(model, shards, context_tokens=32)
    assert scores.bits_per_byte == pytest.approx(reference.bits_per_byte, rel=1e-6)
    assert scores.num_bytes_I.sum() == reference.num_bytes
    assert len(done) > 2 and done[-1] == (9, 9)


def test_each_document_is_scored_by_itself(model: CausalLM, shards: TokenShards) -> None:
    together = score_documents(model, shards, np.arange(6), context_tokens=32)
    for index in range(6):
        alone = score_documents(model, shards, np.array([index]), context_tokens=32)
        assert alone.nats_I[0] == pytest.approx(together.nats_I[index], rel=1e-5)


def test_documents_are_chosen_at_even_distances_up_to_some_bytes(shards: TokenShards) -> None:
    total = int(shards.num_bytes.sum())
    assert documents_within(shards, total).tolist() == [0, 1, 2, 3, 4, 5]
    assert documents_within(shards, 10 * total).tolist() == [0, 1, 2, 3, 4, 5]
    assert documents_within(shards, total // 2).tolist() == [0, 2, 5]
    assert documents_within(shards, 1).tolist() == [0]


def test_a_paired_interval_is_narrower_than_the_difference_of_two() -> None:
    generator = np.random.default_rng(1)
    num_bytes = generator.integers(100, 1000, size=60)
    nats = num_bytes * generator.normal(1.0, 0.3, size=60)  # documents differ much, the two models little
    first = DocumentScores(nats, num_bytes)
    second = DocumentScores(nats + 0.01 * num_bytes * generator.normal(1.0, 0.2, size=60), num_bytes)
    difference, interval = second.minus(first)
    assert difference == pytest.approx(0.01 / np.log(2), rel=0.1)
    assert interval.contains(difference) and interval.low > 0
    own = first.interval()
    assert own.contains(first.bits_per_byte)
    assert own.high - own.low > 20 * (interval.high - interval.low)


def test_scores_of_other_documents_are_not_compared() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match="cannot be paired"):
        DocumentScores(ones, np.array([1, 2, 3])).minus(DocumentScores(ones, np.array([1, 2, 4])))
