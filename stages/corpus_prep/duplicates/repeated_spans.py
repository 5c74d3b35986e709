"""Paragraphs and lines that many documents hold: menus, licences, signatures. The first document keeps them.

    spans = RepeatedSpans("line", min_characters=30)
    for texts, documents in batches: spans.note(texts, documents, files)   # 12 bytes per span on disk
    share_repeated([files], starts, range(256), 10, folder)                # `repeat_counts.py`
    repeated = read_shared([folder], shard=0)
    for texts, documents in batches: spans.find(texts, documents, repeated)  # what to cut out of each

A line ends at a line feed, a paragraph at an empty line. Two spans are equal if their characters are, up to
the amount of white space between them. Hashes have 64 bits: among ten thousand million spans a collision is
expected with a chance of one in four for the whole corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.gram_hits import GramTable, places_of
from stages.corpus_prep.duplicates.partitioned_files import PartitionedFiles, append_hashes
from stages.corpus_prep.duplicates.words import finished, text_buffers
from stages.runtime.compiled import njit

Unit = Literal["line", "paragraph"]

_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@dataclass(frozen=True)
class Spans:
    """Spans of a batch of texts: text int64 (place in the batch), begin and end int64 (bytes in that text),
    sorted."""

    text: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        """Bytes in all of them."""
        return int((self.end - self.begin).sum())


@dataclass(frozen=True)
class RepeatedHashes:
    """Hashes that more than so many documents hold: sorted uint64, and uint32 the first document of each."""

    hashes: NDArray[np.uint64]
    first: NDArray[np.uint32]

    @cached_property
    def _table(self) -> GramTable:
        return GramTable.of(0, self.hashes)

    def elsewhere(self, hashes: NDArray[np.uint64], documents: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether each hash is repeated and the document is not the first that holds it."""
        found = np.zeros(len(hashes), np.bool_)
        places = places_of(hashes, self._table)
        known = places >= 0
        found[known] = self.first[places[known]] != documents[known]
        return found


@dataclass(frozen=True)
class RepeatedSpans:
    """Lines or paragraphs; those of fewer than min_characters that are no white space are left alone."""

    unit: Unit
    min_characters: int

    def note(self, texts: pa.Array, documents: NDArray[np.integer], files: PartitionedFiles) -> None:
        """Take note of the spans of a batch (large_string). documents: the number of each, ascending."""
        text, _, _, hashes = split_spans(texts, self.unit, self.min_characters)
        append_hashes(files, hashes, documents[text])

    def find(self, texts: pa.Array, documents: NDArray[np.integer], repeated: RepeatedHashes) -> Spans:
        """The repeated spans of a batch that an earlier document holds already."""
        text, begin, end, hashes = split_spans(texts, self.unit, self.min_characters)
        gone = repeated.elsewhere(hashes, documents[text])
        return Spans(text[gone], begin[gone], end[gone])


def split_spans(
    texts: pa.Array, unit: Unit, min_characters: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """(text, begin, end, hash) of every line or paragraph with at least min_characters that are no white
    space.

    A span reaches to the beginning of the line on which the next one begins, so that cutting it out leaves no
    empty line and takes no indentation away.
    """
    data, bounds = text_buffers(texts)
    # Each span has so many bytes and, but for the last one, a line feed. Pages not used cost nothing.
    room = int(bounds[-1] - bounds[0]) // (max(1, min_characters) + 1) + len(texts)
    places, hashes = np.empty((3, room), np.int64), np.empty(room, np.uint64)
    count = _split_spans(data, bounds, unit == "paragraph", min_characters, places, hashes)
    return places[0, :count], places[1, :count], places[2, :count], hashes[:count]


@njit(cache=True)
def _split_spans(data, bounds, paragraphs, min_characters, places, hashes):
    """Fill `places` [3, room] and `hashes`; returns how many spans there are."""
    count = 0
    for text in range(len(bounds) - 1):
        start, stop = bounds[text], bounds[text + 1]
        begin, place, line = start, start, start
        state, characters, space, feeds = _BASIS, 0, False, 0
        while place <= stop:
            byte = data[place] if place < stop else np.uint8(10)
            blank = byte == 32 or 9 <= byte <= 13
            feeds += byte == 10
            ended = feeds >= (2 if paragraphs else 1) or place == stop
            if (ended and not blank) or place == stop:
                end = stop if place == stop else line
                if characters >= max(1, min_characters):
                    places[0, count], places[1, count] = text, begin - start
                    places[2, count] = end - start
                    hashes[count] = finished(state)
                    count += 1
                begin, state, characters, space = end, _BASIS, 0, False
            if byte == 10:
                line = place + 1
            if blank:
                space = characters > 0
            else:
                if space:
                    state = (state ^ np.uint64(32)) * _PRIME
                state = (state ^ np.uint64(byte)) * _PRIME
                characters += (byte & 0xC0) != 0x80  # not the later bytes of a character
                space, feeds = False, 0
            place += 1
    return count


def cut_spans(texts: pa.Array, spans: Spans) -> pa.Array:
    """The texts without the spans, as large_string; spans may overlap. Memory: three times the batch."""
    data, bounds = text_buffers(texts)
    base = bounds[spans.text]
    kept, ends = np.empty(int(bounds[-1] - bounds[0]), np.uint8), np.zeros(len(bounds), np.int64)
    _cut(data, bounds, base + spans.begin, base + spans.end, kept, ends)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(kept[: ends[-1]]))


@njit(cache=True)
def _cut(data, bounds, begins, ends, kept, new_bounds):
    """Copy what no span covers into `kept`, and where each text ends there into `new_bounds`."""
    start = bounds[0]
    gone = np.zeros(bounds[-1] - start, np.bool_)
    for span in range(len(begins)):
        gone[begins[span] - start : ends[span] - start] = True
    count = 0
    for text in range(len(bounds) - 1):
        for place in range(bounds[text], bounds[text + 1]):
            if not gone[place - start]:
                kept[count] = data[place]
                count += 1
        new_bounds[text + 1] = count
