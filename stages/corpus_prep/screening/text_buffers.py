"""Arrow strings as what they are in memory: one run of UTF-8 bytes, and where each text begins in it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]


def text_buffers(texts: pa.LargeStringArray) -> tuple[Bytes, Offsets]:
    """(data, offsets [N + 1]) without a copy; text i is `data[offsets[i] : offsets[i + 1]]`.

    A null counts as an empty text if its offsets say so, which Arrow's own writers always do.
    """
    _, offsets_buffer, data_buffer = texts.buffers()
    if offsets_buffer is None or len(texts) == 0:
        return np.zeros(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    first = texts.offset
    offsets = np.frombuffer(offsets_buffer, np.int64)[first : first + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return data, offsets


def text_array(data: Bytes, offsets: Offsets) -> pa.LargeStringArray:
    """The reverse of `text_buffers`. data must be UTF-8 within each text; nothing is copied."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)


def replaced(texts: pa.LargeStringArray, where: NDArray[np.bool_], new: list[str]) -> pa.LargeStringArray:
    """`texts` with the k-th of those that `where` marks replaced by `new[k]`."""
    if not new:
        return texts
    pieces, start = [], 0
    for index, text in zip(np.flatnonzero(where), new, strict=True):
        pieces += [texts.slice(start, index - start), pa.array([text], pa.large_string())]
        start = int(index) + 1
    return pa.concat_arrays([*pieces, texts.slice(start)])
