"""SentencePiece's BPE over the bytes of many documents, compiled: the same ids, some ten times as fast.

**The rule.** SentencePiece starts from single characters. Again and again it merges, among all neighbours
whose joint text is a piece, those with the best score, the leftmost of equals, until no two neighbours make a
piece. User-defined symbols are matched first, the longest at each place, and take part in no merge. What is
then no piece is spelled in byte tokens. (Kudo and Richardson 2018, arXiv:1808.06226; `bpe_model.cc`.)

**The trick.** Let characters a and b stand side by side in no piece. Then a text may be cut between any a and
b, and the parts encoded on their own:

1. Whatever a merge makes is a piece. A symbol with characters of both sides would be a piece with ab in it,
   and there is none. So no merge ever takes one symbol from each side.
2. Hence which merges are possible on one side depends only on what was merged on that side.
3. The order over the whole text, best score first and then leftmost, is on each side that side's own order.
   By induction over the merges each side ends as it would alone.

The same holds beside a user-defined symbol and beside a character that is in no piece. The parts are short
(in English mostly a word with its space) and come again and again, so their ids are looked up in a table that
grows as we read. Only a part not seen before is merged. The table is bounded: when it is full it is emptied,
which costs time and changes nothing.

Arrays: see `EncoderTables` and `SegmentCache`. Offsets count bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.runtime.compiled import njit
from stages.tokenizer.encoder_tables import EMPTY, MIX_LEFT, MIX_RIGHT, NO_SYMBOL, EncoderTables

_LEFT, _RIGHT = np.uint64(MIX_LEFT), np.uint64(MIX_RIGHT)
_32, _6, _63, _1 = np.uint64(32), np.uint64(6), np.uint64(63), np.uint64(1)
MAX_CACHED_BYTES = 64  # longer parts hardly ever come again
SHARED_CHARACTERS = 512  # parts up to this length share one place to be merged in
NO_RANK = np.int64(2**31 - 1)  # two neighbours that make no piece

SYMBOL, START, NEXT, PREVIOUS, RANK, MADE, NUM_ROWS = 0, 1, 2, 3, 4, 5, 6
"""Rows of the list that is merged: symbol, first byte, neighbours, and the merge with the right neighbour."""
KEY, TEXT, IDS, SIZES = 0, 1, 2, 3
"""Columns of the cache: hash, places of text and ids, bytes << 32 | ids. Sizes of 0 mark a free slot."""


class SegmentCache(NamedTuple):
    """Parts of text seen so far, with their ids."""

    slots: np.ndarray
    """int64 [slots, 4]."""
    shift: int
    """A hash shifted right by this is the slot to look at first."""
    texts: np.ndarray
    """uint8: the texts behind one another."""
    ids: np.ndarray
    """int32: their ids behind one another."""
    fill: np.ndarray
    """int64 [3]: slots taken, bytes of `texts` and places of `ids` in use."""


def new_cache(log2_slots: int) -> SegmentCache:
    """An empty cache; it takes about 72 bytes per slot, 19 MB for 2**18, and holds half as many parts."""
    slots = 1 << log2_slots
    return SegmentCache(
        slots=np.zeros((slots, 4), dtype=np.int64),
        shift=64 - log2_slots,
        texts=np.zeros(max(12 * slots, 2 * MAX_CACHED_BYTES), dtype=np.uint8),
        ids=np.zeros(max(7 * slots, 2 * MAX_CACHED_BYTES), dtype=np.int32),
        fill=np.zeros(3, dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def encode_documents(
    text: np.ndarray,
    offsets: np.ndarray,
    tables: EncoderTables,
    cache: SegmentCache,
    bos_id: int,
    eos_id: int,
    out: np.ndarray,
    ends: np.ndarray,
) -> int:
    """Write BOS, ids, EOS of every document to `out`, and where each one ends to `ends`; returns the total.

    Args:
        text: uint8, valid UTF-8. `out` needs room for as many tokens, and two more for each document.
        offsets: int64 [D + 1], where documents begin in `text`.
    """
    shared = np.empty((NUM_ROWS, SHARED_CHARACTERS), dtype=np.int64)
    heap = np.empty(3 * SHARED_CHARACTERS, dtype=np.int64)
    n = 0
    for document in range(len(offsets) - 1):
        out[n] = bos_id
        n = _encode_text(
            text, offsets[document], offsets[document + 1], tables, cache, shared, heap, out, n + 1
        )
        out[n] = eos_id
        n += 1
        ends[document] = n
    return n


@njit(cache=True, nogil=True)
def _encode_text(text, at, end, tables, cache, shared, heap, out, n):
    """Cut text[at:end] into parts and write their ids; returns where the ids end."""
    # Taking an array out of a tuple costs two atomic additions: once per text, not once per character.
    fixed_starts, fixed_spans, fixed_bytes = tables.fixed_starts, tables.fixed_spans, tables.fixed_bytes
    symbol_of_character, joins, byte_ids = tables.symbol_of_character, tables.joins, tables.byte_ids
    slots, texts, ids = cache.slots, cache.texts, cache.ids
    while at < end:
        row = _match_fixed(text, at, end, fixed_starts, fixed_spans, fixed_bytes)
        if row >= 0:
            out[n] = fixed_spans[row, 2]
            n += 1
            at += fixed_spans[row, 1] - fixed_spans[row, 0]
            continue
        start, count, key = at, 0, np.uint64(0)
        last = NO_SYMBOL
        while at < end:
            if count > 0 and _match_fixed(text, at, end, fixed_starts, fixed_spans, fixed_bytes) >= 0:
                break
            code, size = _character(text, at)
            symbol = symbol_of_character[code]
            if count > 0 and not _joins(last, symbol, joins, tables.joins_shift):
                break
            key = (key + np.uint64(symbol + 1)) * _LEFT
            key ^= key >> _32
            last = symbol
            count += 1
            at += size
        if count == 1:
            n = _write_symbol(text, start, last, tables.vocab_size, byte_ids, out, n)
            continue
        slot = _find(text, start, at, key, slots, cache.shift, texts)
        if slot >= 0:
            first = slots[slot, IDS]
            for i in range(slots[slot, SIZES] & 0xFFFF_FFFF):
                out[n] = ids[first + i]
                n += 1
            continue
        n = _merge_new(text, start, at, count, key, tables, cache, shared, heap, out, n)
    return n


@njit(cache=True, nogil=True)
def _character(text, at):
    """Code point and number of bytes of the character at a place of valid UTF-8."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (text[at + 1] & 0x3F), 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (np.int64(text[at + 1]) & 0x3F) << 6 | (text[at + 2] & 0x3F), 3
    tail = (np.int64(text[at + 1]) & 0x3F) << 12 | (np.int64(text[at + 2]) & 0x3F) << 6
    return (first & 0x07) << 18 | tail | (text[at + 3] & 0x3F), 4


