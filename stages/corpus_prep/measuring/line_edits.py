"""C4's line edits: lines that are no prose go, citations such as [12] are cut (see `c4_kernels.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.measuring.characters import character_tables
from stages.corpus_prep.measuring.measures import kernels, longest_text, text_buffers


def edit_c4_lines(
    texts: pa.LargeStringArray, terminal_punctuation: bool = False
) -> tuple[pa.LargeStringArray, NDArray[np.int32]]:
    """(texts of the kept lines, how many lines each text lost).

    The text that datatrove's `C4QualityFilter` leaves of a document that it keeps. terminal_punctuation:
    also drop lines that do not end with . ? ! or a quotation mark, as C4 did and FineWeb did not. Whether
    the document stays is for the rules `c4` or `c4_fineweb` to say, from the measures of the text before
    the edit.
    """
    return _edit(texts, terminal_punctuation, True)


def kept_c4_lines(texts: pa.LargeStringArray, terminal_punctuation: bool) -> Iterator[list[str]]:
    """The kept lines of each text, as C4 counts sentences on them."""
    edited, _ = _edit(texts, terminal_punctuation, False)
    for text in edited:
        yield text.as_py().split("\n")[:-1]


def _edit(
    texts: pa.LargeStringArray, terminal_punctuation: bool, stripped: bool
) -> tuple[pa.LargeStringArray, NDArray[np.int32]]:
    data, offsets = text_buffers(texts)
    space = tuple(np.empty((4, longest_text(offsets) + 1), np.uint32))
    # A document grows by no more than the line feed behind its last line.
    out = np.empty(offsets[-1] - offsets[0] + len(texts), np.uint8)
    ends, dropped = np.zeros(len(texts) + 1, np.int64), np.zeros(len(texts), np.int32)
    options = (terminal_punctuation, stripped)
    kernels().edit_documents(data, offsets, character_tables().flags, options, space, out, ends, dropped)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(out[: ends[-1]].copy())]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers), dropped
