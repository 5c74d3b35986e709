"""Deduplication of documents as a whole: against earlier builds, exactly, then nearly.

dedup = Deduplicator(work / "dedup", settings, earlier=[index folders])
for batch in measured batches: dedup.add(batch["text_hash"], batch["signature"])
decisions, report = dedup.decide(rank_documents(quality, priority, doc_ids), fetch)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.clusters import TRAIN_ONLY, split_representatives
from stages.corpus_prep.duplicates.dedup_index import (
    EarlierDocument,
    earlier_batches,
    name_documents,
    signature_rows,
)
from stages.corpus_prep.duplicates.exact_duplicates import exact_keepers, hash_halves
from stages.corpus_prep.duplicates.near_duplicates import (
    Confirm,
    NearDuplicateReport,
    NearDuplicates,
    NearDuplicateSettings,
)
from stages.corpus_prep.duplicates.verification import FetchWords

KEPT, EXACT_DUPLICATE, NEAR_DUPLICATE = 0, 1, 2


@dataclass(frozen=True)
class Decisions:
    """Per document of this build, in the order in which they were added.

    verdict: uint8, KEPT, EXACT_DUPLICATE or NEAR_DUPLICATE. keeper: int64, the document that stays in its
    place (itself where it stays); keepers below 0 are of earlier builds, row ~keeper of their indexes.
    similarity: float32, to the keeper. representative: int64 in the same numbering, the document whose id
    decides on the split, or None of them where `train_only` is set.
    """

    verdict: NDArray[np.uint8]
    keeper: NDArray[np.int64]
    similarity: NDArray[np.float32]
    representative: NDArray[np.int64]
    train_only: NDArray[np.bool_]
    earlier: tuple[Path, ...] = ()

    def earlier_documents(self) -> dict[int, EarlierDocument]:
        """Every document of earlier builds that is named here: its (negative) number -> id, source and split
        key."""
        numbers = np.unique(np.concatenate((self.keeper, self.representative)))
        rows = ~numbers[numbers < 0]
        return {~row: document for row, document in name_documents(self.earlier, rows).items()}


class Deduplicator:
    """Collects text hashes and signatures batch by batch, then decides."""

    def __init__(
        self, folder: Path, settings: NearDuplicateSettings | None = None, earlier: Sequence[Path] = ()
    ) -> None:
        """folder: for work files, emptied first. earlier: folders of dedup indexes."""
        self.near = NearDuplicates(folder, settings)
        self.earlier = tuple(earlier)
        self._halves: list[NDArray[np.uint64]] = []
        for halves, signatures in earlier_batches(self.earlier):
            self._halves.append(halves.copy())
            self.near.add_earlier(signatures)

    def add(self, text_hashes: pa.Array, signatures: pa.Array) -> None:
        """Add documents: fixed_size_binary(16) and fixed_size_list<uint32>[112] of one batch."""
        self._halves.append(hash_halves(text_hashes).copy())
        self.near.add(signature_rows(signatures))

    def decide(
        self,
        rank: NDArray[np.int64],
        fetch: FetchWords | None = None,
        confirm: Confirm | None = None,
    ) -> tuple[Decisions, NearDuplicateReport]:
        """Who stays. rank, fetch, confirm: as for `NearDuplicates.find`."""
        num_earlier, ranks = self.near.num_earlier, self.near.ranks(rank)
        halves = np.concatenate(self._halves) if self._halves else np.empty((0, 2), np.uint64)
        self._halves.clear()
        same = exact_keepers(halves, ranks)
        del halves
        # No two texts are more alike than 1: then only equal ones are duplicates.
        looked_at = (same == np.arange(len(same))) & (self.near.settings.threshold <= 1)
        survivors, report = self.near.find(rank, fetch, looked_at, confirm)
        keeper, similarity = survivors.keeper[same], survivors.similarity[same]
        representative = split_representatives(survivors.cluster[same], ranks, self.near.settings.max_cluster)
        own = slice(num_earlier, None)
        exact = same[own] != np.arange(num_earlier, len(same))
        stays = keeper[own] == np.arange(num_earlier, len(same))
        verdict = np.where(stays, KEPT, np.where(exact, EXACT_DUPLICATE, NEAR_DUPLICATE)).astype(np.uint8)
        train_only = representative[own] == TRAIN_ONLY
        representative = np.where(train_only, np.arange(num_earlier, len(same)), representative[own])
        return Decisions(
            verdict,
            _renumbered(keeper[own], num_earlier),
            similarity[own],
            _renumbered(representative, num_earlier),
            train_only,
            self.earlier,
        ), report


def _renumbered(documents: NDArray[np.int64], num_earlier: int) -> NDArray[np.int64]:
    """Documents of this build from 0, those of earlier builds as ~row."""
    return np.where(documents < num_earlier, ~documents, documents - num_earlier)
