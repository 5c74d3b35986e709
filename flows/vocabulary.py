"""What each token of a vocabulary stands for, read from `tokenizer.json`: every tokenizer and model has one,
learned, extended or imported. Needs no package that encodes text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SPACE_MARK = "\u2581"
_COMPONENTS = ("normalizers", "pretokenizers", "decoders", "processors")


def read_token_bytes(path: Path) -> list[bytes]:
    """Token id -> its bytes in a text; special tokens by name. Raises OSError, ValueError, KeyError."""
    document = json.loads(path.read_text(encoding="utf-8"))
    names = document["model"]["vocab"]
    listed = enumerate(name for name, _ in names) if isinstance(names, list) else _by_id(names)
    decoders = frozenset(_kinds(document.get("decoder")))
    found = {number: _spelled(name, decoders) for number, name in listed}
    found |= {token["id"]: token["content"].encode() for token in document["added_tokens"]}
    return [found.get(number, b"") for number in range(max(found) + 1)]


def _by_id(names: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    return ((number, name) for name, number in names.items())


def _kinds(component: Any) -> Iterator[str]:
    if isinstance(component, Mapping):
        yield str(component.get("type"))
        for inner in (inner for key in _COMPONENTS for inner in component.get(key) or ()):
            yield from _kinds(inner)


def _spelled(name: str, decoders: frozenset[str]) -> bytes:
    if "ByteLevel" in decoders and all(character in _BYTE_OF for character in name):
        return bytes(_BYTE_OF[character] for character in name)
    if "ByteFallback" in decoders and len(name) == 6 and name.startswith("<0x"):
        return bytes([int(name[3:5], 16)])
    return (name.replace(SPACE_MARK, " ") if decoders & {"Replace", "Metaspace"} else name).encode()


def _visible_bytes() -> dict[str, int]:
    """GPT-2 writes a byte as the character of Latin-1 where that can be seen, else as one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = sorted(set(range(256)) - seen)
    return {chr(byte): byte for byte in seen} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _visible_bytes()
