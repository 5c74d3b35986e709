"""Turn chunks into terms and tokens, and those into the two legs of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.vector_store.corpus import Corpus
from stages.vector_store.questions import Question
from stages.whitebox.bm25 import Bm25Index, TermCounter
from stages.whitebox.static_embedder import StaticEmbedder
from stages.whitebox.tokenizer import Tokenizer

TEXTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Legs:
    """Both rankings of the same chunks, and how to embed a question."""

    bm25: Bm25Index
    vectors_NxD: np.ndarray
    embed: Callable[[Sequence[str]], np.ndarray]


@dataclass
class IndexedTexts:
    """All chunks as token ids (for the embedder) and as term numbers (for BM25)."""

    tokenizer: Tokenizer
    token_ids: list[np.ndarray] = field(default_factory=list)
    term_ids: list[np.ndarray] = field(default_factory=list)
    counter: TermCounter = field(default_factory=TermCounter)

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Tokenizer, on_chunk: Callable[[int], None]) -> IndexedTexts:
        """Read every chunk; `on_chunk(done)` is called now and then, and may raise to stop."""
        texts = cls(tokenizer)
        for first in range(0, len(corpus.chunks), TEXTS_AT_ONCE):
            some = [corpus.indexed_text(chunk) for chunk in corpus.chunks[first : first + TEXTS_AT_ONCE]]
            texts.token_ids += texts.tokens(some)
            texts.term_ids += [texts.counter.ids(text) for text in some]
            on_chunk(len(texts.token_ids))
        return texts

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text."""
        return [np.array(ids, dtype=np.int64) for ids in self.tokenizer.encode_batch(texts)]

    def token_counts(self) -> np.ndarray:
        """How often each token of the vocabulary occurs: counts_V."""
        return np.bincount(np.concatenate(self.token_ids), minlength=self.tokenizer.vocab_size)

    def legs(self, embedder: StaticEmbedder, k1: float, b: float) -> Legs:
        """What ships."""
        bm25 = Bm25Index.from_term_ids(self.term_ids, self.counter.numbers, k1, b)
        return Legs(bm25, embedder.embed(self.token_ids), lambda some: embedder.embed(self.tokens(some)))

    def legs_without(self, shipped: Legs, corpus: Corpus, questions: Sequence[Question]) -> Legs:
        """The same, but with the questions' own sentences cut out of their documents: for the evaluation."""
        hidden = hidden_spans(corpus, questions)
        texts = [corpus.indexed_text(corpus.chunks[row], span) for row, span in hidden.items()]
        vectors_NxD, term_ids = shipped.vectors_NxD.copy(), list(self.term_ids)
        vectors_NxD[list(hidden)] = shipped.embed(texts)
        for row, text in zip(hidden, texts, strict=True):
            term_ids[row] = self.counter.ids(text)
        bm25 = Bm25Index.from_term_ids(term_ids, self.counter.numbers, shipped.bm25.k1, shipped.bm25.b)
        return Legs(bm25, vectors_NxD, shipped.embed)


def hidden_spans(corpus: Corpus, questions: Sequence[Question]) -> dict[int, tuple[int, int]]:
    """Row of each chunk that holds a part of a question's sentence -> the span to leave out of it."""
    spans = {question.document: (question.start, question.end) for question in questions}
    hidden: dict[int, tuple[int, int]] = {}
    for row, chunk in enumerate(corpus.chunks):
        start, end = spans.get(chunk.document, (0, 0))
        if max(start, chunk.start) < min(end, chunk.end):
            hidden[row] = (start, end)
    return hidden
