"""How good the vocabulary is on text that it was not learned from, and which of its pieces are idle.

* bytes per token: the higher, the shorter the sequences.
* tokens per word (fertility): a word is a run of letters and digits, and each Han, kana or Hangul character.
* single-byte share: tokens that are one byte of a character without a piece.
* glitch tokens: pieces that occur nowhere in the corpus when it is encoded. A model never learns them, and
  does strange things when it meets one (Land and Bartolo 2024, arXiv:2405.05417).
* dead pieces: those that not even their own text is cut into. They can never occur.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_contracts.tables import read_rows
from stages.tokenizer.alphabet import script_of
from stages.whitebox.tokenizer import Tokenizer

BATCH_DOCUMENTS = 128
MAX_BYTES_PER_STRATUM = 4_000_000
"""Enough for three digits; a corpus of a terabyte has gigabytes of validation documents."""
_WORDS = re.compile(r"\w+")
_UNSPACED = frozenset({"Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar"})
ALL = "all"


@dataclass
class Quality:
    """What the documents of one language and one source cost."""

    num_documents: int = 0
    num_bytes: int = 0
    num_words: int = 0
    num_tokens: int = 0
    num_byte_tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 that a token stands for, on average."""
        return self.num_bytes / max(1, self.num_tokens)

    @property
    def tokens_per_word(self) -> float:
        """Fertility."""
        return self.num_tokens / max(1, self.num_words)

    @property
    def byte_fallback_fraction(self) -> float:
        """Share of the tokens that are single bytes."""
        return self.num_byte_tokens / max(1, self.num_tokens)

    def __add__(self, other: Quality) -> Quality:
        return Quality(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def count_words_of(text: str) -> int:
    """Words as fertility counts them: runs of letters and digits, unspaced scripts by character."""
    if text.isascii():
        return len(_WORDS.findall(text))
    words = 0
    for run in _WORDS.findall(text):
        unspaced = sum(not c.isascii() and script_of(c) in _UNSPACED for c in run)
        words += unspaced + (unspaced < len(run))
    return words


def measure_quality(documents: Path, tokenizer: Tokenizer) -> dict[tuple[str, str], Quality]:
    """(language, source) -> its validation documents' cost, at most MAX_BYTES_PER_STRATUM of each."""
    is_byte = np.array([tokenizer.is_byte(i) for i in range(tokenizer.vocab_size)])
    found: dict[tuple[str, str], Quality] = defaultdict(Quality)
    rows = _validation_rows(documents, found)
    while batch := list(islice(rows, BATCH_DOCUMENTS)):
        ids = tokenizer.encode_batch([row["text"] for row in batch])
        for row, tokens in zip(batch, ids, strict=True):
            stratum = found[row["language"], row["source"]]
            stratum.num_words += count_words_of(row["text"])
            stratum.num_tokens += len(tokens)
            stratum.num_byte_tokens += int(is_byte[tokens].sum())
    return {key: quality for key, quality in found.items() if quality.num_documents}


def _validation_rows(documents: Path, found: Mapping[tuple[str, str], Quality]) -> Iterator[dict[str, Any]]:
    """Rows to encode; documents and bytes are counted here, so that a stratum is full in time."""
    for row in read_rows(documents, ["language", "source", "split", "text"]):
        stratum = found[row["language"], row["source"]]
        if row["split"] == "validation" and stratum.num_bytes < MAX_BYTES_PER_STRATUM:
            stratum.num_documents += 1
            stratum.num_bytes += len(row["text"].encode("utf-8", "replace"))
            yield row


def quality_rows(strata: Mapping[tuple[str, str], Quality]) -> list[dict[str, Any]]:
    """One row for each language and source, one for each language ("all" sources), one for all."""
    totals: dict[tuple[str, str], Quality] = defaultdict(Quality)
    for (language, source), quality in strata.items():
        for key in {(language, source), (language, ALL), (ALL, ALL)}:
            totals[key] = totals[key] + quality
    return [
        {
            "language": language,
            "source": source,
            **vars(quality),
            "bytes_per_token": quality.bytes_per_token,
            "tokens_per_word": quality.tokens_per_word,
            "byte_fallback_fraction": quality.byte_fallback_fraction,
        }
        for (language, source), quality in sorted(totals.items())
    ]


def idle_pieces(tokenizer: Tokenizer, usage: Sequence[int]) -> list[dict[str, Any]]:
    """Glitch tokens and dead pieces, in the order of their ids; special tokens and bytes do not count.

    usage: [vocabulary] how often each id occurs in the corpus.
    """
    learned = list(_learned(tokenizer))
    texts = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in learned]
    dead = {i for i, ids in zip(learned, tokenizer.encode_batch(texts), strict=True) if ids != [i]}
    return [
        {"id": i, "piece": text, "kind": "dead" if i in dead else "glitch"}
        for i, text in zip(learned, texts, strict=True)
        if i in dead or usage[i] == 0
    ]


def _learned(tokenizer: Tokenizer) -> Iterable[int]:
    """Ids of pieces that are text. A piece that ends within a character has no text of its own."""
    for i in range(tokenizer.vocab_size):
        spelled = tokenizer.token_bytes(i)
        if spelled and not tokenizer.is_byte(i) and b"\xef\xbf\xbd" not in spelled and _is_text(spelled):
            yield i


def _is_text(spelled: bytes) -> bool:
    try:
        spelled.decode()
    except UnicodeDecodeError:
        return False
    return True
