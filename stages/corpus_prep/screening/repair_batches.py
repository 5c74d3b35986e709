"""`repair_text` for a batch of texts: only those that need it are touched, clean ones are not even copied."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.screening.repair_kernels import (
    LINE_ENDS,
    OTHER,
    find_needs,
    mend_space,
    need_table,
)
from stages.corpus_prep.screening.text_buffers import replaced, text_array, text_buffers
from stages.corpus_prep.text_repair import REPAIRS, repair_text

_BIT = {name: np.uint32(1 << place) for place, name in enumerate(REPAIRS)}


def repair_batch(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, NDArray[np.uint32]]:
    """(repaired texts [N], repairs [N]), exactly as `repair_text` gives them one by one.

    Bit i of the repairs says that `REPAIRS[i]` changed the text. Where nothing is to be repaired, the array
    that was given comes back. Memory: twice the batch where anything is.
    """
    data, offsets = text_buffers(texts)
    needs = find_needs(data, offsets, need_table())
    repairs = np.zeros(len(texts), np.uint32)
    if not needs.any():
        return texts, repairs
    out = np.empty(int(offsets[-1] - offsets[0]), np.uint8)
    ends, space_changed = mend_space(data, offsets, needs, out)
    texts = text_array(out, ends)
    only_space = (needs & OTHER) == 0
    repairs[only_space & ((needs & LINE_ENDS) != 0)] |= _BIT["line_ends"]
    repairs[only_space & space_changed] |= _BIT["white_space"]
    slow = [repair_text(texts[int(index)].as_py()) for index in np.flatnonzero(~only_space)]
    repairs[~only_space] = [repair_bits(done.repairs) for done in slow]
    return replaced(texts, ~only_space, [done.text for done in slow]), repairs


def repair_bits(names: tuple[str, ...]) -> int:
    """The names of repairs as bits."""
    return sum(int(_BIT[name]) for name in names)


def repair_names(bits: int) -> tuple[str, ...]:
    """Bits of `repair_batch` as names."""
    return tuple(name for place, name in enumerate(REPAIRS) if bits >> place & 1)


@cache
def _converter() -> Any:
    from opencc import OpenCC  # dictionaries are loaded at the first use: 0.1 s

    return OpenCC("t2s")


def simplify_chinese(
    texts: pa.LargeStringArray, is_chinese: NDArray[np.bool_]
) -> tuple[pa.LargeStringArray, NDArray[np.bool_]]:
    """Traditional characters to simplified ones in the texts that `is_chinese` [N] marks.

    Returns the texts and which of them were changed. Japanese must not be marked: its characters would be
    replaced by Chinese ones. Phrases are mapped as phrases (OpenCC, t2s).
    """
    changed = np.zeros(len(texts), np.bool_)
    new = []
    for index in np.flatnonzero(is_chinese):
        text = texts[int(index)].as_py()
        simplified = _converter().convert(text)
        if simplified != text:
            changed[index] = True
            new.append(simplified)
    return replaced(texts, changed, new), changed
