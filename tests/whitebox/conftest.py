"""Small models and small token shards for the white box's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM

BOS, EOS = 1, 2
FIRST_ORDINARY_ID = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same bits on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> ModelConfig:
    """Grouped queries, QK-norm, tied embeddings: everything once, as small as it goes."""
    return ModelConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=48,
    )


@pytest.fixture
def make_model(config: ModelConfig) -> Callable[..., CausalLM]:
    """A model with random weights everywhere: norms too, so that no test passes because they are 1."""

    def make(seed: int = 0, **changes: object) -> CausalLM:
        torch.manual_seed(seed)
        model = CausalLM(replace(config, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.15)
                if parameter.ndim == 1:
                    parameter.add_(1.0)
        return model

    return make


def write_split(folder: Path, split: str, bodies: Sequence[Sequence[int]], number: int = 0) -> None:
    """One shard file; the text of a document counts two bytes per token."""
    documents = [np.array([BOS, *body, EOS]) for body in bodies]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "tokens": np.concatenate(documents).astype(np.uint16),
            "doc_offsets": np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64),
            "doc_num_bytes": np.array([2 * len(body) for body in bodies], dtype=np.int64),
        },
        folder / f"{split}-{number:05d}.safetensors",
        metadata={"contract": "token_shards v1", "vocab_size": "61", "split": split, "tokenizer_sha256": "0"},
    )


@pytest.fixture
def write_shards() -> Callable[..., None]:
    """`write_split`, for tests that make their own documents."""
    return write_split


@pytest.fixture(scope="session")
def counting_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that count upwards from a random start: easy to learn, and each a different length."""
    folder = tmp_path_factory.mktemp("tokens")
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("validation", 9)):
        bodies = [
            (random.integers(0, 50) + np.arange(random.integers(3, 40))) % 57 + FIRST_ORDINARY_ID
            for _ in range(count)
        ]
        write_split(folder, split, [body.tolist() for body in bodies])
    return folder
