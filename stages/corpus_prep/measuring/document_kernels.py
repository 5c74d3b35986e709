"""The compiled loops over the documents of a batch: what is called from Python.

Documents are ranges of one buffer of UTF-8 bytes, as Arrow keeps them; no string is made. Working space is
allocated once for the longest document and used again for each, so memory does not grow with the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.corpus_prep.measuring.c4_kernels import count_broken_lines, write_c4_lines
from stages.corpus_prep.measuring.line_kernels import (
    count_characters,
    count_lines,
    count_paragraphs,
    decode,
    hash_folded,
    strip,
)
from stages.corpus_prep.measuring.signature_kernels import sign, simplified_words
from stages.corpus_prep.measuring.word_kernels import count_repetitions, count_words, split_words
from stages.runtime.compiled import njit


class Words(NamedTuple):
    """One entry per word, except the last two."""

    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    powers: np.ndarray
    """Of the hashes' factor, to the number of the word's characters."""
    glued: np.ndarray
    """Hashes of the text of runs of words that begin here."""
    prefixes: np.ndarray
    """Hashes of all words before; so a run's hash takes one multiplication."""
    lengths: np.ndarray
    """Characters of all words before."""
    places: np.ndarray
    """Words where runs may begin that occur twice."""
    slots: np.ndarray
    """Where in the table the run of each place is."""
    counts: np.ndarray
    """Of the run in each slot of the table; and where it first began:"""
    firsts: np.ndarray


class Space(NamedTuple):
    """Working space for one document at a time."""

    characters: np.ndarray
    kinds: np.ndarray
    edited: np.ndarray
    words: Words
    table: tuple[np.ndarray, np.ndarray]


def working_space(longest):
    """Space for documents of up to `longest` bytes. Pages that no document reaches cost nothing."""
    slots = 1 << max(4, (2 * longest + 2).bit_length())
    hashes, places = (
        [np.empty(longest + 2, dtype) for _ in range(number)]
        for dtype, number in ((np.uint64, 4), (np.int32, 5))
    )
    words = Words(*places[:2], *hashes, *places[2:], np.empty(slots, np.int32), np.empty(slots, np.int32))
    table = np.zeros(slots, np.uint64), np.zeros(1, np.int64)
    return Space(*(np.empty(longest + 1, np.uint32) for _ in range(3)), words, table)


@njit(cache=True, nogil=True)
def measure_documents(data, offsets, tables, constants, spans, space, counts, text_hashes, signatures):
    """Fill in counts int32 [documents, columns], text_hashes uint64 [documents, 2], signatures [documents,
    112].

    spans: (offsets, starts, ends) of the words in characters; no offsets for the own splitter.
    """
    stops, permutation = constants
    characters, kinds, words, table = space.characters, space.kinds, space.words, space.table
    row = np.zeros(counts.shape[1], np.int64)
    for document in range(len(offsets) - 1):
        row[:] = 0
        number = decode(data, offsets[document], offsets[document + 1], tables.flags, characters, kinds)
        count_characters(characters, kinds, number, row)
        hash_folded(characters, kinds, number, tables.folded, text_hashes[document])
        count_lines(characters, kinds, number, table, row)
        count_paragraphs(characters, kinds, number, table, row)
        count_broken_lines(characters, kinds, number, tables.flags, space.edited, row)
        num_words = _place_words(kinds, number, words, spans, document)
        count_words(characters, kinds, words, num_words, stops, row)
        count_repetitions(words, num_words, len(spans[0]) > 0, table, row)
        num_words = simplified_words(characters, kinds, number, tables.simplified, False, words.hashes)
        sign(words.hashes, num_words, permutation, signatures[document])
        counts[document] = row


@njit(cache=True)
def _place_words(kinds, number, words, spans, document):
    offsets, starts, ends = spans
    if len(offsets) == 0:
        return split_words(kinds, number, words.starts, words.ends)
    first, last = offsets[document], offsets[document + 1]
    words.starts[: last - first] = starts[first:last]
    words.ends[: last - first] = ends[first:last]
    return last - first


@njit(cache=True, nogil=True)
def hash_words(data, offsets, tables, keep_numbers, space, ends, hashes):
    """Words of all documents behind one another in `hashes`; ends[i + 1] is where those of document i end."""
    characters, kinds = space
    for document in range(len(offsets) - 1):
        number = decode(data, offsets[document], offsets[document + 1], tables.flags, characters, kinds)
        behind = hashes[ends[document] :]
        found = simplified_words(characters, kinds, number, tables.simplified, keep_numbers, behind)
        ends[document + 1] = ends[document] + found


@njit(cache=True, nogil=True)
def edit_documents(data, offsets, flags, options, space, out, ends, dropped):
    """Lines that C4 keeps as UTF-8 in `out`; ends[i + 1] is where document i ends, dropped[i] how many
    lines it lost.

    options: (only lines with terminal punctuation, without white space around the whole). space: four
    arrays, for code points, their kinds, an edited line, and what is kept.
    """
    punctuation, stripped = options
    characters, kinds, edited, kept = space
    for document in range(len(offsets) - 1):
        number = decode(data, offsets[document], offsets[document + 1], flags, characters, kinds)
        text = (characters, kinds)
        size, dropped[document] = write_c4_lines(text, number, flags, punctuation, edited, kept)
        for place in range(size):
            kinds[place] = flags[kept[place]]
        first, last = strip(kinds, 0, size) if stripped else (0, size)
        place = ends[document]
        for index in range(first, last):
            place = _encode(kept[index], out, place)
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
