"""Personal data masked in a batch: e-mail, IP, Chinese ID numbers, bank cards, telephone numbers.

Each becomes a placeholder of its kind, such as [EMAIL], and is counted. Texts without any are not copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pyarrow as pa

from stages.corpus_prep.screening.personal_kernels import NUMBER, byte_classes, find_candidates
from stages.corpus_prep.screening.personal_patterns import KIND_NAMES, KINDS, Kind, matches
from stages.corpus_prep.screening.text_buffers import Bytes, replaced, text_buffers

CONTEXT_BYTES = 24
"""What patterns may look at before a stretch, such as the word `version`."""
_CLASSES = byte_classes()

Span = tuple[int, int, int]  # start, end, index into KINDS


def personal_schema() -> pa.Schema:
    """One column of counts for each kind, named `pii_KIND`."""
    return pa.schema([(f"pii_{name}", pa.uint32()) for name in KIND_NAMES])


def mask_personal_data(
    texts: pa.LargeStringArray, kinds: Collection[str] = KIND_NAMES
) -> tuple[pa.LargeStringArray, pa.RecordBatch]:
    """(masked texts [N], counts [N] as `personal_schema`). kinds: names of those to look for.

    Raises ValueError for a kind that there is not.
    """
    if unknown := set(kinds) - set(KIND_NAMES):
        raise ValueError(f"no kind of personal data: {', '.join(sorted(unknown))}; {', '.join(KIND_NAMES)}")
    data, offsets = text_buffers(texts)
    wanted = [(index, kind) for index, kind in enumerate(KINDS) if kind.name in kinds]
    spans = _spans(data, offsets, wanted)
    counts = np.zeros((len(KINDS), len(texts)), np.uint32)
    new = []
    for text, found in spans.items():
        for _, _, kind in found:
            counts[kind, text] += 1
        new.append(_masked(data, int(offsets[text]), int(offsets[text + 1]), found))
    is_changed = np.isin(np.arange(len(texts)), list(spans))
    columns = [pa.array(column) for column in counts]
    return replaced(texts, is_changed, new), pa.record_batch(columns, schema=personal_schema())


def _spans(data: Bytes, offsets: np.ndarray, wanted: Sequence[tuple[int, Kind]]) -> dict[int, list[Span]]:
    """Text -> what is to be masked in it, in order and without overlaps."""
    found: dict[int, list[Span]] = {}
    for text, start, end, what in _candidates(data, offsets):
        first, last = max(int(offsets[text]), start - CONTEXT_BYTES), min(int(offsets[text + 1]), end + 2)
        around = bytes(data[first:last]).decode("latin-1")
        for index, kind in wanted:
            if kind.in_numbers == (what == NUMBER):
                hits = matches(kind, around, start - first, end - first)
                found.setdefault(text, []).extend((first + a, first + b, index) for a, b in hits)
    return {text: _apart(spans) for text, spans in found.items() if spans}


def _candidates(data: Bytes, offsets: np.ndarray) -> list[list[int]]:
    room = 1024
    while True:
        found = np.zeros((room, 4), np.int64)
        count = find_candidates(data, offsets, _CLASSES, found)
        if count <= room:
            listed: list[list[int]] = found[:count].tolist()
            return listed
        room = count


def _apart(spans: Iterable[Span]) -> list[Span]:
    """Without those that overlap one of an earlier kind; in order of place."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span[2], span[0])):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
    return sorted(kept)


def _masked(data: Bytes, start: int, end: int, spans: Sequence[Span]) -> str:
    pieces, at = [], start
    for first, last, kind in spans:
        pieces += [bytes(data[at:first]), KINDS[kind].placeholder.encode()]
        at = last
    return b"".join([*pieces, bytes(data[at:end])]).decode("utf-8")
