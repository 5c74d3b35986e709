"""Every held-out token is scored once, on its own document, whatever the layout of the batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.whitebox.batches import TokenShards, windows_of
from stages.whitebox.evaluation import choose_documents, evaluate_bits_per_byte
from stages.whitebox.model import CausalLM

BOS, VOCAB = 1, 61


class Recorder:
    """Logits that say nothing, so that every token costs ln V; notes what it was asked."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def hidden_states(self, ids_BxT: Tensor, positions_BxT: Tensor, document_ids_BxT: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "a graph would hold the activations of every layer"
        self.rows.append(torch.stack([ids_BxT, positions_BxT, document_ids_BxT]))
        return torch.zeros(*ids_BxT.shape, 4)

    def output_weight(self) -> Tensor:
        return torch.zeros(VOCAB, 4)


def test_a_uniform_model_costs_ln_v_per_token(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "validation")
    found = evaluate_bits_per_byte(Recorder(), shards, context_tokens=16, batch_size=3)
    num_tokens = shards.num_tokens - 2 * shards.num_documents
    assert (found.num_tokens, found.num_bytes) == (num_tokens, 2 * num_tokens)
    assert found.loss == pytest.approx(math.log(VOCAB))
    assert found.bits_per_byte == pytest.approx(math.log2(VOCAB) / 2)


def test_every_window_begins_with_bos_and_restarts_its_positions(counting_shards: Path) -> None:
    recorder, shards = Recorder(), TokenShards(counting_shards, "validation")
    evaluate_bits_per_byte(recorder, shards, context_tokens=16, batch_size=4)
    for ids, positions, documents in (batch.unbind(0) for batch in recorder.rows):
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents.diff(dim=1) != 0
        assert (ids[first] == BOS).all()
        assert (positions[first] == 0).all()
        assert (ids[~first & (documents > 0)] != BOS).all()


def test_packing_scores_as_one_window_at_a_time(
    counting_shards: Path, make_model: Callable[..., CausalLM]
) -> None:
    model, shards = make_model(), TokenShards(counting_shards, "validation")
    nats = 0.0
    for index in range(shards.num_documents):
        for window in windows_of(shards.document(index), 16):
            ids = torch.tensor([[BOS, *window[:-1]]])
            logp = model(ids).log_softmax(dim=-1)[0, torch.arange(len(window)), torch.from_numpy(window)]
            nats -= float(logp.detach().sum())
    for batch_size in (1, 5):
        found = evaluate_bits_per_byte(model, shards, context_tokens=16, batch_size=batch_size)
        assert found.nats == pytest.approx(nats, rel=1e-5)


def test_the_same_call_gives_the_same_bits(
    counting_shards: Path, make_model: Callable[..., CausalLM]
) -> None:
    model, shards = make_model(), TokenShards(counting_shards, "validation")
    figures = {evaluate_bits_per_byte(model, shards, context_tokens=16).nats for _ in range(3)}
    assert len(figures) == 1


def test_fewer_documents_are_spread_evenly(counting_shards: Path) -> None:
    assert choose_documents(100, 5).tolist() == [0, 25, 50, 74, 99]
    assert choose_documents(3, None).tolist() == choose_documents(3, 8).tolist() == [0, 1, 2]
    shards = TokenShards(counting_shards, "validation")
    found = evaluate_bits_per_byte(Recorder(), shards, max_documents=2, context_tokens=16)
    assert found.num_bytes == int(shards.num_bytes[[0, shards.num_documents - 1]].sum())


def test_no_text_is_an_error(tmp_path: Path, write_shards: Callable[..., None]) -> None:
    write_shards(tmp_path, "validation", [[], []])
    with pytest.raises(ValueError, match="2 chosen validation documents have no text"):
        evaluate_bits_per_byte(Recorder(), TokenShards(tmp_path, "validation"), context_tokens=8)


def test_documents_are_not_changed_by_reading_them(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "validation")
    before = np.array(shards.tokens)
    evaluate_bits_per_byte(Recorder(), shards, context_tokens=16)
    assert np.array_equal(before, shards.tokens)
