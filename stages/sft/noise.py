"""NEFTune: noise on the embeddings while instructions are learned, so that answers are not learned by heart.

    x + u x alpha / sqrt(L x D),  u uniform between -1 and 1

Jain et al. 2023, arXiv:2310.05914, algorithm 1. L is the length of the conversation, not of the row that it
shares with others. The noise of a row follows from the seed and its place in the stream of rows alone: a
resumed run draws the same, whatever the size of a micro batch.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.whitebox.packing import PADDING_DOCUMENT


@dataclass(frozen=True)
class EmbeddingNoise:
    """Noise of this strength; an alpha of 0 adds none."""

    alpha: float
    seed: int

    @contextmanager
    def added(self, embedding: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """While this lasts, `embedding` gives the tokens of `batch` with noise; padding gets none."""
        if self.alpha == 0:
            yield
            return

        def add(_module: nn.Module, _inputs: Any, x_BxTxD: Tensor) -> Tensor:
            noise_BxTxD = self.noise(batch["document_ids"].cpu(), batch["places"].tolist(), x_BxTxD.shape[-1])
            return x_BxTxD + noise_BxTxD.to(x_BxTxD)

        hook = embedding.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()

    def noise(self, document_ids_BxT: Tensor, places: list[int], width: int) -> Tensor:
        """BxTxD for rows at these places of the stream."""
        rows = document_ids_BxT.numpy()
        return torch.from_numpy(
            np.stack([self._of_row(row_T, place, width) for row_T, place in zip(rows, places, strict=True)])
        )

    def _of_row(self, documents_T: np.ndarray, place: int, width: int) -> np.ndarray:
        uniform_TxD = np.random.default_rng([self.seed, place]).random((len(documents_T), width), np.float32)
        lengths_T = np.bincount(documents_T)[documents_T]
        scale_T = np.where(documents_T == PADDING_DOCUMENT, 0.0, self.alpha / np.sqrt(lengths_T * width))
        scaled: np.ndarray = (2 * uniform_TxD - 1) * scale_T[:, None].astype(np.float32)
        return scaled