@njit(cache=True, nogil=True)
def _match_fixed(text, at, end, starts, spans, symbols):
    """Row of the longest user-defined symbol that text[at:end] begins with, or -1."""
    byte = text[at]
    for row in range(starts[byte], starts[byte + 1]):
        first, stop = spans[row, 0], spans[row, 1]
        if stop - first <= end - at and _same(symbols, first, text, at, stop - first):
            return row
    return -1


@njit(cache=True, nogil=True)
def _same(left, left_at, right, right_at, size):
    for i in range(size):  # noqa: SIM110  (numba compiles no generators into `all`)
        if left[left_at + i] != right[right_at + i]:
            return False
    return True


@njit(cache=True, nogil=True)
def _pair_hash(left, right):
    return np.uint64(left) * _LEFT + np.uint64(right) * _RIGHT


@njit(cache=True, nogil=True)
def _joins(left, right, bits, shift):
    """Whether the two characters may stand side by side in a piece. False is certain, True is likely."""
    if left < 0 or right < 0:  # NO_SYMBOL
        return False
    bit = _pair_hash(left, right) >> np.uint64(shift)
    return (bits[bit >> _6] >> (bit & _63)) & _1 != 0


@njit(cache=True, nogil=True)
def _find(text, start, end, key, slots, shift, texts):
    """The slot of the part text[start:end], or -1."""
    slot = key >> np.uint64(shift)
    while slots[slot, SIZES] != 0:
        alike = np.uint64(slots[slot, KEY]) == key and slots[slot, SIZES] >> 32 == end - start
        if alike and _same(texts, slots[slot, TEXT], text, start, end - start):
            return np.int64(slot)
        slot = (slot + _1) & np.uint64(len(slots) - 1)
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _merge_new(text, start, end, count, key, tables, cache, shared, heap, out, n):
    """Merge a part that the cache does not know, write its ids, and put both into the cache."""
    first = n
    if count > shared.shape[1]:
        shared, heap = np.empty((NUM_ROWS, count), dtype=np.int64), np.empty(3 * count, dtype=np.int64)
    n = _merge(text, start, end, count, tables, shared, heap, out, n)
    if end - start <= MAX_CACHED_BYTES:
        _remember(text, start, end, key, cache, out, first, n)
    return n


