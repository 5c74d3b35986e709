"""Reading and writing the pieces of a SentencePiece model file.

The file is a protocol buffer (sentencepiece_model.proto): field 1, repeated, is a piece with its text (field
1), score (field 2) and kind (field 3); the other fields are settings, which are kept as they are. Forty lines
of reading save the protobuf package, which SentencePiece itself does not need.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NORMAL = 1
_PIECES = 1  # field of the model
_NORMALIZER = 3  # field of the model
_DUMMY_PREFIX = 3  # field of the normaliser's settings
_TEXT, _SCORE, _KIND = 1, 2, 3  # fields of a piece
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Piece:
    """One piece; a space is U+2581. kind: 1 normal, 2 unknown, 3 control, 4 user, 6 byte."""

    text: str
    score: float
    kind: int = NORMAL


def read_pieces(model: bytes) -> list[Piece]:
    """All pieces in the order of their ids. Raises ValueError when `model` is no model file."""
    return [_decode_piece(content) for field, _, content in _fields(model) if field == _PIECES]


def replace_pieces(model: bytes, pieces: Sequence[Piece]) -> bytes:
    """The model file with these pieces and its own settings."""
    settings = b"".join(whole for field, whole, _ in _fields(model) if field != _PIECES)
    return b"".join(_length_prefixed(_PIECES, _encode_piece(piece)) for piece in pieces) + settings


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Field number, the field with its tag, and its content alone."""
    start = 0
    while start < len(message):
        tag, at = _read_varint(message, start)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, end = _read_varint(message, at)
        elif wire == _BYTES:
            size, at = _read_varint(message, at)
            end = at + size
        elif wire in (_FIXED32, _FIXED64):
            end = at + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"no SentencePiece model: wire type {wire} at byte {start}")
        if end > len(message):
            raise ValueError(f"no SentencePiece model: cut short at byte {start}")
        yield field, message[start:end], message[at:end]
        start = end


def _decode_piece(content: bytes) -> Piece:
    parts = {field: value for field, _, value in _fields(content)}
    score = struct.unpack("<f", parts.get(_SCORE, b"\0\0\0\0"))[0]
    kind = _read_varint(parts[_KIND], 0)[0] if _KIND in parts else NORMAL
    return Piece(parts[_TEXT].decode(), score, kind)


def _encode_piece(piece: Piece) -> bytes:
    score = _varint(_SCORE << 3 | _FIXED32) + struct.pack("<f", piece.score)
    kind = b"" if piece.kind == NORMAL else _varint(_KIND << 3 | _VARINT) + _varint(piece.kind)
    return _length_prefixed(_TEXT, piece.text.encode()) + score + kind


def _length_prefixed(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _read_varint(message: bytes, start: int) -> tuple[int, int]:
    """The number at `start`, and where it ends."""
    number, at = 0, start
    while at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << (7 * (at - start))
        at += 1
        if byte < 0x80:
            return number, at
    raise ValueError(f"no SentencePiece model: cut short at byte {start}")


@dataclass(frozen=True)
class ModelSettings:
    """What a model file says about how it cuts and normalises text; the defaults are the format's."""

    is_bpe: bool = False
    byte_fallback: bool = False
    has_character_map: bool = False
    """Text is rewritten before it is cut, by NFKC for instance."""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_settings(model: bytes) -> ModelSettings:
    """The settings of the model file. Raises ValueError when `model` is no model file."""
    messages = {field: content for field, _, content in _fields(model) if field in (2, 3)}
    trainer, normalizer = _numbers(messages.get(2, b"")), _numbers(messages.get(3, b""))
    return ModelSettings(
        is_bpe=trainer.get(3, 1) == 2,
        byte_fallback=bool(trainer.get(35, 0)),
        has_character_map=any(field == 2 and content for field, _, content in _fields(messages.get(3, b""))),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _numbers(message: bytes) -> dict[int, int]:
    """The fields of a message that are whole numbers, by field number."""
    return {
        field: _read_varint(content, 0)[0]
        for field, whole, content in _fields(message)
        if whole[0] & 7 == _VARINT
    }


def without_dummy_prefix(model: bytes) -> bytes:
    """The model file, told not to put a space before the text."""
    normalizer = next((content for field, _, content in _fields(model) if field == _NORMALIZER), b"")
    others = b"".join(whole for field, whole, _ in _fields(normalizer) if field != _DUMMY_PREFIX)
    changed = others + _varint(_DUMMY_PREFIX << 3 | _VARINT) + _varint(0)
    rest = b"".join(whole for field, whole, _ in _fields(model) if field != _NORMALIZER)
    return rest + _length_prefixed(_NORMALIZER, changed)
