"""Documents that give benchmark questions away, found by their 8-grams of words.

A document is contaminated by a question if it holds a run of 13 or more of its words (GPT-3's length, Brown
et al. 2020, arXiv:2005.14165), or at least half of its 8-grams (PaLM asks for 70 %, Chowdhery et al. 2022,
arXiv:2204.02311), or, where it is shorter than that, all of it. Han and kana characters count as words. Case,
accents, punctuation, white space and invisible characters do not count.

Memory is bounded by the questions, not by the corpus: an index of hashes, and one batch of documents at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.gram_hits import GramHits, GramTable, find_grams, gram_hashes
from stages.corpus_prep.duplicates.words import DENSE, LETTER, character_tables, split_words
from stages.runtime.compiled import njit

NGRAM_WORDS = 8
LONG_RUN_WORDS = 13
MIN_OVERLAP = 0.5
MIN_WORDS = 6
"""Shorter texts than this are in every corpus."""


@dataclass(frozen=True)
class LeakRules:
    """From where on a document gives a question away."""

    long_run_words: int = LONG_RUN_WORDS
    long_run_characters: int = LONG_RUN_WORDS
    """For questions of which most words are Han or kana characters. Names of institutions alone have 13."""
    min_overlap: float = MIN_OVERLAP
    min_words: int = MIN_WORDS


@dataclass(frozen=True)
class Overlap:
    """A question's text that a document holds: which one, and how much of it."""

    item: str
    detail: str


@dataclass(frozen=True)
class Leaks:
    """What a batch of documents gives away, in the order of the documents, then of the index.

    document: int64 [leaks], place in the batch. item: int64, place in `ContaminationIndex.names`.
    longest_run: int64, words. share: float64, of the item's distinct n-grams.
    """

    document: NDArray[np.int64]
    item: NDArray[np.int64]
    longest_run: NDArray[np.int64]
    share: NDArray[np.float64]


class ContaminationIndex:
    """Finds texts of questions inside documents. Not for several threads at once: counters are kept."""

    def __init__(self, items: Sequence[tuple[str, str]], rules: LeakRules | None = None) -> None:
        """items: (name, text); a name may have several texts (a question and its right answer)."""
        self.rules = rules = rules or LeakRules()
        words = split_words(_as_array([text for _, text in items]))
        usable = np.flatnonzero(np.diff(words.offsets) >= max(1, rules.min_words))
        self.names = [items[number][0] for number in usable]
        self.num_too_short = len(items) - len(usable)
        dense = np.array([_is_dense(items[number][1]) for number in usable], np.bool_)
        self._long_run = np.where(dense, rules.long_run_characters, rules.long_run_words)
        texts = [words.hashes[words.offsets[n] : words.offsets[n + 1]] for n in usable]
        self._gram_words = np.array([min(len(text), NGRAM_WORDS) for text in texts], np.int64)
        grams = [
            np.unique(gram_hashes(text, size)) for text, size in zip(texts, self._gram_words, strict=True)
        ]
        self.sizes = np.array([len(own) for own in grams], np.int64)
        self._tables = [self._table(int(size), grams) for size in np.unique(self._gram_words)]
        # The items of the n-gram g (of all tables, one after the other) are owners[owned[g] : owned[g + 1]].
        places = self._places(grams)
        self._owners = np.repeat(np.arange(len(grams)), self.sizes)[np.argsort(places, kind="stable")]
        self._owned = np.concatenate(([0], np.cumsum(np.bincount(places)))).astype(np.int64)
        self._counters = np.full((5, len(self.names)), -1, np.int64)
        self._counted_in = np.full(len(self._owners), -1, np.int64)
        self._num_texts = 0

    def _table(self, size: int, grams: list[NDArray[np.uint64]]) -> GramTable:
        own = [grams[item] for item in np.flatnonzero(self._gram_words == size)]
        return GramTable.of(size, np.unique(np.concatenate(own)))

    def _bases(self) -> NDArray[np.int64]:
        """Where each table's n-grams begin in the numbering of all."""
        return np.concatenate(([0], np.cumsum([len(table.grams) for table in self._tables]))).astype(np.int64)

    def _places(self, grams: list[NDArray[np.uint64]]) -> NDArray[np.int64]:
        """Numbers of the n-grams of all items, item after item."""
        found = [np.empty(0, np.int64)]
        by_size = {
            table.size: (table, base) for table, base in zip(self._tables, self._bases(), strict=False)
        }
        for own, size in zip(grams, self._gram_words.tolist(), strict=True):
            table, base = by_size[size]
            found.append(np.searchsorted(table.grams, own) + base)
        return np.concatenate(found)

    def _hits(self, texts: pa.Array) -> GramHits:
        """Hits of all tables in the order of the texts; those of one text by the size of the n-grams."""
        words = split_words(texts)
        hits = [find_grams(words, table) for table in self._tables]
        text = np.concatenate([found.text for found in hits])
        first = np.concatenate([found.first_word for found in hits])
        grams = [found.gram + base for found, base in zip(hits, self._bases(), strict=False)]
        order = np.argsort(text, kind="stable")
        return GramHits(text[order], first[order], np.concatenate(grams)[order])

    def find_batch(self, texts: pa.Array) -> Leaks:
        """Every question that the documents (large_string) give away."""
        hits = self._hits(texts) if self.names else None
        if hits is None or not len(hits.text):
            return Leaks(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, np.int64, np.float64)))
        # Texts are numbered through all batches, so that the counters need never be cleared.
        number, self._num_texts = self._num_texts, self._num_texts + len(texts)
        document, item, run, seen = _runs(
            hits.text,
            hits.first_word,
            hits.gram,
            self._owned,
            self._owners,
            self._counters,
            self._counted_in,
            number,
        )
        share, longest = seen / self.sizes[item], run + self._gram_words[item] - 1
        leaks = ((run > 1) & (longest >= self._long_run[item])) | (share >= self.rules.min_overlap)
        return Leaks(document[leaks], item[leaks], longest[leaks], share[leaks])

    def find_all(self, text: str) -> list[Overlap]:
        """Every question that the text gives away, in the order of the index."""
        return self.overlaps(self.find_batch(_as_array([text])))

    def find(self, text: str) -> Overlap | None:
        """The first question (in the order of the index) that the text gives away, or None."""
        return next(iter(self.find_all(text)), None)

    def overlaps(self, leaks: Leaks) -> list[Overlap]:
        """The leaks in words."""
        return [
            Overlap(self.names[item], self._detail(int(item), int(run), float(share)))
            for item, run, share in zip(leaks.item, leaks.longest_run, leaks.share, strict=True)
        ]

    def _detail(self, item: int, longest_run: int, share: float) -> str:
        if longest_run >= self._long_run[item]:
            return f"run of {longest_run} words"
        return f"{share:.0%} of its {NGRAM_WORDS}-grams"


