"""Held-out loss document by document, so that models can be compared on the same documents, with intervals.

`evaluation.evaluate_bits_per_byte` gives the sums only; a test holds the two together.

Shapes: B batch, T tokens, D width, V vocabulary, I documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.whitebox.batches import TokenShards, windows_of
from stages.whitebox.evaluation import LanguageModel, choose_documents
from stages.whitebox.intervals import Interval, bootstrap_ratio
from stages.whitebox.losses import IGNORED, bits_per_byte, token_log_probs

BITS_PER_NAT = 1 / np.log(2)


@dataclass(frozen=True)
class DocumentScores:
    """Loss and size of each document, in the same order for every model that scored them."""

    nats_I: NDArray[np.float64]
    num_bytes_I: NDArray[np.int64]

    @property
    def bits_per_byte(self) -> float:
        """Over all documents together, so long ones count for more."""
        return bits_per_byte(float(self.nats_I.sum()), int(self.num_bytes_I.sum()))

    def interval(self, seed: int = 0) -> Interval:
        """95 % interval of `bits_per_byte`, documents drawn anew."""
        return bootstrap_ratio(self.nats_I * BITS_PER_NAT, self.num_bytes_I, seed=seed)

    def minus(self, other: DocumentScores, seed: int = 0) -> tuple[float, Interval]:
        """Difference in bits per byte to another model on the same documents, with its paired interval.

        Raises:
            ValueError: the other scores are of other documents.
        """
        if not np.array_equal(self.num_bytes_I, other.num_bytes_I):
            raise ValueError("scores of different documents cannot be paired; score both models on the same")
        interval = bootstrap_ratio((self.nats_I - other.nats_I) * BITS_PER_NAT, self.num_bytes_I, seed=seed)
        return self.bits_per_byte - other.bits_per_byte, interval


def documents_within(shards: TokenShards, max_bytes: int) -> NDArray[np.int64]:
    """Indices of documents at even distances, as many as have about `max_bytes` of text; no empty ones."""
    total = max(1, int(shards.num_bytes.sum()))
    chosen = choose_documents(shards.num_documents, max(1, shards.num_documents * max_bytes // total))
    return chosen[shards.num_bytes[chosen] > 0]


@torch.no_grad()
def score_documents(
    model: LanguageModel,
    shards: TokenShards,
    documents: NDArray[np.int64],
    *,
    context_tokens: int,
    batch_tokens: int = 8192,
    on_scored: Callable[[int, int], None] = lambda done, total: None,
) -> DocumentScores:
    """Scores every token but BOS and EOS of the documents once, in the windows of `evaluate_bits_per_byte`.

    Args:
        documents: indices into the split.
        batch_tokens: tokens of one batch, padding included.
        on_scored: called with the number of windows done and the number of all.

    Raises:
        ValueError: the documents have no text.
    """
    windows = [
        (place, window)
        for place, index in enumerate(documents)
        for window in windows_of(shards.document(index), context_tokens)
    ]
    if not windows:
        raise ValueError(f"the {len(documents)} chosen {shards.split} documents have no text to score")
    weight_VxD = model.output_weight()
    nats_I = np.zeros(len(documents))
    num_done = 0
    for batch in _batches(windows, batch_tokens):
        ids_BxT, targets_BxT = _lay_out([window for _, window in batch], shards.bos_id)
        h_BxTxD = model.hidden_states(ids_BxT.to(weight_VxD.device))
        logp_BxT = token_log_probs(h_BxTxD, weight_VxD, targets_BxT.to(weight_VxD.device))
        np.subtract.at(nats_I, [place for place, _ in batch], logp_BxT.double().sum(dim=1).cpu().numpy())
        num_done += len(batch)
        on_scored(num_done, len(windows))
    return DocumentScores(nats_I, shards.num_bytes[documents].astype(np.int64))


def _batches(
    windows: list[tuple[int, NDArray[np.int64]]], batch_tokens: int
) -> Iterator[list[tuple[int, NDArray[np.int64]]]]:
    """Windows of similar length together, so that little is padding."""
    batch: list[tuple[int, NDArray[np.int64]]] = []
    for window in sorted(windows, key=lambda pair: -len(pair[1])):
        if batch and (len(batch) + 1) * len(batch[0][1]) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _lay_out(windows: list[NDArray[np.int64]], bos_id: int) -> tuple[Tensor, Tensor]:
    """ids_BxT and targets_BxT; padding comes last, where no scored token can see it."""
    width = max(len(window) for window in windows)
    ids_BxT = torch.full((len(windows), width), bos_id)
    targets_BxT = torch.full((len(windows), width), IGNORED)
    for row, window in enumerate(windows):
        ids_BxT[row, 1 : len(window)] = torch.from_numpy(window[:-1])
        targets_BxT[row, : len(window)] = torch.from_numpy(window)
    return ids_BxT, targets_BxT
