"""Training pairs: nothing of held-out documents, and the anchor is not in its positive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stages.vector_store.chunking import Chunker
from stages.vector_store.corpus import Corpus, cut_corpus
from stages.vector_store.pairs import ChunkPairs, TrainingChunk, training_chunks


class Words:
    """Every distinct word is a token; `words` gives the text back."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.numbers.setdefault(w, len(self.numbers)) for w in text.split()] for text in texts]

    def words(self, ids: np.ndarray) -> str:
        names = list(self.numbers)
        return " ".join(names[i] for i in ids)


def corpus_of(words: Words, count: int = 12) -> Corpus:
    text = "The lamp{n} burns{n} oil{n} very slowly{n}. Trim{n} its wick{n} each dark{n} evening{n}. Stop{n}."
    rows = [
        {"doc_id": f"d{n}", "title": f"lamps.lamp_{n}", "split": "train", "text": text.format(n=n)}
        for n in range(count)
    ]
    return cut_corpus(rows, Chunker(words, 16, 0), lambda done: None)


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def chunks(words: Words) -> list[TrainingChunk]:
    return training_chunks(corpus_of(words), frozenset({3, 7}), words, lambda: None)


def test_held_out_documents_are_not_in_it(chunks: list[TrainingChunk], words: Words) -> None:
    assert {chunk.document for chunk in chunks} == set(range(12)) - {3, 7}
    batch = ChunkPairs(chunks).draw(np.random.default_rng(0), 200)
    text = " ".join(words.words(ids) for ids in [*batch.anchors, *batch.positives])
    assert "lamp4" in text and "lamp3" not in text and "lamp7" not in text


def test_a_chunk_knows_its_sentences_and_its_summary(chunks: list[TrainingChunk], words: Words) -> None:
    first = chunks[0]
    assert [words.words(ids) for ids in first.sentences] == [
        "The lamp0 burns0 oil0 very slowly0.", "Trim0 its wick0 each dark0 evening0.", "Stop0.",
    ]  # fmt: skip
    assert first.summary == 0
    assert words.words(first.title) == "lamps.lamp_0"
    assert words.words(first.context) == "lamps.lamp_0 lamps.lamp_0 lamps.lamp_0"


def test_anchors_are_cut_out_of_their_positives(chunks: list[TrainingChunk], words: Words) -> None:
    batch = ChunkPairs(chunks).draw(np.random.default_rng(1), 300)
    kept = titles = 0
    for anchor, positive, document in zip(*batch, strict=True):
        asked, found = words.words(anchor), words.words(positive)
        if asked == f"lamps.lamp_{document}":
            titles += 1
            assert "lamps." not in found
        else:
            kept += asked in found
            assert found.startswith(f"lamps.lamp_{document}")
        assert f"{document}." in found
    assert 20 < titles < 200
    assert 0 < kept < 60


def test_one_sentence_chunks_are_asked_for_by_their_title(words: Words) -> None:
    ids = np.array(words.encode_batch(["one long enough sentence"])[0])
    title = np.array(words.encode_batch(["lamp"])[0])
    pairs = ChunkPairs([TrainingChunk(0, title, title, [ids], None)])
    batch = pairs.draw(np.random.default_rng(0), 20)
    assert {words.words(anchor) for anchor in batch.anchors} == {"lamp"}
    assert {words.words(positive) for positive in batch.positives} == {"one long enough sentence"}


def test_the_same_seed_draws_the_same(chunks: list[TrainingChunk]) -> None:
    one, two = (ChunkPairs(chunks).draw(np.random.default_rng(5), 50) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one.anchors, two.anchors, strict=True))
    assert (one.documents_B == two.documents_B).all()


def test_without_chunks_there_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="no chunk to train on"):
        ChunkPairs([])


def test_a_stop_request_gets_through(words: Words) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        training_chunks(corpus_of(words), frozenset(), words, stop)