def _as_array(texts: Sequence[str]) -> pa.Array:
    """large_binary: lone surrogates, which UTF-8 has not, become question marks."""
    return pa.array([text.encode("utf-8", "replace") for text in texts], pa.large_binary())


def _is_dense(text: str) -> bool:
    kinds, _ = character_tables()
    own = kinds[[ord(character) for character in text]]
    return bool(2 * (own == DENSE).sum() > (own == LETTER).sum())


@njit(cache=True)
def _runs(texts, first_words, grams, owned, owners, counters, counted_in, first_number):
    """(text, item, longest run of n-grams, distinct n-grams) of each text and item with a hit.

    All counters belong to the text that is being read: `number_of` tells for which one an item's are,
    `counted_in` in which one an item's n-gram was counted. So memory is that of the index, however often a
    phrase occurs.
    """
    number_of, last, run, longest, distinct = counters
    touched = np.empty(len(number_of), np.int64)
    found, count, num_touched = np.empty((64, 4), np.int64), 0, 0
    for hit in range(len(texts)):
        text, first, gram = first_number + texts[hit], first_words[hit], grams[hit]
        for entry in range(owned[gram], owned[gram + 1]):
            item = owners[entry]
            if number_of[item] != text:
                number_of[item], run[item], longest[item], distinct[item] = text, 0, 0, 0
                touched[num_touched] = item
                num_touched += 1
            run[item] = run[item] + 1 if run[item] and last[item] == first - 1 else 1
            last[item] = first
            longest[item] = max(longest[item], run[item])
            if counted_in[entry] != text:
                counted_in[entry] = text
                distinct[item] += 1
        if hit + 1 == len(texts) or texts[hit + 1] != texts[hit]:
            touched[:num_touched].sort()
            for item in touched[:num_touched]:
                if count == len(found):
                    found = np.concatenate((found, np.empty_like(found)))
                found[count, 0], found[count, 1] = texts[hit], item
                found[count, 2], found[count, 3] = longest[item], distinct[item]
                count += 1
            num_touched = 0
    return found[:count, 0], found[:count, 1], found[:count, 2], found[:count, 3]
