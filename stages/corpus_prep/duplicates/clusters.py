"""Clusters of near-duplicates, who of a cluster stays, and the guard against clusters that swallow a source.

A cluster is a connected component of verified pairs: its documents go to the same split. Who stays is decided
in the order of rank (better quality score, then source, then id): the best of a cluster stays, and whatever
is a verified duplicate of it goes. A document that hangs on the cluster only by others which go themselves is
not like the one that stays, so it is looked at again, in its turn. So every document that goes has one that
stays and is like it, and a chain of small differences cannot wipe out a source, as single linkage with one
survivor does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.verification import Edges
from stages.runtime.compiled import njit

GUARD_STEP = 0.05


def rank_documents(
    quality: pa.Array | NDArray, source_priority: pa.Array | NDArray, doc_ids: pa.Array | Sequence[str]
) -> NDArray[np.int64]:
    """int64 [documents], 0 for the one that stays before all others.

    Higher quality first, then the smaller priority number, then the smaller id. A missing score comes last.
    """
    table = pa.table({"quality": quality, "priority": source_priority, "doc_id": doc_ids})
    keys = [("quality", "descending"), ("priority", "ascending"), ("doc_id", "ascending")]
    order = pc.sort_indices(table, sort_keys=keys).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def connected_components(
    num: int, first: NDArray[np.integer], second: NDArray[np.integer]
) -> NDArray[np.int64]:
    """int64 [num]: the smallest number of each node's component; the smallest label spreads, paths are
    halved."""
    labels = np.arange(num, dtype=np.int64)
    while True:
        smaller = np.minimum(labels[first], labels[second])
        before = labels.copy()
        # Hook the roots, not only the nodes: whole trees join at once, so rounds are few.
        for nodes in (before[first], before[second], first, second):
            np.minimum.at(labels, nodes, smaller)
        while not np.array_equal(labels, jumped := labels[labels]):
            labels = jumped
        if np.array_equal(labels, before):
            return labels


@dataclass(frozen=True)
class SplitCluster:
    """What the guard did to one cluster that was too large: the most similar pair that it cut, and what was
    left."""

    size: int
    cut_similarity: float
    num_parts: int
    largest_part: int


@dataclass(frozen=True)
class Clusters:
    """cluster: int64 [documents], the smallest document of its connected component. used: bool [edges], which
    pairs the guard left. split: what it divided."""

    cluster: NDArray[np.int64]
    used: NDArray[np.bool_]
    split: list[SplitCluster]


def guarded_clusters(num_documents: int, edges: Edges, threshold: float, max_cluster: int) -> Clusters:
    """Connected components, with pairs cut out of those of more than max_cluster documents.

    There the threshold rises in steps of 0.05 until the parts are small enough; what still hangs together at
    0.95 and above is the same text. Cut pairs drop nobody, but `cluster` stays whole: it decides on the
    split, and what is similar must not lie astride.
    """
    nodes = np.unique(np.concatenate((edges.first, edges.second)))
    first, second = np.searchsorted(nodes, edges.first), np.searchsorted(nodes, edges.second)
    used = np.ones(len(first), np.bool_)
    whole = labels = connected_components(len(nodes), first, second)
    while len(large := _too_large(labels, max_cluster)) and threshold + GUARD_STEP < 1.0:
        threshold += GUARD_STEP
        used &= ~np.isin(labels[first], large) | (edges.similarity >= threshold)
        labels = connected_components(len(nodes), first[used], second[used])
    cluster = np.arange(num_documents, dtype=np.int64)
    cluster[nodes] = nodes[whole]
    split = []
    for label in _too_large(whole, max_cluster):
        parts = np.unique(labels[whole == label], return_counts=True)[1]
        cut = edges.similarity[~used & (whole[first] == label)]
        split.append(SplitCluster(int(parts.sum()), float(cut.max(initial=0)), len(parts), int(parts.max())))
    return Clusters(cluster, used, split)


def _too_large(labels: NDArray[np.int64], max_cluster: int) -> NDArray[np.int64]:
    names, sizes = np.unique(labels, return_counts=True)
    return names[sizes > max_cluster]


@dataclass(frozen=True)
class Survivors:
    """Who stays. keeper: int64 [documents], itself or the document that stays in its place. similarity:
    float32, to the keeper (1 for itself). cluster: int64, the smallest document of its cluster."""

    keeper: NDArray[np.int64]
    similarity: NDArray[np.float32]
    cluster: NDArray[np.int64]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """bool [documents]."""
        return self.keeper == np.arange(len(self.keeper))


def choose_survivors(edges: Edges, clusters: Clusters, rank: NDArray[np.int64]) -> Survivors:
    """Greedily in the order of rank, along the pairs that the guard left."""
    used = clusters.used
    keeper = np.arange(len(rank), dtype=np.int64)
    similarity = np.ones(len(rank), np.float32)
    first, second, weights = edges.first[used], edges.second[used], edges.similarity[used]
    sources, targets = np.concatenate((first, second)), np.concatenate((second, first))
    weights = np.concatenate((weights, weights))
    # By the rank of the source, then of the target: neighbours lie together, the best sources first.
    order = np.lexsort((rank[targets], rank[sources]))
    _drop_neighbours(sources[order], targets[order], weights[order], keeper, similarity)
    return Survivors(keeper, similarity, clusters.cluster)


TRAIN_ONLY = -1


def split_representatives(
    cluster: NDArray[np.int64], rank: NDArray[np.int64], max_cluster: int
) -> NDArray[np.int64]:
    """int64 [documents]: the best document of each one's cluster, whose id decides on the split of all of
    them.

    TRAIN_ONLY for a cluster of more than max_cluster documents: by hash it could make validation mostly one
    text.
    """
    found = np.arange(len(cluster), dtype=np.int64)
    _, members, sizes = cluster_members(cluster)
    members = members[np.lexsort((rank[members], cluster[members]))]
    best = members[np.cumsum(sizes) - sizes]
    found[members] = np.repeat(np.where(sizes > max_cluster, TRAIN_ONLY, best), sizes)
    return found


def cluster_members(
    cluster: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(names, documents, sizes) of the clusters of two and more; the documents in no order."""
    followers = np.flatnonzero(cluster != np.arange(len(cluster)))
    names, sizes = np.unique(cluster[followers], return_counts=True)
    return names, np.concatenate((names, followers)), sizes + 1


@njit(cache=True)
def _drop_neighbours(sources, targets, weights, keeper, similarity):
    for edge in range(len(sources)):
        source, target = np.int64(sources[edge]), np.int64(targets[edge])
        # Whoever is better than `source` had its turn: if `source` still stands, it stays for good.
        if keeper[source] == source and keeper[target] == target:
            keeper[target], similarity[target] = source, weights[edge]
