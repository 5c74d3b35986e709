"""Texts to statistics, hashes and signatures: one pass over the bytes of an Arrow array, no string per
document."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.measuring.characters import character_tables
from stages.corpus_prep.measuring.columns import COLUMNS, INDEX

NUM_HASHES = 112
SCHEMA = pa.schema(
    {
        **dict.fromkeys(COLUMNS, pa.int32()),
        "text_hash": pa.binary(16),
        "signature": pa.list_(pa.field("item", pa.uint32(), nullable=False), NUM_HASHES),
    }
)
"""What `measure` gives."""


class Splitter(Protocol):
    """Another idea of words and sentences, such as spaCy's. Slow: it sees each document as a string."""

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        """(start, end) of each word, in characters, in order."""
        ...

    def num_sentences(self, line: str) -> int:
        """Sentences on one line."""
        ...


def measure(texts: pa.LargeStringArray, splitter: Splitter | None = None) -> pa.RecordBatch:
    """Statistics (int32, see `columns.py`), `text_hash` and `signature` of each text; one row per text.

    Words, without a `splitter`: runs of letters, digits and combining marks of any script, except that each
    Han and kana character is a word of its own; all else separates words and is none. So "don't" is two
    words, `snake_case` two, 湖边 two, and a run of Thai, which has no spaces, is one. With a `splitter`, the
    statistics count its words and sentences; punctuation may then be words. Thresholds mean nothing without
    the name of the splitter.

    text_hash: 128 bits of the text without case (`str.casefold`, where that is one character) and with
    white space as single blanks. signature: 112 MinHashes of the 5-grams of the words of `word_hashes`,
    whatever the splitter (one shingle of a text with fewer words); all 0xFFFFFFFF for a text without words.

    A null counts as an empty text. Working memory is at most 90 bytes per byte of the longest text, mostly
    15 to 25. The same texts give the same bytes on every machine (with the same Unicode version, which is
    Python's).

    Raises:
        ValueError: spans of the splitter are out of order or outside of the text.
    """
    loops = kernels()
    data, offsets = text_buffers(texts)
    counts = np.empty((len(texts), len(COLUMNS)), np.int32)
    text_hashes = np.empty((len(texts), 2), np.uint64)
    signatures = np.empty((len(texts), NUM_HASHES), np.uint32)
    space = loops.working_space(longest_text(offsets))
    spans = _no_spans() if splitter is None else _placed(texts, splitter)
    results = (counts, text_hashes, signatures)
    loops.measure_documents(data, offsets, character_tables(), _constants(), spans, space, *results)
    if splitter is not None:
        _count_sentences(texts, splitter, counts)
    return _record_batch(*results)


def word_hashes(
    texts: pa.LargeStringArray, keep_numbers: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """(offsets int64 [texts + 1], hashes): hashes[offsets[i]:offsets[i + 1]] are those of the words of text
    i.

    Words are the own splitter's (see `measure`), simplified as datatrove's `simplify_text` does: lower
    case, without accents, and each number one 0 (3.14 is one number; with `keep_numbers` numbers stay what
    they are, and 3.14 is two words). These are the words of which the signature is made.
    """
    loops = kernels()
    data, offsets = text_buffers(texts)
    ends = np.zeros(len(texts) + 1, np.int64)
    hashes = np.empty(offsets[-1] - offsets[0], np.uint64)
    space = tuple(np.empty((2, longest_text(offsets) + 1), np.uint32))
    loops.hash_words(data, offsets, character_tables(), keep_numbers, space, ends, hashes)
    return ends, hashes[: ends[-1]].copy()


@lru_cache(maxsize=1)
def kernels() -> ModuleType:
    """Imported when first needed: numba takes half a second to import."""
    from stages.corpus_prep.measuring import document_kernels

    return document_kernels


@lru_cache(maxsize=1)
def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """(stop words, permutations)."""
    from stages.corpus_prep.measuring.signature_kernels import permutations
    from stages.corpus_prep.measuring.word_kernels import stop_word_table

    return stop_word_table(), permutations()


def text_buffers(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, and where each begins; both are views."""
    texts = texts.fill_null("") if texts.null_count else texts
    _, offsets, data = texts.buffers()
    first = texts.offset
    if offsets is None or len(texts) == 0:
        return np.zeros(1, np.uint8), np.zeros(1, np.int64)
    places = np.frombuffer(offsets, np.int64)[first : first + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(1, np.uint8), places


def longest_text(offsets: NDArray[np.int64]) -> int:
    return int(np.diff(offsets).max(initial=0))


def _no_spans() -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    return np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32)


def _placed(texts: pa.LargeStringArray, splitter: Splitter) -> tuple[NDArray[Any], ...]:
    """(offsets, starts, ends) of the splitter's words."""
    ends, places = [0], [np.empty((0, 2), np.int32)]
    for scalar in texts:
        text = scalar.as_py() or ""
        spans = np.array(splitter.spans(text), np.int32).reshape(-1, 2)
        flat = spans.ravel()
        if len(flat) and (flat[0] < 0 or flat[-1] > len(text) or (np.diff(flat) < 0).any()):
            raise ValueError(
                f"the splitter's words are not in order inside the text of {len(text)} characters"
            )
        places.append(spans)
        ends.append(ends[-1] + len(spans))
    joined = np.concatenate(places)
    return np.array(ends), np.ascontiguousarray(joined[:, 0]), np.ascontiguousarray(joined[:, 1])


def _count_sentences(texts: pa.LargeStringArray, splitter: Splitter, counts: NDArray[np.int32]) -> None:
    """The splitter's sentences on the lines that C4 keeps, in place of the kernel's."""
    from stages.corpus_prep.measuring.line_edits import kept_c4_lines

    for column, punctuation in (("c4_sentences", False), ("c4_terminal_sentences", True)):
        for number, lines in enumerate(kept_c4_lines(texts, punctuation)):
            counts[number, INDEX[column]] = sum(map(splitter.num_sentences, lines))


def _record_batch(
    counts: NDArray[np.int32], text_hashes: NDArray[np.uint64], signatures: NDArray[np.uint32]
) -> pa.RecordBatch:
    columns = [pa.array(np.ascontiguousarray(counts[:, number])) for number in range(len(COLUMNS))]
    hashes = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(counts), [None, pa.py_buffer(text_hashes.astype("<u8").tobytes())]
    )
    flat = pa.array(signatures.ravel())
    return pa.record_batch(
        [*columns, hashes, pa.FixedSizeListArray.from_arrays(flat, type=SCHEMA.field("signature").type)],
        schema=SCHEMA,
    )
