"""Words of a batch of texts as 64-bit hashes with their places, in one pass over the Arrow buffer.

A word is a run of letters and digits of any script; each Han or kana character is a word of its own. Equal
words are those that a reader takes for equal: case, accents, full-width forms and invisible characters do not
count, and all else between words is no more than a boundary. So a copied sentence is found again whatever
happened to its punctuation and white space.

The trick for speed: what a character is, and what it is folded to, is looked up in two tables with an entry
per code point; the hash is built while the characters are read, so no word ever exists as a Python object.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.runtime.compiled import njit

BOUNDARY, LETTER, DENSE, IGNORED = 0, 1, 2, 3
NUM_CODE_POINTS = 0x110000

_DENSE_RANGES = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
# FNV-1a's, Fowler, Noll and Vo; the last mixing of a word is MurmurHash3's (Appleby).
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


@dataclass(frozen=True)
class Words:
    """Words of the texts of a batch, text after text.

    offsets: int64 [texts + 1], where each text's words begin. hashes: uint64 [words]. begins, ends: int64
    [words], bytes from the beginning of the word's own text.
    """

    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


def split_words(texts: pa.Array) -> Words:
    """The words of a large_string array; a null has none."""
    data, bounds = text_buffers(texts)
    kinds, folded = character_tables()
    # The shortest words are single ASCII characters with one between them. What is not used is never touched.
    room = (int(bounds[-1]) - int(bounds[0])) // 2 + len(bounds)
    hashes = np.empty(room, np.uint64)
    begins, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    offsets = np.zeros(len(bounds), np.int64)
    _split(data, bounds, kinds, folded, offsets, hashes, begins, ends)
    count = int(offsets[-1])
    return Words(offsets, hashes[:count], begins[:count], ends[:count])


def text_buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of an array of texts and int64 [texts + 1] bounds into them, without a copy where
    possible."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if texts.type not in {pa.large_string(), pa.large_binary()}:
        texts = texts.cast(pa.large_string())
    texts = texts.fill_null("") if texts.null_count else texts
    if len(texts) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, bounds, data = texts.buffers()
    count, start = len(texts), texts.offset
    offsets = np.frombuffer(bounds, np.int64)[start : start + count + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), offsets


@cache
def character_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """(kind, folded code point) per code point."""
    kinds = np.zeros(NUM_CODE_POINTS, np.uint8)
    folded = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    for code in range(NUM_CODE_POINTS):
        character = chr(code)
        if character.isalnum():
            folded[code] = ord(_fold(character))
            kinds[code] = LETTER
        elif code > 127 and unicodedata.category(character) in {"Mn", "Mc", "Me", "Cf"}:
            kinds[code] = IGNORED
    for first, last in _DENSE_RANGES:
        inside = kinds[first : last + 1]
        inside[inside == LETTER] = DENSE
    return kinds, folded


def _fold(character: str) -> str:
    """The letter itself: lower case, half width, without accents."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())[:1]


@njit(cache=True)
def code_point(data, place):
    """(code point, bytes) of the UTF-8 sequence at `place`; the text is known to be valid."""
    first = np.uint32(data[place])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (data[place + 1] & 0x3F), 2
    middle = (np.uint32(data[place + 1] & 0x3F) << 6) | (data[place + 2] & 0x3F)
    if first < 0xF0:
        return ((first & 0x0F) << 12) | middle, 3
    return ((first & 0x07) << 18) | (middle << 6) | (data[place + 3] & 0x3F), 4


@njit(cache=True)
def finished(state):
    """Mix the state of a word's hash, so that all of its bits depend on all characters."""
    state ^= state >> np.uint64(33)
    state *= _MIX_1
    state ^= state >> np.uint64(33)
    state *= _MIX_2
    return state ^ (state >> np.uint64(33))


@njit(cache=True)
def _split(data, bounds, kinds, folded, offsets, hashes, begins, ends):
    count = 0
    for text in range(len(bounds) - 1):
        start, stop = bounds[text], bounds[text + 1]
        place, begin, last, state = start, np.int64(-1), start, _BASIS
        while place < stop:
            code, size = code_point(data, place)
            kind = kinds[code]
            if kind == LETTER:
                if begin < 0:
                    begin, state = place, _BASIS
                state = (state ^ np.uint64(folded[code])) * _PRIME
                last = place + size
            elif kind != IGNORED:
                if begin >= 0:
                    hashes[count], begins[count], ends[count] = finished(state), begin - start, last - start
                    count += 1
                    begin = np.int64(-1)
                if kind == DENSE:
                    hashes[count] = finished((_BASIS ^ np.uint64(folded[code])) * _PRIME)
                    begins[count], ends[count] = place - start, place + size - start
                    count += 1
            place += size
        if begin >= 0:
            hashes[count], begins[count], ends[count] = finished(state), begin - start, last - start
            count += 1
        offsets[text + 1] = count
