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

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.gram_hits import rolled_hashes
from stages.corpus_prep.duplicates.partitioned_files import PartitionedFiles, append_hashes
from stages.corpus_prep.duplicates.repeated_spans import RepeatedHashes, Spans
from stages.corpus_prep.duplicates.words import split_words
from stages.runtime.compiled import njit


@dataclass(frozen=True)
class RepeatedRuns:
    """Runs of num_words words (at least 2). Three passes: `note`, `note_runs`, `find`, with a count of what
    is in several documents after the first two."""

    num_words: int

    @property
    def mark_words(self) -> int:
        """Words of a fingerprint."""
        return (self.num_words + 1) // 2

    def note(self, texts: pa.Array, documents: NDArray[np.integer], files: PartitionedFiles) -> None:
        """First pass: fingerprints of a batch (large_string). documents: the number of each, ascending."""
        words = split_words(texts)
        marks, text, _ = _fingerprints(words.hashes, words.offsets, self.mark_words, self.num_words)
        append_hashes(files, marks, documents[text])

    def note_runs(
        self,
        texts: pa.Array,
        documents: NDArray[np.integer],
        repeated: RepeatedHashes,
        files: PartitionedFiles,
    ) -> None:
        """Second pass: the runs that hold a repeated fingerprint."""
        words = split_words(texts)
        marks, text, place = _fingerprints(words.hashes, words.offsets, self.mark_words, self.num_words)
        known = repeated.elsewhere(marks, np.full(len(marks), -1))
        runs, text = _runs_near(
            words.hashes, words.offsets, text[known], place[known], self.mark_words, self.num_words
        )
        append_hashes(files, runs, documents[text])

    def find(self, texts: pa.Array, documents: NDArray[np.integer], repeated: RepeatedHashes) -> Spans:
        """Third pass: the spans of a batch that an earlier document holds already."""
        words = split_words(texts)
        runs, text, place = _all_runs(words.hashes, words.offsets, self.num_words)
        gone = repeated.elsewhere(runs, documents[text])
        text, low = text[gone], words.offsets[text[gone]] + place[gone]
        # Runs that overlap or touch are one span.
        new = np.ones(len(low), np.bool_)
        new[1:] = (text[1:] != text[:-1]) | (np.diff(low) > self.num_words)
        first, last = np.flatnonzero(new), np.flatnonzero(np.append(new, True)[1:])
        return Spans(text[first], words.begins[low[first]], words.ends[low[last] + self.num_words - 1])


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


@njit(cache=True)
def _fingerprints(hashes, offsets, mark_words, num_words):
    """(fingerprint, text, its first word) of the winnowed marks of every text that has a run at all."""
    marks, texts = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.int64)
    places, count = np.empty(len(hashes), np.int64), 0
    for text in range(len(offsets) - 1):
        if offsets[text + 1] - offsets[text] >= num_words:
            own = rolled_hashes(hashes[offsets[text] : offsets[text + 1]], mark_words)
            for place in _winnowed(own, num_words - mark_words + 1):
                marks[count], texts[count], places[count] = own[place], text, place
                count += 1
    return marks[:count], texts[:count], places[:count]


@njit(cache=True)
def _runs_near(hashes, offsets, texts, places, mark_words, num_words):
    """(hash, text) of every run of num_words words that holds one of the marks, each once."""
    runs, owners = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.int64)
    count, before, beyond = 0, -1, 0
    own = np.empty(0, np.uint64)
    for mark in range(len(texts)):
        text, place = texts[mark], places[mark]
        if text != before:
            own = rolled_hashes(hashes[offsets[text] : offsets[text + 1]], num_words)
            before, beyond = text, 0
        stop = min(place + 1, len(own))
        for start in range(max(place + mark_words - num_words, beyond), stop):
            runs[count], owners[count] = own[start], text
            count += 1
        beyond = max(beyond, stop)
    return runs[:count], owners[:count]


@njit(cache=True)
def _all_runs(hashes, offsets, num_words):
    """(hash, text, first word) of every run of num_words words."""
    runs, texts = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.int64)
    places, count = np.empty(len(hashes), np.int64), 0
    for text in range(len(offsets) - 1):
        own = rolled_hashes(hashes[offsets[text] : offsets[text + 1]], num_words)
        runs[count : count + len(own)] = own
        texts[count : count + len(own)] = text
        places[count : count + len(own)] = np.arange(len(own))
        count += len(own)
    return runs[:count], texts[:count], places[:count]
