"""The vocabulary as arrays that the encoder's kernels can read.

A *symbol* is what a merge takes or makes: a piece, or a character that occurs within pieces and is none
itself (numbered from `vocab_size`). A space stands for itself here, as in the text, and not as U+2581.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stages.tokenizer.sentencepiece_file import NORMAL, Piece, read_pieces, read_settings
from stages.whitebox.tokenizer import SPACE_MARK

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # kinds of pieces, besides NORMAL
NUM_CODE_POINTS = 0x110000
NO_SYMBOL = -1
EMPTY = -1  # key of a free slot
MIX_LEFT, MIX_RIGHT = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F  # odd 64-bit constants of xxHash and others
JOIN_BITS_PER_PAIR = 32
"""At 32 bits for a pair 3 % of the other pairs are taken for joinable; that only makes segments longer."""


class EncoderTables(NamedTuple):
    """Everything the kernels know about a vocabulary. A tuple, because numba reads tuples of arrays."""

    vocab_size: int
    symbol_of_character: np.ndarray
    """int32 [0x110000]: code point -> its symbol, -1 for a character that is in no piece."""
    joins: np.ndarray
    """uint64: bit set of hashed pairs of symbols. A bit that is not set: in no piece do the two characters
    stand side by side."""
    joins_shift: int
    """A hash shifted right by this is the number of its bit."""
    merge_slots: np.ndarray
    """int64 [slots, 3], open addressing: left symbol << 32 | right symbol, rank, the piece they make."""
    merge_shift: int
    """A hash shifted right by this is the slot to look at first."""
    byte_ids: np.ndarray
    """int32 [256]: byte -> its token."""
    fixed_starts: np.ndarray
    """int32 [257]: user-defined symbols that begin with byte b are those from fixed_starts[b] to [b + 1]."""
    fixed_spans: np.ndarray
    """int64 [symbols, 3]: first byte, end in `fixed_bytes`, token; of one first byte the longest first."""
    fixed_bytes: np.ndarray
    """uint8: the user-defined symbols behind one another."""


def why_not_supported(model: bytes) -> str:
    """What keeps a SentencePiece model from being encoded by the kernels; "" when nothing does."""
    settings, pieces = read_settings(model), _pieces_of(model)
    normal = {piece.text for piece in pieces if piece.kind == NORMAL}
    reserved = {piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL, BYTE)}
    fixed = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    known_kinds = {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}
    problems = {
        "it is no BPE model": not settings.is_bpe,
        "it has no byte fallback": not settings.byte_fallback
        or sum(piece.kind == BYTE for piece in pieces) != 256,
        "it normalises text": settings.has_character_map,
        "it adds a space in front": settings.add_dummy_prefix,
        "it removes spaces": settings.remove_extra_whitespaces,
        "it does not mark spaces": not settings.escape_whitespaces or SPACE_MARK not in normal,
        "a piece has the name of a control token": bool(normal & reserved),
        "a user-defined symbol has a space": any(SPACE_MARK in text or " " in text for text in fixed),
        "it has pieces of an unknown kind": any(piece.kind not in known_kinds for piece in pieces),
    }
    return next((problem for problem, is_so in problems.items() if is_so), "")


def make_tables(model: bytes) -> EncoderTables:
    """The tables of a SentencePiece model. Raises ValueError when the kernels cannot encode by it."""
    if problem := why_not_supported(model):
        raise ValueError(f"these kernels cannot encode by this model: {problem}")
    pieces = _pieces_of(model)
    ids = {piece.text.replace(SPACE_MARK, " "): i for i, piece in enumerate(pieces) if piece.kind == NORMAL}
    symbols = _symbols(ids, len(pieces))
    joins, joins_shift = _join_bits(_neighbours(ids), symbols)
    merge_slots, merge_shift = _hash_slots(list(_merges(ids, symbols, pieces)))
    return EncoderTables(
        vocab_size=len(pieces),
        symbol_of_character=_symbol_of_character(symbols),
        joins=joins,
        joins_shift=joins_shift,
        merge_slots=merge_slots,
        merge_shift=merge_shift,
        byte_ids=_byte_ids(pieces),
        **_fixed_symbols(pieces),
    )


@lru_cache(maxsize=1)
def _pieces_of(model: bytes) -> Sequence[Piece]:
    """Asked for twice, and parsing 32,000 pieces takes 0.3 s."""
    return read_pieces(model)


def _symbols(ids: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    """All pieces, and the characters within them."""
    loose = sorted({character for text in ids for character in text} - ids.keys())
    return {**ids, **{character: vocab_size + number for number, character in enumerate(loose)}}


def _symbol_of_character(symbols: Mapping[str, int]) -> np.ndarray:
    table = np.full(NUM_CODE_POINTS, NO_SYMBOL, dtype=np.int32)
    for text, symbol in symbols.items():
        if len(text) == 1:
            table[ord(text)] = symbol
    return table


def _neighbours(ids: Mapping[str, int]) -> set[str]:
    return {text[at : at + 2] for text in ids for at in range(len(text) - 1)}


def _join_bits(pairs: set[str], symbols: Mapping[str, int]) -> tuple[np.ndarray, int]:
    log2_bits = max(12, (max(1, len(pairs)) * JOIN_BITS_PER_PAIR - 1).bit_length())
    bits = np.zeros(1 << (log2_bits - 6), dtype=np.uint64)
    for left, right in pairs:
        at = pair_hash(symbols[left], symbols[right]) >> (64 - log2_bits)
        bits[at >> 6] |= np.uint64(1 << (at & 63))
    return bits, 64 - log2_bits


def pair_hash(left: int, right: int) -> int:
    """Where a pair of symbols stands in the bit set and in the table of merges: the top bits count."""
    return (left * MIX_LEFT + right * MIX_RIGHT) & 0xFFFF_FFFF_FFFF_FFFF


def _merges(
    ids: Mapping[str, int], symbols: Mapping[str, int], pieces: Sequence[Piece]
) -> Iterator[tuple[int, int, int, int]]:
    """(left, right, rank, piece) of every way to make a piece of two symbols. Equal scores, equal ranks."""
    scores = sorted({pieces[i].score for i in ids.values()}, reverse=True)
    ranks = {score: rank for rank, score in enumerate(scores)}
    for text, i in ids.items():
        for at in range(1, len(text)):
            left, right = symbols.get(text[:at]), symbols.get(text[at:])
            if left is not None and right is not None:
                yield left, right, ranks[pieces[i].score], i


def _hash_slots(merges: Sequence[tuple[int, int, int, int]]) -> tuple[np.ndarray, int]:
    """An open-addressing table, at most half full, that a kernel walks from `pair_hash` on; and its shift."""
    log2_slots = max(4, (2 * len(merges)).bit_length())
    slots = np.full((1 << log2_slots, 3), EMPTY, dtype=np.int64)
    taken = bytearray(1 << log2_slots)
    for left, right, rank, piece in merges:
        at = pair_hash(left, right) >> (64 - log2_slots)
        while taken[at]:
            at = (at + 1) & (len(taken) - 1)
        taken[at] = 1
        slots[at] = (left << 32 | right, rank, piece)
    return slots, 64 - log2_slots


def _byte_ids(pieces: Sequence[Piece]) -> np.ndarray:
    table = np.zeros(256, dtype=np.int32)
    for i, piece in enumerate(pieces):
        if piece.kind == BYTE:
            table[int(piece.text[3:-1], 16)] = i  # "<0xE2>"
    return table


def _fixed_symbols(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """User-defined symbols by first byte and falling length: the first that matches is the longest."""
    found = [(piece.text.encode(), i) for i, piece in enumerate(pieces) if piece.kind == USER_DEFINED]
    found.sort(key=lambda item: (item[0][0], -len(item[0]), item[0]))
    ends = np.cumsum([len(text) for text, _ in found], dtype=np.int64)
    spans = [(end - len(text), end, i) for end, (text, i) in zip(ends.tolist(), found, strict=True)]
    firsts = np.bincount([text[0] for text, _ in found], minlength=256)
    return {
        "fixed_starts": np.concatenate([[0], np.cumsum(firsts)]).astype(np.int32),
        "fixed_spans": np.array(spans, dtype=np.int64).reshape(-1, 3),
        "fixed_bytes": np.frombuffer(b"".join(text for text, _ in found), dtype=np.uint8),
    }
