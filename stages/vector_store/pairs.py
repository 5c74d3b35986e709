"""Training pairs for the embedder, made of the documents alone: what could be asked, what should be found.

Three kinds of anchors, all from documents that no evaluation question is taken from:

* title: the document's title -> a chunk of it, without the title in front
* summary: its first prose sentence -> the chunk around it, without that sentence
* sentence: any sentence of any chunk -> the rest of the chunk
  (inverse cloze task, Lee et al. 2019, arXiv:1906.00300)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from stages.vector_store.chunking import Encoder
from stages.vector_store.corpus import Chunk, Corpus
from stages.vector_store.prose import sentence_spans, summary_span
from stages.whitebox.static_embedder import PairBatch

TITLE_FRACTION, SUMMARY_FRACTION = 0.15, 0.4
KEEP_SENTENCE_FRACTION = 0.1
"""So often the sentence stays in its chunk, so that the embedder also learns to match words (Lee et al.
2019)."""
FEWEST_ANCHOR_TOKENS = 4
CHUNKS_AT_ONCE = 512


@dataclass(frozen=True)
class TrainingChunk:
    """One chunk as token ids: its context (title and headings), and its sentences one after the other."""

    document: int
    title: np.ndarray
    context: np.ndarray
    sentences: Sequence[np.ndarray]
    summary: int | None
    """Which sentence is the document's summary, if it is in this chunk."""


def training_chunks(
    corpus: Corpus, held_out: Collection[int], encoder: Encoder, check_stop: Callable[[], None]
) -> list[TrainingChunk]:
    """All chunks but those of held-out documents, cut into sentences; `check_stop` may raise to stop."""
    chunks = [chunk for chunk in corpus.chunks if chunk.document not in held_out]
    summaries: dict[int, tuple[int, int] | None] = {}
    result: list[TrainingChunk] = []
    for first in range(0, len(chunks), CHUNKS_AT_ONCE):
        check_stop()
        some = chunks[first : first + CHUNKS_AT_ONCE]
        for chunk in some:
            if chunk.document not in summaries:
                summaries[chunk.document] = summary_span(corpus.documents[chunk.document].text)
        result += _encoded(corpus, some, summaries, encoder)
    return result


def _encoded(
    corpus: Corpus, chunks: Sequence[Chunk], summaries: dict[int, tuple[int, int] | None], encoder: Encoder
) -> Iterator[TrainingChunk]:
    """One call of the tokenizer for many chunks: title, context and sentences of each, one after the
    other."""
    spans = [sentence_spans(corpus.documents[c.document].text, c.start, c.end) for c in chunks]
    texts: list[str] = []
    for chunk, borders in zip(chunks, spans, strict=True):
        document = corpus.documents[chunk.document]
        texts += [document.title, corpus.indexed_context(chunk)]
        texts += [document.text[start:end] for start, end in borders]
    ids = [np.array(some, dtype=np.int64) for some in encoder.encode_batch(texts)]
    ends = list(accumulate(len(borders) + 2 for borders in spans))
    for chunk, borders, end in zip(chunks, spans, ends, strict=True):
        title, context, *sentences = ids[end - len(borders) - 2 : end]
        summary = summaries[chunk.document]
        place = borders.index(summary) if summary in borders else None
        yield TrainingChunk(chunk.document, title, context, sentences, place)


@dataclass
class ChunkPairs:
    """Draws pairs from training chunks; a PairSampler."""

    chunks: Sequence[TrainingChunk]
    _with_summary: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if not self.chunks:
            raise ValueError("there is no chunk to train on")
        self._with_summary = [n for n, chunk in enumerate(self.chunks) if chunk.summary is not None]

    def draw(self, rng: np.random.Generator, batch_size: int) -> PairBatch:
        """A batch of pairs as token ids, every draw independent of the others."""
        anchors, positives, documents = [], [], []
        for kind in rng.random(batch_size):
            anchor, positive, document = self._pair(rng, kind)
            anchors.append(anchor)
            positives.append(positive)
            documents.append(document)
        return PairBatch(anchors, positives, np.array(documents))

    def _pair(self, rng: np.random.Generator, kind: float) -> tuple[np.ndarray, np.ndarray, int]:
        if kind < SUMMARY_FRACTION and self._with_summary:
            chunk = self.chunks[self._with_summary[int(rng.integers(len(self._with_summary)))]]
            return self._without(rng, chunk, chunk.summary or 0)
        chunk = self.chunks[int(rng.integers(len(self.chunks)))]
        if kind > 1 - TITLE_FRACTION and len(chunk.title):
            return chunk.title, np.concatenate(chunk.sentences), chunk.document
        return self._without(rng, chunk, int(rng.integers(len(chunk.sentences))))

    def _without(
        self, rng: np.random.Generator, chunk: TrainingChunk, sentence: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        anchor = chunk.sentences[sentence]
        if len(chunk.sentences) == 1 or len(anchor) < FEWEST_ANCHOR_TOKENS:
            # Nothing would be left, or nothing is asked: the title is the better question.
            anchor = chunk.title if len(chunk.title) else anchor
            return anchor, np.concatenate(chunk.sentences), chunk.document
        keep = rng.random() < KEEP_SENTENCE_FRACTION
        rest = [ids for n, ids in enumerate(chunk.sentences) if keep or n != sentence]
        return anchor, np.concatenate([chunk.context, *rest]), chunk.document
