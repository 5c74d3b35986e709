"""A tokenizer that was made elsewhere, read from Hugging Face's `tokenizer.json`.

What the file may say (a dozen normalisers, pre-tokenisers with regular expressions over Unicode classes, four
models) is defined by the library `tokenizers` and by nothing else; so that library reads it, and is needed
only where a tokenizer was imported. Ours are the two promises of `tokenizer.py`: every text comes back, and
no control token is made out of text.

A piece becomes bytes in one of two ways. Byte-level BPE (GPT-2, Llama 3, Qwen) writes each byte as a visible
character. SentencePiece's way (Llama 2, Mistral) writes a space as U+2581 and unknown characters as <0xE2>.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.whitebox.tokenizer import SPACE_MARK, Tokenizer, replace_lone_surrogates

ROLES = ("unk_token", "bos_token", "eos_token", "pad_token")
_NO_BYTES = frozenset({"WordPiece", "CTC", "BPEDecoder", "Strip"})


class ImportedTokenizer(Tokenizer):
    """Encodes and decodes with `tokenizers`; otherwise a Tokenizer like any other."""

    def __init__(self, content: str, roles: Mapping[str, str]) -> None:
        """`content` of a tokenizer.json; `roles`: "bos_token", "eos_token", "pad_token" -> the token's name.

        Raises ValueError when the library cannot read it, a role has no token, or pieces have no bytes.
        """
        self._library = _read(content)
        self.model_proto = b""
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        document = json.loads(content)
        vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._names = [""] * self.vocab_size
        for name, token_id in vocabulary.items():
            self._names[token_id] = name
        added = {token["id"]: token for token in document["added_tokens"]}
        self._special = {token["content"]: i for i, token in added.items() if token["special"]}
        self._special_ids = frozenset(self._special.values())
        for role in ROLES[1:]:
            if roles.get(role) not in self._special:
                raise ValueError(f"the {role} {roles.get(role)!r} is no special token of the tokenizer")
        self.unk_id = vocabulary.get(roles.get("unk_token", ""), -1)
        self.bos_id, self.eos_id, self.pad_id = (self._special[roles[role]] for role in ROLES[1:])
        self._decoders = frozenset(kinds(document.get("decoder")))
        if unknown := self._decoders & _NO_BYTES:
            raise ValueError(f"its decoder {', '.join(sorted(unknown))} does not give a text back as it was")
        self._bytes = [self._spell_name(i, added.get(i)) for i in range(self.vocab_size)]
        byte_of = {self._bytes[i]: i for i in range(self.vocab_size) if self.is_byte(i)}
        self._space_mark_ids = [byte_of.get(bytes([byte]), -1) for byte in SPACE_MARK.encode()]
        self._spells_space_mark = not self.is_byte_level and -1 not in self._space_mark_ids
        # A unigram model finds "<s>" and "<0x41>" in a text like any other piece: such names are cut in two.
        finds_names = document["model"].get("type") == "Unigram"
        self._names_in_text = _splitter(self._special) if finds_names else None

    @classmethod
    def from_files(cls, path: Path, roles: Path) -> ImportedTokenizer:
        """Read `tokenizer.json` and the `special_tokens_map.json` beside it."""
        return cls(path.read_text(encoding="utf-8"), json.loads(roles.read_text(encoding="utf-8")))

    @property
    def is_byte_level(self) -> bool:
        """Whether every piece is spelled in bytes, as in GPT-2."""
        return "ByteLevel" in self._decoders

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode`."""
        segments = [self._segments(replace_lone_surrogates(text)) for text in texts]
        plain = [part for parts in segments for part in parts if part != SPACE_MARK]
        encoded = iter(self._library.encode_batch_fast(plain, add_special_tokens=False))
        return [
            [
                token
                for part in parts
                for token in (self._space_mark_ids if part == SPACE_MARK else next(encoded).ids)
            ]
            for parts in segments
        ]

    def _segments(self, text: str) -> list[str]:
        """Parts of the text that are encoded by themselves: usually one, the whole text."""
        parts = re.split(f"({SPACE_MARK})", text) if self._spells_space_mark else [text]
        if self._names_in_text is None:
            return parts
        return [piece for part in parts for piece in self._names_in_text.split(part)]

    def is_special(self, token_id: int) -> bool:
        """True for the special tokens of the imported file and for the markers of chat and tools."""
        return token_id in self._special_ids

    def is_byte(self, token_id: int) -> bool:
        """True for a token that is one byte of a longer character."""
        spelled = self._bytes[token_id]
        return len(spelled) == 1 and (_is_byte_name(self._names[token_id]) or spelled[0] >= 0x80)

    def piece(self, token_id: int) -> str:
        """The token as a person reads it; bytes that are no character by themselves as <0xE2>."""
        if self.is_special(token_id) or not self._bytes[token_id]:
            return self._names[token_id]
        try:
            return self._bytes[token_id].decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in self._bytes[token_id])

    def score(self, token_id: int) -> float:
        """0: an imported file ranks its merges and not its pieces."""
        return 0.0

    def _spell_name(self, token_id: int, added: Mapping[str, Any] | None) -> bytes:
        name = self._names[token_id]
        if added is not None:
            return b"" if added["special"] else str(added["content"]).encode()
        if self.is_byte_level:
            return b"".join(bytes([BYTE_OF_CHARACTER[c]]) for c in name)
        if _is_byte_name(name) and "ByteFallback" in self._decoders:
            return bytes([int(name[3:-1], 16)])
        return (name.replace(SPACE_MARK, " ") if self._decoders & {"Replace", "Metaspace"} else name).encode()


def _read(content: str) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise ValueError(
            "an imported tokenizer needs the package tokenizers: pip install tokenizers"
        ) from error
    try:
        library = Library.from_str(content)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"tokenizers cannot read the file: {error}") from error
    library.encode_special_tokens = True  # "<|im_end|>" in a text is text
    return library


def kinds(component: Any) -> Iterator[str]:
    """The types of a component of tokenizer.json and of those inside it."""
    if isinstance(component, Mapping):
        if isinstance(component.get("type"), str):
            yield component["type"]
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            for inner in component.get(key) or ():
                yield from kinds(inner)


def _splitter(names: Iterable[str]) -> re.Pattern[str]:
    """Matches nothing, behind the first character of each name and of each "<0x41>"."""
    cuts = [f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names if len(name) > 1]
    return re.compile("|".join([r"(?<=<)(?=0x[0-9A-F]{2}>)", *cuts]))


def _is_byte_name(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _byte_characters() -> dict[str, int]:
    """GPT-2's visible character for each byte: itself where Latin-1 can print it, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()