@njit(cache=True, nogil=True)
def _remember(text, start, end, key, cache, out, first, n):
    """Put a part and its ids into the cache; one that is full is emptied before."""
    size, count = end - start, n - first
    slots, texts, ids = cache.slots, cache.texts, cache.ids
    taken, text_end, ids_end = cache.fill
    if 2 * taken >= len(slots) or text_end + size > len(texts) or ids_end + count > len(ids):
        slots[:, SIZES] = 0
        taken, text_end, ids_end = 0, 0, 0
    slot = key >> np.uint64(cache.shift)
    while slots[slot, SIZES] != 0:
        slot = (slot + _1) & np.uint64(len(slots) - 1)
    slots[slot, KEY], slots[slot, TEXT] = np.int64(key), text_end
    slots[slot, IDS], slots[slot, SIZES] = ids_end, size << 32 | count
    texts[text_end : text_end + size] = text[start:end]
    for i in range(count):
        ids[ids_end + i] = out[first + i]
    cache.fill[0], cache.fill[1], cache.fill[2] = taken + 1, text_end + size, ids_end + count


@njit(cache=True, nogil=True)
def _write_symbol(text, start, symbol, vocab_size, byte_ids, out, n):
    """A piece is one id; a character that is no piece is spelled in byte tokens."""
    if 0 <= symbol < vocab_size:
        out[n] = symbol
        return n + 1
    _, size = _character(text, start)
    for i in range(size):
        out[n + i] = byte_ids[text[start + i]]
    return n + size


@njit(cache=True, nogil=True)
def _merge(text, start, end, count, tables, shared, heap, out, n):
    """Merge the `count` characters of text[start:end] by rank, and write what is left.

    The heap holds rank << 32 | place of the left symbol: best score first, then leftmost. Entries are never
    taken out; one is stale when the merge at its place has another rank by now. n log n in the characters.
    """
    merge_slots, merge_shift, byte_ids = tables.merge_slots, tables.merge_shift, tables.byte_ids
    _list_characters(text, start, count, tables.symbol_of_character, shared)
    size = 0
    for i in range(count):
        size = _offer(i, merge_slots, merge_shift, shared, heap, size)
    while size > 0:
        rank, left = heap[0] >> 32, heap[0] & 0xFFFF_FFFF
        size = _pop(heap, size)
        if shared[RANK, left] != rank:
            continue
        right = shared[NEXT, left]
        after = shared[NEXT, right]
        shared[SYMBOL, left], shared[NEXT, left] = shared[MADE, left], after
        shared[RANK, right] = NO_RANK
        if after >= 0:
            shared[PREVIOUS, after] = left
        size = _offer(left, merge_slots, merge_shift, shared, heap, size)
        if shared[PREVIOUS, left] >= 0:
            size = _offer(shared[PREVIOUS, left], merge_slots, merge_shift, shared, heap, size)
    i = np.int64(0)
    while i >= 0:
        symbol = shared[SYMBOL, i]
        n = _write_symbol(text, shared[START, i], symbol, tables.vocab_size, byte_ids, out, n)
        i = shared[NEXT, i]
    return n


@njit(cache=True, nogil=True)
def _list_characters(text, start, count, symbol_of_character, rows):
    for i in range(count):
        code, size = _character(text, start)
        rows[SYMBOL, i], rows[START, i] = symbol_of_character[code], start
        rows[PREVIOUS, i], rows[NEXT, i] = i - 1, i + 1
        start += size
    rows[NEXT, count - 1] = -1


@njit(cache=True, nogil=True)
def _offer(left, slots, shift, rows, heap, size):
    """Note which merge symbol `left` can make with its neighbour, and push it; returns the heap's size."""
    rows[RANK, left] = NO_RANK
    right = rows[NEXT, left]
    if right < 0:
        return size
    key = rows[SYMBOL, left] << 32 | rows[SYMBOL, right]
    slot = _pair_hash(rows[SYMBOL, left], rows[SYMBOL, right]) >> np.uint64(shift)
    while slots[slot, 0] != EMPTY:
        if slots[slot, 0] == key:
            rows[RANK, left], rows[MADE, left] = slots[slot, 1], slots[slot, 2]
            return _push(heap, size, rows[RANK, left] << 32 | left)
        slot = (slot + _1) & np.uint64(len(slots) - 1)
    return size


@njit(cache=True, nogil=True)
def _push(heap, size, entry):
    at = size
    while at > 0 and heap[(at - 1) >> 1] > entry:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = entry
    return size + 1


@njit(cache=True, nogil=True)
def _pop(heap, size):
    """Take the smallest entry off; returns the heap's size."""
    size -= 1
    entry, at = heap[size], 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry
    return size
