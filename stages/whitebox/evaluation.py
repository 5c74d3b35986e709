"""Held-out loss and bits per byte of any model, always counted the same way.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.whitebox.batches import TokenShards, positions_within, windows_of
from stages.whitebox.best_fit import pack_windows
from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import IGNORED, bits_per_byte, cross_entropy_sum


class LanguageModel(Protocol):
    """What can be evaluated: a `CausalLM`, quantized or not."""

    def hidden_states(
        self, ids_BxT: Tensor, positions_BxT: Tensor | None = None, document_ids_BxT: Tensor | None = None
    ) -> Tensor:
        """h_BxTxD."""
        ...

    def output_weight(self) -> Tensor:
        """W_VxD."""
        ...


class WithConfig(LanguageModel, Protocol):
    """One that says how long a text it reads."""

    config: ModelConfig


EVALUATION_TOKENS = 4096
"""Of one batch: on a CPU more at once are no faster."""


@dataclass(frozen=True)
class HeldOut:
    """The sum over all scored tokens, and what it was a sum over."""

    nats: float
    num_bytes: int
    num_tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8 text."""
        return bits_per_byte(self.nats, self.num_bytes)


def document_bits_per_byte(model: WithConfig, documents: TokenShards, max_documents: int) -> float:
    """Of documents in windows as long as the model reads: what tuning makes a model forget."""
    context_tokens = model.config.max_position_embeddings
    return evaluate_bits_per_byte(
        model,
        documents,
        max_documents=max_documents,
        batch_size=max(1, EVALUATION_TOKENS // context_tokens),
        context_tokens=context_tokens,
    ).bits_per_byte


@torch.no_grad()
def evaluate_bits_per_byte(
    model: LanguageModel,
    shards: TokenShards,
    *,
    max_documents: int | None = None,
    batch_size: int = 8,
    context_tokens: int = 512,
) -> HeldOut:
    """Scores every token but BOS and EOS exactly once, each document on its own.

    A document longer than `context_tokens` is cut into windows that do not overlap; each window begins with
    BOS and sees nothing before it. So a figure depends on `context_tokens`: compare models at the same.
    Windows of several documents share a row, and attention stays within a window.

    Args:
        max_documents: score only this many, evenly spaced over the split; None scores all.

    Raises:
        ValueError: the chosen documents have no text.
    """
    chosen = choose_documents(shards.num_documents, max_documents)
    windows = [w for index in chosen for w in windows_of(shards.document(index), context_tokens)]
    if not windows:
        raise ValueError(f"the {len(chosen)} chosen {shards.split} documents have no text to score")
    weight_VxD = model.output_weight()
    nats, num_tokens = 0.0, 0
    for batch in _batches(windows, shards.bos_id, batch_size, context_tokens):
        ids_BxT, targets_BxT, document_ids_BxT = (part.to(weight_VxD.device) for part in batch)
        h_BxTxD = model.hidden_states(ids_BxT, positions_within(document_ids_BxT), document_ids_BxT)
        batch_nats, batch_tokens = cross_entropy_sum(h_BxTxD, weight_VxD, targets_BxT)
        nats += float(batch_nats)
        num_tokens += batch_tokens
    return HeldOut(nats, int(shards.num_bytes[chosen].sum()), num_tokens)


def choose_documents(num_documents: int, max_documents: int | None) -> NDArray[np.int64]:
    """Indices of all documents, or of `max_documents` of them at even distances."""
    if max_documents is None or max_documents >= num_documents:
        return np.arange(num_documents)
    return np.linspace(0, num_documents - 1, max_documents).round().astype(np.int64)


def _batches(
    windows: list[NDArray[np.int64]], bos_id: int, batch_size: int, context_tokens: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rows = pack_windows([len(window) for window in windows], context_tokens)
    for start in range(0, len(rows), batch_size):
        picked = rows[start : start + batch_size]
        width = max(sum(len(windows[index]) for index in row) for row in picked)
        yield _lay_out([[windows[index] for index in row] for row in picked], bos_id, width)


def _lay_out(rows: list[list[NDArray[np.int64]]], bos_id: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, targets, document ids, each BxT; a row ends in padding, a document of its own without targets."""
    ids_BxT = torch.full((len(rows), width), bos_id)
    targets_BxT = torch.full((len(rows), width), IGNORED)
    document_ids_BxT = torch.zeros((len(rows), width), dtype=torch.int64)
    for row, windows in enumerate(rows):
        start = 0
        for number, window in enumerate(windows, start=1):
            end = start + len(window)
            ids_BxT[row, start + 1 : end] = torch.from_numpy(window[:-1])
            targets_BxT[row, start:end] = torch.from_numpy(window)
            document_ids_BxT[row, start:end] = number
            start = end
    return ids_BxT, targets_BxT, document_ids_BxT
