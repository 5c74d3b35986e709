"""Documents that give benchmark questions away, found by their 8-grams of words.

A document is contaminated by a question if it holds a run of 13 or more of its words (GPT-3's length, Brown
et al. 2020, arXiv:2005.14165), or at least half of its 8-grams (PaLM asks for 70 %, Chowdhery et al. 2022,
arXiv:2204.02311), or, where it is shorter than that, all of it. Han characters count as words.

Memory is bounded by the questions, not by the corpus: an index of hashes, and one document at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.quality_filters import word_list

NGRAM_WORDS = 8
LONG_RUN_WORDS = 13
MIN_OVERLAP = 0.5
MIN_WORDS = 6
"""Shorter texts than this are in every corpus."""

UNKNOWN = 0
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """A question's text that a document holds: which one, and how much of it."""

    item: str
    detail: str


class ContaminationIndex:
    """Finds texts of questions inside documents."""

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        """items: (name, text); a name may have several texts (a question and its right answer)."""
        words_of = [(name, word_list(text.lower())) for name, text in items]
        usable = [(name, words) for name, words in words_of if len(words) >= MIN_WORDS]
        distinct = sorted({word for _, words in usable for word in words})
        self._ids = {word: number for number, word in enumerate(distinct, start=1)}
        self.names = [name for name, _ in usable]
        self.sizes = np.array([max(1, len(words) - NGRAM_WORDS + 1) for _, words in usable], np.int64)
        self._grams: dict[int, NDArray[np.uint64]] = {}
        self._items: dict[int, NDArray[np.int64]] = {}
        for size in sorted({min(len(words), NGRAM_WORDS) for _, words in usable}):
            self._add_grams(size, [words for _, words in usable])

    def _add_grams(self, size: int, texts: list[list[str]]) -> None:
        """Index the texts whose n-grams have `size` words: 8, or all of a shorter text."""
        grams, items = [], []
        for number, words in enumerate(texts):
            if min(len(words), NGRAM_WORDS) == size:
                hashes = self._hash(words, size)
                grams.append(hashes)
                items.append(np.full(len(hashes), number, np.int64))
        flat, owners = np.concatenate(grams), np.concatenate(items)
        order = np.lexsort((owners, flat))
        self._grams[size], self._items[size] = flat[order], owners[order]

    def _hash(self, words: list[str], size: int) -> NDArray[np.uint64]:
        codes = np.array([self._ids.get(word, UNKNOWN) for word in words], np.uint64)
        return self._hash_codes(codes, size)

    @staticmethod
    def _hash_codes(codes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
        length = len(codes) - size + 1
        hashes = np.zeros(max(0, length), np.uint64)
        for offset in range(size):
            hashes = hashes * _FACTOR + codes[offset : offset + length] * np.uint64(0xD1B54A32D192ED03)
        return hashes

    def find(self, text: str) -> Overlap | None:
        """The first question (in the order of the index) that the text gives away, or None."""
        return next(iter(self.find_all(text)), None)

    def find_all(self, text: str) -> list[Overlap]:
        """Every question that the text gives away, in the order of the index."""
        if not self.names:
            return []
        ids = self._ids
        codes = np.array([ids.get(word, UNKNOWN) for word in word_list(text.lower())], np.uint64)
        known = np.cumsum(np.concatenate(([0], codes != UNKNOWN)))
        found: dict[int, str] = {}
        for size in self._grams:
            # A gram with a word that no question has cannot match; most texts end here.
            starts = np.flatnonzero(known[size:] - known[:-size] == size) if len(codes) >= size else ()
            if len(starts):
                found |= self._matches(codes, np.asarray(starts), size)
        return [Overlap(self.names[item], found[item]) for item in sorted(found)]

    def _matches(self, codes: NDArray[np.uint64], starts: NDArray[np.int64], size: int) -> dict[int, str]:
        """Item -> how it matches, for items with n-grams of `size` words."""
        hashes = self._hash_codes(codes, size)[starts]
        grams, items = self._grams[size], self._items[size]
        low, high = np.searchsorted(grams, hashes, "left"), np.searchsorted(grams, hashes, "right")
        hits: dict[int, list[int]] = {}
        for index in np.flatnonzero(high > low):
            for item in items[low[index] : high[index]]:
                hits.setdefault(int(item), []).append(int(starts[index]))
        distinct = {
            item: len({int(h) for h in self._hash_codes(codes, size)[where]}) for item, where in hits.items()
        }
        return {
            item: verdict
            for item, where in hits.items()
            if (verdict := self._judge(item, where, distinct[item]))
        }

    def _judge(self, item: int, starts: list[int], num_grams: int) -> str:
        run, longest = 1, 1
        for before, after in itertools.pairwise(starts):
            run = run + 1 if after == before + 1 else 1
            longest = max(longest, run)
        words = longest + NGRAM_WORDS - 1
        if longest > 1 and words >= LONG_RUN_WORDS:
            return f"run of {words} words"
        share = min(1.0, num_grams / self.sizes[item])
        return f"{share:.0%} of its {NGRAM_WORDS}-grams" if share >= MIN_OVERLAP else ""
