"""Runs of words that stand in several documents, cut out of all but the first (exact substrings, Lee et al.
2021, arXiv:2107.06499, who do it with a suffix array).

A suffix array needs the whole corpus in memory, five to nine bytes per byte. Hashes of runs of N words find
the same repeats (every repeat of N or more words, nothing shorter) shard by shard, and need no package.
Writing the hash of every run would be twice the text, so three passes do it:

    1. fingerprints of half runs, winnowed (Schleimer, Wilkerson and Aiken 2003): of every N - k + 1
       neighbouring hashes of k words the smallest is kept, so two texts with N words in common
       share one. About one word in 13 for N = 50.
    2. near repeated fingerprints only: hashes of all runs of N words.
    3. what such a run of several documents covers is cut out, but for the first document.

Limits: words are those of `split_words`, so a repeat counts up to case and punctuation, and what stands
between its words goes with it. A repeat inside one document stays. Hashes have 64 bits. Disk: about 1 byte
per word, and 12 per word that lies near a repeat; memory: 12 bytes per repeated run of N words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.gram_hits import gram_hashes
from stages.corpus_prep.duplicates.partitioned_files import append_hashes, create_hash_files
from stages.corpus_prep.duplicates.repeated_spans import RepeatedHashes, Spans, count_repeated
from stages.corpus_prep.duplicates.words import Words, split_words


class RepeatedRuns:
    """Three passes over the same texts in the same order: `add`, `near`, `find`, with `count` after the first
    two."""

    def __init__(self, folder: Path, num_words: int = 50, more_than_documents: int = 1) -> None:
        """num_words: shortest run that counts as repeated.

        Raises:
            ValueError: num_words is under 2.
        """
        if num_words < 2:
            raise ValueError(f"a run has at least 2 words, not {num_words}")
        self.num_words = num_words
        self.mark_words = (num_words + 1) // 2
        self.more_than_documents = more_than_documents
        self.folder = folder
        self.files = create_hash_files(folder)
        self.repeated: RepeatedHashes | None = None
        self._number = 0

    def count(self) -> RepeatedHashes:
        """After `add` and after `near`: which hashes are in several documents. The next pass begins."""
        self.repeated = count_repeated([self.files], self.more_than_documents)
        self.files = create_hash_files(self.folder)
        self._number = 0
        return self.repeated

    def add(self, texts: pa.Array) -> None:
        """First pass: fingerprints of a batch (large_string)."""
        for document, hashes, _ in self._texts(texts):
            marks = gram_hashes(hashes, self.mark_words)
            chosen = marks[winnowed(marks, self.num_words - self.mark_words + 1)]
            append_hashes(self.files, chosen, np.full(len(chosen), document))

    def near(self, texts: pa.Array) -> None:
        """Second pass: the runs that hold a repeated fingerprint."""
        for document, hashes, _ in self._texts(texts):
            marks = gram_hashes(hashes, self.mark_words)
            places = winnowed(marks, self.num_words - self.mark_words + 1)
            repeated = places[self._known(marks[places])]
            starts = _runs_around(repeated, self.num_words - self.mark_words, len(hashes), self.num_words)
            runs = gram_hashes(hashes, self.num_words)[starts] if len(starts) else np.empty(0, np.uint64)
            append_hashes(self.files, runs, np.full(len(runs), document))

    def find(self, texts: pa.Array) -> Spans:
        """Third pass: the spans to cut out of the next batch."""
        found = [np.empty((3, 0), np.int64)]
        first = self._number
        for document, hashes, (begins, ends) in self._texts(texts):
            runs = gram_hashes(hashes, self.num_words)
            starts = np.flatnonzero(self._repeated().elsewhere(runs, np.full(len(runs), document)))
            if len(starts):
                low, high = _joined(starts, self.num_words)
                found.append(np.stack((np.full(len(low), document - first), begins[low], ends[high - 1])))
        return Spans(*np.concatenate(found, axis=1))

    def _repeated(self) -> RepeatedHashes:
        if self.repeated is None:
            raise RuntimeError("count() comes between two passes")
        return self.repeated

    def _known(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether a hash is repeated, in whichever document."""
        return self._repeated().elsewhere(hashes, np.full(len(hashes), -1))

    def _texts(self, texts: pa.Array):
        """(number of the document, hashes of its words, their (begins, ends)) of each text."""
        words: Words = split_words(texts)
        for begin, end in zip(words.offsets[:-1].tolist(), words.offsets[1:].tolist(), strict=True):
            if end - begin >= self.num_words:
                yield self._number, words.hashes[begin:end], (words.begins[begin:end], words.ends[begin:end])
            self._number += 1


def winnowed(hashes: NDArray[np.uint64], window: int) -> NDArray[np.int64]:
    """Ascending places of the smallest hash of every window (the last one of equals), each once.

    Texts that share `window` neighbouring hashes share a place's hash; about 2 of window + 1 places are
    chosen.
    """
    return _winnowed(hashes, window)


@njit(cache=True)
def _winnowed(hashes, window):
    chosen = np.empty(len(hashes), np.int64)
    count, smallest = 0, np.int64(-1)
    for end in range(window - 1, len(hashes)):
        begin = end - window + 1
        if smallest < begin:
            smallest = begin
            for place in range(begin + 1, end + 1):
                if hashes[place] <= hashes[smallest]:
                    smallest = place
        elif hashes[end] <= hashes[smallest]:
            smallest = end
        if count == 0 or chosen[count - 1] != smallest:
            chosen[count] = smallest
            count += 1
    return chosen[:count].copy()


def _runs_around(places: NDArray[np.int64], reach: int, num_words: int, run_words: int) -> NDArray[np.int64]:
    """Ascending first words of all runs that hold the fingerprint at one of the places."""
    low = np.maximum(places - reach, 0)
    high = np.minimum(places, num_words - run_words) + 1
    marks = np.zeros(num_words + 1, np.int64)
    some = high > low
    np.add.at(marks, low[some], 1)
    np.add.at(marks, high[some], -1)
    return np.flatnonzero(np.cumsum(marks) > 0)


def _joined(starts: NDArray[np.int64], run_words: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first word, word after the last) of the stretches that runs beginning at `starts` cover."""
    breaks = np.flatnonzero(np.diff(starts) > run_words)
    return starts[np.append(0, breaks + 1)], starts[np.append(breaks, len(starts) - 1)] + run_words
