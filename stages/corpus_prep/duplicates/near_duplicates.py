"""Near-duplicates of a corpus, from signatures to who stays: the steps in order.

    bands on disk -> candidate pairs on disk -> verified pairs -> clusters -> survivors

In memory are only: one partition of the bands, one block of signatures, the verified pairs (12 bytes each),
and a few numbers per document (about 40 bytes). On disk: 448 + 336 bytes per document with the default bands,
and 8 per candidate.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.candidates import (
    BLOCK_ROWS,
    BandFiles,
    CandidateCounts,
    write_candidates,
)
from stages.corpus_prep.duplicates.clusters import (
    SplitCluster,
    Survivors,
    choose_survivors,
    cluster_members,
    guarded_clusters,
)
from stages.corpus_prep.duplicates.minhash_bands import NUM_HASHES
from stages.corpus_prep.duplicates.row_file import RowFile
from stages.corpus_prep.duplicates.verification import (
    Edges,
    FetchWords,
    VerificationCounts,
    estimate_bounds,
    verify,
)

Confirm = Callable[[Edges], Edges]
"""Given verified pairs, numbered as they were added: those that count."""


@dataclass(frozen=True)
class NearDuplicateSettings:
    """How similar is too similar, and how similar pairs are looked for."""

    threshold: float = 0.72
    """Jaccard similarity of word 5-grams from which two documents are near-duplicates. FineWeb's bands
    have their step there: (1/14)^(1/8)."""
    bands: int = 28
    rows: int = 4
    margin: float = 0.1
    """So near to the threshold the texts decide and not the estimate."""
    max_cluster: int = 1000
    """Larger clusters are divided by a higher threshold, and the report says so."""


@dataclass
class NearDuplicateReport:
    """What was met on the way, for the funnel and the log."""

    candidates: CandidateCounts = field(default_factory=CandidateCounts)
    verification: VerificationCounts = field(default_factory=VerificationCounts)
    split_clusters: list[SplitCluster] = field(default_factory=list)
    num_clusters: int = 0
    largest_cluster: int = 0
    num_dropped: int = 0


class NearDuplicates:
    """Collects the signatures of a corpus in the work folder, then finds who stays.

    Documents are numbered in the order in which they are added. Those of earlier builds come first.
    """

    def __init__(self, folder: Path, settings: NearDuplicateSettings | None = None) -> None:
        self.folder = folder
        self.settings = settings or NearDuplicateSettings()
        shutil.rmtree(folder, ignore_errors=True)
        self.signatures = RowFile.create(folder / "signatures.bin", np.dtype("<u4"), NUM_HASHES)
        self.num_documents = 0
        self.num_earlier = 0

    def add_earlier(self, signatures: NDArray[np.uint32]) -> None:
        """Add documents that earlier builds kept: they stay, and only take others out.

        Raises:
            ValueError: documents of this build were added before.
        """
        if self.num_documents != self.num_earlier:
            raise ValueError("documents of earlier builds must be added before those of this build")
        self.add(signatures)
        self.num_earlier = self.num_documents

    def add(self, signatures: NDArray[np.uint32]) -> None:
        """Add signatures uint32 [documents, 112]."""
        self.signatures.append(signatures)
        self.num_documents += len(signatures)

    def _write_bands(self, include: NDArray[np.bool_] | None) -> BandFiles:
        bands = BandFiles(self.folder / "bands", self.settings.bands, self.settings.rows)
        for begin in range(0, self.num_documents, BLOCK_ROWS):
            numbers = np.arange(begin, min(begin + BLOCK_ROWS, self.num_documents))
            numbers = numbers if include is None else numbers[include[numbers]]
            bands.append(self.signatures.read(numbers), numbers)
        return bands

    def ranks(self, rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [all documents]: those of earlier builds before all of this one."""
        return np.concatenate((np.arange(self.num_earlier), rank + self.num_earlier))

    def find(
        self,
        rank: NDArray[np.int64],
        fetch: FetchWords | None = None,
        include: NDArray[np.bool_] | None = None,
        confirm: Confirm | None = None,
    ) -> tuple[Survivors, NearDuplicateReport]:
        """Who stays.

        rank: int64 [documents of this build] of `rank_documents`. fetch: where the words of documents of this
        build come from, numbered from 0, for the exact comparison; without it the estimate decides alone.
        include: bool [all documents], those to look at. confirm: what else a pair must fulfil.
        """
        ranks = self.ranks(rank)
        report, chosen = NearDuplicateReport(), self.settings
        bounds = estimate_bounds(chosen.threshold, chosen.margin, NUM_HASHES)
        bands = self._write_bands(include)
        pairs, report.candidates = write_candidates(
            [bands.files], self.signatures, ranks, bounds, self.folder / "pairs"
        )
        edges, report.verification = verify(
            pairs,
            self.signatures,
            chosen.threshold,
            chosen.margin,
            fetch,
            self.folder / "grams.bin",
            self.num_earlier,
        )
        edges = edges if confirm is None else confirm(edges)
        clusters = guarded_clusters(len(ranks), edges, chosen.threshold, chosen.max_cluster)
        report.split_clusters = clusters.split
        survivors = choose_survivors(edges, clusters, ranks)
        _, _, sizes = cluster_members(clusters.cluster)
        report.num_clusters = len(sizes)
        report.largest_cluster = int(sizes.max(initial=min(1, len(ranks))))
        report.num_dropped = int((~survivors.kept).sum())
        return survivors, report

    def remove(self) -> None:
        """Delete the work files."""
        shutil.rmtree(self.folder, ignore_errors=True)
