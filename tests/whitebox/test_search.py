"""Searching a store that is put together by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file

from stages.whitebox.bm25 import Bm25Index
from stages.whitebox.packed_strings import PackedStrings
from stages.whitebox.search import HybridIndex, best_rows, save_search_index
from stages.whitebox.static_embedder import initial_embedder
from stages.whitebox.tokenizer import PAD_PIECE, UNK_PIECE, Tokenizer

TEXTS = [
    "The lamp burns oil and gives light.",
    "The gate closes the yard at night.",
    "A pump lifts water out of the well.",
    "灯塔照亮海面。",
    "The lamp in the yard is a lantern.",
]
TITLES = ["lamp", "gate", "pump", "灯塔", "lantern"]


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    """150 pieces more than the fixed ones; ids as the project wants them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=3,
        pad_piece=PAD_PIECE,
        unk_piece=UNK_PIECE,
        minloglevel=2,
    )
    return model.getvalue()


def write_store(folder: Path, tokenizer_model: bytes, dense_weight: float = 0.5) -> Path:
    folder.mkdir()
    tokenizer = Tokenizer(tokenizer_model)
    ids = tokenizer.encode_batch(TEXTS)
    embedder = initial_embedder(np.ones(tokenizer.vocab_size), 16, seed=0)
    embedder.save(folder / "embedder.safetensors")
    save_file({"vectors": embedder.embed(ids)}, folder / "vectors.safetensors")
    rows = [str(row) for row in range(len(TEXTS))]
    index = Bm25Index.from_texts(TEXTS)
    path = folder / "search_index.safetensors"
    save_search_index(path, index, chunk_ids=rows, doc_ids=rows, titles=TITLES, texts=TEXTS)
    fusion = {"dense_weight": dense_weight, "bm25": {"k1": 1.2, "b": 0.75}}
    (folder / "fusion.json").write_text(json.dumps(fusion), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    return folder


@pytest.fixture
def store(tmp_path: Path, tokenizer_model: bytes) -> Path:
    return write_store(tmp_path / "store", tokenizer_model)


def test_a_chunk_is_found_by_its_text(store: Path) -> None:
    index = HybridIndex.from_folder(store)
    assert len(index) == len(TEXTS)
    for row, text in enumerate(TEXTS):
        hit = index.search(text)[0]
        assert (hit.chunk_id, hit.doc_id, hit.title, hit.text) == (str(row), str(row), TITLES[row], text)
        assert hit.score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dense_weight", [0.0, 0.35, 1.0])
def test_scores_are_both_legs_mixed(tmp_path: Path, tokenizer_model: bytes, dense_weight: float) -> None:
    index = HybridIndex.from_folder(write_store(tmp_path / "store", tokenizer_model, dense_weight))
    query = "the lamp of the yard"
    dense = index.vectors_NxD @ index.embed([query])[0]
    bm25 = Bm25Index.from_texts(TEXTS).scores(query)
    dense, bm25 = ((leg - leg.min()) / (leg.max() - leg.min()) for leg in (dense, bm25))
    expected = dense_weight * dense + (1 - dense_weight) * bm25
    np.testing.assert_allclose(index.scores(query), expected, atol=1e-6)
    hits = index.search(query, k=3)
    assert [int(hit.chunk_id) for hit in hits] == np.argsort(-expected, kind="stable")[:3].tolist()


def test_k_and_empty_queries(store: Path) -> None:
    index = HybridIndex.from_folder(store)
    assert len(index.search("lamp", k=2)) == 2
    assert len(index.search("lamp", k=100)) <= len(TEXTS)
    assert index.search("") == index.search(" \n") == index.search("lamp", k=0) == []


@pytest.mark.parametrize("k", [1, 3, 10, 49, 50, 80])
def test_best_rows_are_those_of_a_stable_sort(k: int) -> None:
    scores = np.random.default_rng(0).integers(0, 8, size=50) / 8
    assert best_rows(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_nothing_in_common_is_no_hit(tmp_path: Path, tokenizer_model: bytes) -> None:
    index = HybridIndex.from_folder(write_store(tmp_path / "store", tokenizer_model, dense_weight=0.0))
    assert index.search("zeppelin") == []
    assert [hit.title for hit in index.search("海面")] == ["灯塔"]


def test_vectors_are_mapped_not_read(store: Path) -> None:
    vectors = HybridIndex.from_folder(store).vectors_NxD
    assert not vectors.flags.owndata


@pytest.mark.parametrize(
    "name", ["search_index.safetensors", "vectors.safetensors", "embedder.safetensors", "tokenizer.model"]
)
def test_a_missing_file_is_named(store: Path, name: str) -> None:
    (store / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        HybridIndex.from_folder(store)


def test_files_of_different_stores_are_refused(store: Path) -> None:
    save_file({"vectors": np.zeros((3, 16), np.float32)}, store / "vectors.safetensors")
    with pytest.raises(ValueError, match="3 vectors, 5 indexed chunks"):
        HybridIndex.from_folder(store)


def test_packed_strings_give_back_every_string() -> None:
    strings = ["", "lamp", "灯塔", "👩‍🚀 e\u0301", "", "\x00 nul"]
    packed = PackedStrings.pack(strings)
    assert list(packed) == [packed[row] for row in range(len(packed))] == strings
    assert list(PackedStrings.pack([])) == []
    assert PackedStrings.pack(["\ud800"])[0] == "?"


def test_packed_strings_notice_damage() -> None:
    packed = PackedStrings.pack(["lamp", "gate"])
    with pytest.raises(ValueError, match="the file is damaged"):
        PackedStrings(packed.bytes_B[:-1], packed.offsets_N1)
