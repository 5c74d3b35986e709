"""Near-duplicates against exact Jaccard by Python sets, on texts with planted duplicates; every step by
itself."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.duplicates.candidates import MAX_ALL_PAIRS, MAX_LEADERS
from stages.corpus_prep.duplicates.clusters import (
    TRAIN_ONLY,
    choose_survivors,
    connected_components,
    guarded_clusters,
    rank_documents,
    split_representatives,
)
from stages.corpus_prep.duplicates.minhash_bands import band_hashes, candidate_probability, s_curve
from stages.corpus_prep.duplicates.near_duplicates import NearDuplicates, NearDuplicateSettings
from stages.corpus_prep.duplicates.verification import Edges, exact_similarities, words_of_parquet

THRESHOLD = 0.72


def _edges(rows):
    """Edges of (first, second, similarity) rows."""
    pairs = np.array([(a << 32) | b for a, b, _ in rows], np.uint64)
    return Edges.joined([Edges.of_pairs(pairs, np.array([s for *_, s in rows]))])


def _planted(make_text, perturb, chinese, seed=3):
    """Texts, and pairs of (document, its changed copy)."""
    rng = random.Random(seed)
    texts, pairs = [], []
    for _ in range(250):
        base = make_text(rng, rng.randint(60, 250), chinese)
        for _ in range(rng.choice((1, 1, 2))):
            texts += [base, perturb(rng, base, rng.choice((0.005, 0.01, 0.02, 0.04, 0.1, 0.15)), chinese)]
            pairs.append((len(texts) - 2, len(texts) - 1))
            base = make_text(rng, 80, chinese)
    return texts, pairs


@pytest.mark.parametrize("chinese", [False, True], ids=["english", "chinese"])
def test_planted_pairs_are_merged_as_exact_jaccard_says(
    corpus, make_text, perturb, jaccard, chinese, tmp_path: Path
) -> None:
    texts, pairs = _planted(make_text, perturb, chinese)
    made = corpus(texts)
    near = NearDuplicates(tmp_path / "near")
    for begin in range(0, len(texts), 100):
        near.add(made.signatures[begin : begin + 100])
    survivors, report = near.find(np.arange(len(texts)), made.fetch)
    similar = {pair: jaccard(texts[pair[0]], texts[pair[1]]) for pair in pairs}
    merged = {pair for pair in pairs if survivors.keeper[pair[1]] == pair[0]}
    above = {pair for pair, s in similar.items() if s >= THRESHOLD + 0.1}
    below = {pair for pair, s in similar.items() if s < THRESHOLD - 0.1}
    close = set(pairs) - above - below
    assert len(above) > 60 and len(below) > 60 and len(close) > 20
    assert len(above & merged) >= 0.99 * len(above)
    assert len(below & merged) < 0.01 * len(below)
    # Where the estimate is close, the texts decide: nearly all of these are as exact Jaccard says.
    right = sum((pair in merged) == (similar[pair] >= THRESHOLD) for pair in close)
    assert right >= 0.95 * len(close)
    # Nothing else is merged: who goes has one that stays and is like it.
    for gone in np.flatnonzero(~survivors.kept):
        assert jaccard(texts[gone], texts[survivors.keeper[gone]]) >= THRESHOLD - 0.1
        assert survivors.kept[survivors.keeper[gone]]
    assert report.num_dropped == len(texts) - survivors.kept.sum() == len(merged)
    assert 0 < report.verification.num_compared_exactly < len(pairs)
    assert set(made.fetched) <= {document for pair in pairs for document in pair}


def test_exact_similarities_are_those_of_python_sets(corpus, make_text, perturb, jaccard, tmp_path) -> None:
    rng = random.Random(1)
    base = make_text(rng, 50, False)
    texts = [
        base,
        perturb(rng, base, 0.1, False),
        "",
        "one two",
        "one two",
        "one two three four five six",
        base,
    ]
    pairs = list(itertools.combinations(range(len(texts)), 2))
    packed = np.array([(a << 32) | b for a, b in pairs], np.uint64)
    found = exact_similarities(packed, corpus(texts).fetch, tmp_path / "grams")
    assert found.tolist() == [jaccard(texts[a], texts[b]) for a, b in pairs]
    assert not (tmp_path / "grams").exists()


def test_words_are_fetched_from_the_row_groups_that_hold_them(tmp_path: Path) -> None:
    texts = [f"text number {number}" for number in range(25)]
    for name, part in (("a", texts[:12]), ("b", texts[12:])):
        pq.write_table(pa.table({"text": part}), tmp_path / name, row_group_size=5)
    seen: list[list[str]] = []

    def hash_words(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        seen.append(array.to_pylist())
        return np.arange(len(array) + 1), np.zeros(len(array), np.uint64)

    fetch = words_of_parquet([tmp_path / "a", tmp_path / "b"], "text", hash_words)
    assert len(list(fetch(np.array([0, 4, 11, 12, 24])))) == 4
    assert seen == [[texts[0], texts[4]], [texts[11]], [texts[12]], [texts[24]]]


def test_a_pair_is_found_although_the_first_of_its_bucket_is_a_stranger(tmp_path: Path) -> None:
    # All share the first band; documents 1 and 2 share nothing with document 0 beyond it.
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**32, (3, 112), np.uint32)
    rows[:, :4] = 5
    rows[2, :90] = rows[1, :90]
    rows[2, 4:90:4] += 1  # no other band is shared
    survivors, report = _find(rows, tmp_path, threshold=0.5, margin=0.0)
    assert survivors.keeper.tolist() == [0, 1, 1]
    assert report.candidates.num_buckets == 1


def test_a_huge_bucket_is_resolved_by_leaders_in_the_order_of_rank(tmp_path: Path) -> None:
    # 12 texts of 40 near copies each, all with one band of boilerplate in common.
    rng = np.random.default_rng(0)
    texts = rng.integers(0, 2**32, (12, 112), np.uint32)
    rows = np.repeat(texts, 40, axis=0)
    noise = rng.random(rows.shape) < 0.1
    rows[noise] = rng.integers(0, 2**32, int(noise.sum()), np.uint32)
    rows[:, :4] = 5
    order = rng.permutation(len(rows))
    text_of = (np.arange(len(rows)) // 40)[order]
    survivors, report = _find(rows[order], tmp_path, threshold=0.6, rank=rng.permutation(len(rows)))
    assert report.candidates.largest_bucket == len(rows) > MAX_ALL_PAIRS
    assert report.candidates.num_huge_buckets >= 1 and report.candidates.num_unresolved == 0
    assert sorted(text_of[survivors.kept]) == list(range(12))
    assert (text_of == text_of[survivors.keeper]).all()
    # A star on the bucket's first document would have verified the pairs of one text only.
    assert report.num_dropped == len(rows) - 12


def test_strangers_that_share_boilerplate_stay_and_who_was_not_compared_is_counted(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2**32, (MAX_LEADERS + 40, 112), np.uint32)
    rows[:, :4] = 5
    rows[-1, 4:] = rows[0, 4:]
    survivors, report = _find(rows, tmp_path)
    assert np.flatnonzero(~survivors.kept).tolist() == [len(rows) - 1]
    assert report.candidates.num_unresolved == 39


@pytest.mark.parametrize("size", [7, 1000])
def test_batches_change_nothing(size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 2**32, (400, 112), np.uint32)
    rows[200:, :90] = rows[:200, :90]
    rank = rng.permutation(400)
    whole, _ = _find(rows, tmp_path / "whole", rank)
    near = NearDuplicates(tmp_path / "parts")
    for begin in range(0, 400, size):
        near.add(rows[begin : begin + size])
    parts, _ = near.find(rank)
    assert parts.keeper.tobytes() == whole.keeper.tobytes()
    assert parts.similarity.tobytes() == whole.similarity.tobytes()
    assert whole.kept.sum() == 200


def _find(rows, folder, rank=None, **settings):
    near = NearDuplicates(folder / "near", NearDuplicateSettings(**settings))
    near.add(rows)
    return near.find(np.arange(len(rows)) if rank is None else rank)


def test_documents_without_words_are_never_merged(tmp_path: Path) -> None:
    survivors, report = _find(np.full((30, 112), 0xFFFFFFFF, np.uint32), tmp_path)
    assert survivors.kept.all() and report.verification.num_candidates == 0


def test_documents_of_earlier_builds_stay_and_take_others_out(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2**32, (4, 112), np.uint32)
    near = NearDuplicates(tmp_path / "near")
    near.add_earlier(rows[[0, 0, 1]])
    near.add(rows[[2, 1, 0]])
    survivors, _ = near.find(np.array([2, 1, 0]))
    # The two equal ones of earlier builds are left alone: that was decided there.
    assert survivors.keeper.tolist() == [0, 1, 2, 3, 2, 0]
    with pytest.raises(ValueError, match="before those of this build"):
        near.add_earlier(rows)


def test_band_hashes_agree_just_where_the_rows_do() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (50, 12)).astype(np.uint32)
    found = band_hashes(rows, bands=4, rows=3)
    for a, b in itertools.combinations(range(50), 2):
        for band, other in itertools.product(range(4), repeat=2):
            same = (
                band == other and (rows[a, 3 * band : 3 * band + 3] == rows[b, 3 * band : 3 * band + 3]).all()
            )
            assert (found[a, band] == found[b, other]) == same
    with pytest.raises(ValueError, match="need 15 hashes, there are 12"):
        band_hashes(rows, bands=5, rows=3)


def test_the_s_curve_is_what_drawn_signatures_do() -> None:
    assert candidate_probability(0.8, 14, 8) == pytest.approx(0.924, abs=1e-3)  # FineWeb's own figure
    rng = np.random.default_rng(0)
    for similarity, candidate, merged in s_curve(28, 4, THRESHOLD, (0.3, 0.5, 0.7, 0.8)):
        equal = rng.random((4000, 28, 4)) < similarity
        bands = equal.all(axis=2).any(axis=1)
        assert bands.mean() == pytest.approx(candidate, abs=0.03)
        reached = equal.sum(axis=(1, 2)) >= np.ceil(THRESHOLD * 112)
        assert (bands & reached).mean() == pytest.approx(merged, abs=0.03)


def test_connected_components_are_those_of_flooding(flood) -> None:
    rng = random.Random(2)
    for num_edges in (0, 1, 30, 60, 200):
        edges = [(rng.randrange(100), rng.randrange(100)) for _ in range(num_edges)]
        first, second = np.array(edges, np.int64).reshape(-1, 2).T
        labels = connected_components(100, first, second)
        expected = np.arange(100)
        for group in flood(edges):
            expected[list(group)] = min(group)
        assert labels.tolist() == expected.tolist()


def test_a_long_chain_is_one_component() -> None:
    order = np.random.default_rng(0).permutation(20_000)
    assert set(connected_components(20_000, order[:-1], order[1:])) == {0}


def test_who_stays_is_the_best_and_a_chain_wipes_nobody_out() -> None:
    # 0 - 1 - 2 - 3 is a chain: 1 is the best, so 0 and 2 go; 3 is like 2 only, which is not there any more.
    edges = _edges([(0, 1, 0.8), (1, 2, 0.75), (2, 3, 0.9)])
    clusters = guarded_clusters(5, edges, THRESHOLD, max_cluster=10)
    survivors = choose_survivors(edges, clusters, np.array([2, 0, 1, 3, 4]))
    assert survivors.keeper.tolist() == [1, 1, 1, 3, 4]
    assert survivors.similarity.tolist() == pytest.approx([0.8, 1, 0.75, 1, 1])
    assert survivors.cluster.tolist() == [0, 0, 0, 0, 4]


def test_the_guard_divides_a_cluster_at_its_weakest_pairs_and_says_so() -> None:
    inner = [(a, b, 0.9) for a, b in itertools.combinations(range(4), 2)]
    other = [(a, b, 0.85) for a, b in itertools.combinations(range(4, 8), 2)]
    small = [(10, 11, 0.73)]
    edges = _edges([*inner, *other, (3, 4, 0.74), *small])
    clusters = guarded_clusters(12, edges, THRESHOLD, max_cluster=4)
    (split,) = clusters.split
    assert (split.size, split.num_parts, split.largest_part) == (8, 2, 4)
    assert split.cut_similarity == pytest.approx(0.74)
    assert clusters.used.sum() == len(edges.first) - 1  # the small cluster's weak pair is left alone
    assert len(set(clusters.cluster[:8])) == 1  # for the split they stay together
    survivors = choose_survivors(edges, clusters, np.arange(12))
    assert np.flatnonzero(survivors.kept).tolist() == [0, 4, 8, 9, 10]
    same = guarded_clusters(8, _edges([*inner, (3, 4, 0.99)]), THRESHOLD, max_cluster=2)
    assert (same.split[0].num_parts, same.split[0].largest_part) == (4, 2)


def test_the_split_follows_the_best_of_the_cluster_and_huge_ones_are_for_training() -> None:
    cluster = np.array([0, 0, 2, 3, 3, 3])
    found = split_representatives(cluster, rank=np.array([5, 1, 0, 4, 2, 3]), max_cluster=2)
    assert found.tolist() == [1, 1, 2, TRAIN_ONLY, TRAIN_ONLY, TRAIN_ONLY]


def test_rank_is_quality_then_source_then_id() -> None:
    rank = rank_documents(
        np.array([0.5, 0.9, 0.5, 0.5], np.float32), np.array([1, 7, 0, 1]), ["b", "z", "y", "a"]
    )
    assert rank.tolist() == [3, 0, 1, 2]
