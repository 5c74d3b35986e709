"""The compiled loops over the documents of a batch: what is called from Python.

Documents are ranges of one buffer of UTF-8 bytes, as Arrow keeps them; no string is made. Working space is
allocated once for the longest document and used again for each, so memory does not grow with the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from stages.corpus_prep.measuring.c4_kernels import count_c4, write_c4_lines
from stages.corpus_prep.measuring.line_kernels import (
    count_characters,
    count_lines,
    count_listed_lines,
    count_paragraphs,
    decode,
    hash_folded,
    strip,
)
from stages.corpus_prep.measuring.signature_kernels import sign, simplified_words
from stages.corpus_prep.measuring.word_kernels import count_repetitions, count_words, split_words


class Words(NamedTuple):
    """One entry per word, or per run of words that begins there."""

    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    powers: np.ndarray
    joined: np.ndarray
    glued: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    """One per slot of the table, as the next."""
    firsts: np.ndarray


def working_space(longest):
    """(characters, edited line, words, (slots, generation)) for documents of up to `longest` bytes.

    Pages that no document reaches are never touched and cost nothing.
    """
    slots = 1 << max(4, (2 * longest + 2).bit_length())
    placed = [np.empty(longest + 1, np.int32) for _ in range(2)]
    hashed = [np.empty(longest + 1, np.uint64) for _ in range(4)]
    words = Words(*placed, *hashed, np.empty(longest + 1, np.int32), *np.empty((2, slots), np.int32))
    characters = np.empty((2, longest + 1), np.uint32)
    return characters[0], characters[1], words, (np.zeros(slots, np.uint64), np.zeros(1, np.int64))


@njit(cache=True, nogil=True)
def measure_documents(data, offsets, tables, constants, spans, space, counts, text_hashes, signatures):
    """Fill in counts int32 [documents, columns], text_hashes uint64 [documents, 2], signatures [documents, 112].

    spans: (offsets, starts, ends) of the words in characters; no offsets for the own splitter.
    """
    stops, permutation = constants
    characters, edited, words, table = space
    row = np.zeros(counts.shape[1], np.int64)
    for document in range(len(offsets) - 1):
        row[:] = 0
        number = decode(data, offsets[document], offsets[document + 1], characters)
        count_characters(characters, number, tables.flags, row)
        hash_folded(characters, number, tables.flags, tables.folded, text_hashes[document])
        count_lines(characters, number, tables.flags, table, row)
        count_paragraphs(characters, number, tables.flags, table, row)
        count_listed_lines(characters, number, tables.flags, row)
        count_c4(characters, number, tables.flags, edited, row)
        num_words = _place_words(characters, number, tables.flags, words, spans, document)
        count_words(characters, tables.flags, words, num_words, stops, row)
        count_repetitions(words, num_words, table, row)
        num_words = simplified_words(characters, number, tables, False, words.hashes)
        sign(words.hashes, num_words, permutation, signatures[document])
        counts[document] = row


@njit(cache=True)
def _place_words(characters, number, flags, words, spans, document):
    offsets, starts, ends = spans
    if len(offsets) == 0:
        return split_words(characters, number, flags, words.starts, words.ends)
    first, last = offsets[document], offsets[document + 1]
    words.starts[: last - first] = starts[first:last]
    words.ends[: last - first] = ends[first:last]
    return last - first


@njit(cache=True, nogil=True)
def hash_words(data, offsets, tables, keep_numbers, characters, ends, hashes):
    """Words of all documents behind one another in `hashes`; ends[i + 1] is where those of document i end."""
    for document in range(len(offsets) - 1):
        number = decode(data, offsets[document], offsets[document + 1], characters)
        behind = hashes[ends[document] :]
        found = simplified_words(characters, number, tables, keep_numbers, behind)
        ends[document + 1] = ends[document] + found


@njit(cache=True, nogil=True)
def edit_documents(data, offsets, flags, options, space, out, ends, dropped):
    """Lines that C4 keeps as UTF-8 in `out`; ends[i + 1] is where document i ends, dropped[i] how many lines it lost.

    options: (only lines with terminal punctuation, without white space around the whole). space: two arrays for
    code points, of the text and of what is kept.
    """
    punctuation, stripped = options
    characters, written = space
    for document in range(len(offsets) - 1):
        number = decode(data, offsets[document], offsets[document + 1], characters)
        size, dropped[document] = write_c4_lines(characters, number, flags, punctuation, written)
        first, last = strip(written, 0, size, flags) if stripped else (0, size)
        place = ends[document]
        for index in range(first, last):
            place = _encode(written[index], out, place)
        ends[document + 1] = place


@njit(cache=True)
def _encode(character, out, place):
    """Write one code point as UTF-8; the place behind it."""
    if character < 0x80:
        out[place] = character
        return place + 1
    size = 2 if character < 0x800 else (3 if character < 0x10000 else 4)
    for byte in range(size - 1, 0, -1):
        out[place + byte] = 0x80 | character & 0x3F
        character >>= 6
    out[place] = (0xF0 << (4 - size)) & 0xFF | character
    return place + size
