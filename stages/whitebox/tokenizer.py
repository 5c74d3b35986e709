"""Text to token ids and back, on a SentencePiece model with byte fallback.

Two promises that raw SentencePiece does not make:

* Lossless on every text. SentencePiece writes a space as U+2581 internally, so a U+2581 in the text would
come
  back as a space; we spell it with its three byte tokens instead.
* `encode` never makes a control token out of text. "<|im_end|>" typed by a user, or found in a document,
becomes
  ordinary pieces; only `special_id` gives control ids, and only `chat_format` puts them into a prompt.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import sentencepiece

from stages.whitebox.chat_template import Reasoning, reasoning_of, write_template

UNK_PIECE, BOS_PIECE, EOS_PIECE, PAD_PIECE = "<|unk|>", "<|bos|>", "<|eos|>", "<|pad|>"
"""Names of the ids 0, 1, 2, 3 in a vocabulary learned here. Not "<s>" and "<unk>", which real text (HTML,
wikitext) contains."""

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space inside its pieces
LARGE_BATCH = 256
MODEL_FILE, IMPORTED_FILE = "tokenizer.model", "tokenizer.json"
ROLES_FILE = "special_tokens_map.json"
_PROBE = "  a  \ufb01\uff11 "  # a normalisation such as NFKC, or a space in front, would change it
TOKENIZER_FILES = (
    MODEL_FILE,
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a model folder carries so that it opens on its own."""


class Tokenizer:
    """Encodes and decodes with one SentencePiece model; immutable and cheap to keep around."""

    reasoning: Reasoning = "keep"
    """Which of an assistant's reasoning its conversations show."""

    def __init__(self, model_proto: bytes) -> None:
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"the bytes are no SentencePiece model ({error})") from error
        self.model_proto = model_proto
        self.sha256 = hashlib.sha256(model_proto).hexdigest()
        self.vocab_size = int(self._sp.vocab_size())
        self.unk_id, self.bos_id = int(self._sp.unk_id()), int(self._sp.bos_id())
        self.eos_id, self.pad_id = int(self._sp.eos_id()), int(self._sp.pad_id())
        self._check()
        self._bytes = [self._spell(i) for i in range(self.vocab_size)]
        self._special = {
            self._sp.id_to_piece(i): i
            for i in range(self.vocab_size)
            if self._sp.is_control(i) or self._sp.is_unknown(i)
        }
        byte_of = {self._bytes[i][0]: i for i in range(self.vocab_size) if self._sp.is_byte(i)}
        self._space_mark_ids = [byte_of[byte] for byte in SPACE_MARK.encode()]

    def _check(self) -> None:
        if min(self.unk_id, self.bos_id, self.eos_id) < 0:
            raise ValueError("the model must have unk, bos and eos: it has not all of them")
        if str(self._sp.normalize(_PROBE)) != _PROBE.replace(" ", SPACE_MARK):
            raise ValueError("the model rewrites text or puts a space in front: texts would not come back")
        if sum(bool(self._sp.is_byte(i)) for i in range(self.vocab_size)) != 256:
            raise ValueError("the model has no byte fallback: characters would be lost")

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Load a tokenizer or model folder: its `tokenizer.model`, or else the `tokenizer.json` of an import.

        Raises ValueError when there is neither.
        """
        path = Path(folder) / MODEL_FILE
        reasoning = reasoning_of(Path(folder))
        if path.is_file():
            return cls(path.read_bytes()).with_reasoning(reasoning)
        if not (Path(folder) / IMPORTED_FILE).is_file() or not (Path(folder) / ROLES_FILE).is_file():
            raise ValueError(f"{path} is missing: expected the folder of a tokenizer or of a model")
        from stages.whitebox.imported_tokenizer import ImportedTokenizer

        found = ImportedTokenizer.from_files(Path(folder) / IMPORTED_FILE, Path(folder) / ROLES_FILE)
        return found.with_reasoning(reasoning)

    def with_reasoning(self, reasoning: Reasoning) -> Self:
        """The same tokenizer for conversations that show this of the reasoning."""
        changed = copy.copy(self)
        changed.reasoning = reasoning
        return changed

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: no BOS, no EOS, never a control token. Lone surrogates become U+FFFD."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode`."""
        clean = [replace_lone_surrogates(text) for text in texts]
        plain = [text for text in clean if SPACE_MARK not in text]
        # SentencePiece gives a batch to a thread, which on a busy machine waits for its turn: up to 40 ms.
        is_large = len(plain) >= LARGE_BATCH
        encoded = iter(self._sp.encode(plain, num_threads=1) if is_large else map(self._sp.encode, plain))
        return [self._encode_marked(text) if SPACE_MARK in text else next(encoded) for text in clean]

    def _encode_marked(self, text: str) -> list[int]:
        ids: list[int] = []
        for position, part in enumerate(text.split(SPACE_MARK)):
            if position:
                ids += self._space_mark_ids
            ids += self._sp.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens vanish, byte sequences that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that this token stands for, b"" for control tokens. Raises ValueError on other ids."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[token_id]

    def special_id(self, name: str) -> int:
        """Id of a control token such as "<|im_end|>". Raises ValueError for any other string."""
        if name not in self._special:
            raise ValueError(f"{name!r} is no control token; there are {', '.join(self._special)}")
        return self._special[name]

    def is_special(self, token_id: int) -> bool:
        """True for unk, bos, eos, pad and the control tokens of chat and tools."""
        return bool(self._sp.is_control(token_id) or self._sp.is_unknown(token_id))

    def is_byte(self, token_id: int) -> bool:
        """True for the 256 byte tokens that spell characters outside the vocabulary."""
        return bool(self._sp.is_byte(token_id))

    def piece(self, token_id: int) -> str:
        """The token as a person reads it: its text, "<0xE2>" for a byte, its name for a control token."""
        name = str(self._sp.id_to_piece(token_id))
        return name if self.is_special(token_id) or self.is_byte(token_id) else name.replace(SPACE_MARK, " ")

    def score(self, token_id: int) -> float:
        """SentencePiece's score: the later a merge was learned, the lower."""
        return float(self._sp.get_score(token_id))

    def _spell(self, token_id: int) -> bytes:
        name = self._sp.id_to_piece(token_id)
        if self._sp.is_control(token_id) or self._sp.is_unknown(token_id):
            return b""
        if self._sp.is_byte(token_id):
            return bytes([int(name[3:-1], 16)])  # "<0xE2>"
        return str(name).replace(SPACE_MARK, " ").encode()


def copy_tokenizer(source: Path, target: Path, reasoning: Reasoning | None = None) -> None:
    """Put the tokenizer's files beside a model, as far as `source` has them.

    reasoning: what the model's own template does with it; None leaves the template as it is.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if reasoning is not None:
        write_template(target, reasoning)


def replace_lone_surrogates(text: str) -> str:
    """`text` with every code point that UTF-8 cannot carry replaced by U+FFFD; usually `text` itself."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
