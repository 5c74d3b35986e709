"""Quality filters: each has a name, and says for each dropped document why.

A filter returns None for a document that it keeps, or a short detail for one that it drops; its name is
the reason. Thresholds follow Gopher (Rae et al. 2021, arXiv:2112.11446, table A1) where it has one, but are
wider: Gopher's were made for English web pages, and documentation is full of short lines, symbols and code.

What is a word depends on the script: runs of letters and digits, except that each Han or kana character is
a word of its own.
"""

from __future__ import annotations

import re
import string
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_DENSE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_DENSE}]|[^\\W_{_DENSE}]+")
_SYMBOL = re.compile("[^\\w\\s.,;:!?'\"()\u3001\u3002\uff0c\uff1b\uff1a\uff1f\uff01\u060c\u061b\u061f-]")
_ASCII_LETTERS = string.ascii_letters.encode()
_ASCII_PLAIN = f"{string.ascii_letters}{string.digits}{string.whitespace}_.,;:!?'\"()-".encode()
NGRAM_WORDS = 8
MIN_NGRAMS = 40
MIN_LINES = 8


def word_list(text: str) -> list[str]:
    """Words in order; a Han or kana character is one."""
    return _WORD.findall(text)


@dataclass(frozen=True)
class Thresholds:
    """What the filters compare with; `DEFAULT` is for alphabets, `DENSE` for Chinese and Japanese."""

    min_characters: int
    max_mean_word_characters: float
    max_symbol_fraction: float
    min_letter_fraction: float
    max_duplicate_line_fraction: float
    max_repeated_ngram_fraction: float
    max_word_characters: int = 200


DEFAULT = Thresholds(40, 14.0, 0.45, 0.35, 0.5, 0.6)
DENSE = Thresholds(20, 4.0, 0.35, 0.35, 0.5, 0.6)
CODE = Thresholds(40, 20.0, 0.6, 0.25, 0.6, 0.7)


class Measured:
    """A text with what the filters count, each counted once and only if asked for."""

    def __init__(self, text: str, language: str) -> None:
        self.text = text
        self.thresholds = {"zh": DENSE, "ja": DENSE, "code": CODE}.get(language, DEFAULT)

    @cached_property
    def num_visible(self) -> int:
        """Characters that are no white space."""
        return sum(map(len, self.text.split()))

    @cached_property
    def words(self) -> list[str]:
        """Words in order."""
        return word_list(self.text)

    @cached_property
    def letter_fraction(self) -> float:
        """Letters of any script per visible character."""
        if self.text.isascii():  # nearly all documentation, and ten times as fast
            letters = len(self.text) - len(self.text.encode().translate(None, _ASCII_LETTERS))
        else:
            letters = sum(map(str.isalpha, self.text))
        return letters / max(1, self.num_visible)

    @cached_property
    def symbol_fraction(self) -> float:
        """Characters that are neither letter, digit, space nor common punctuation, per visible character."""
        if self.text.isascii():
            symbols = len(self.text.encode().translate(None, _ASCII_PLAIN))
        else:
            symbols = len(_SYMBOL.findall(self.text))
        return symbols / max(1, self.num_visible)

    @cached_property
    def duplicate_line_fraction(self) -> float:
        """Characters in lines that stood before, per character; 0 for texts of a few lines."""
        lines = [line.strip() for line in self.text.split("\n") if line.strip()]
        if len(lines) < MIN_LINES:
            return 0.0
        repeated = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
        return repeated / sum(map(len, lines))

    @cached_property
    def repeated_ngram_fraction(self) -> float:
        """Share of the 8-grams of words that are repetitions of an earlier one."""
        grams = hashed_ngrams(self.words, NGRAM_WORDS)
        return 1 - len(np.unique(grams)) / len(grams) if len(grams) >= MIN_NGRAMS else 0.0


def hashed_ngrams(words: list[str], size: int) -> NDArray[np.uint64]:
    """uint64 [len(words) - size + 1]: a hash of every run of `size` words, the same in every process."""
    if len(words) < size:
        return np.empty(0, np.uint64)
    codes = np.fromiter(map(zlib.crc32, map(str.encode, words)), np.uint64, len(words))
    length = len(words) - size + 1
    hashes = np.zeros(length, np.uint64)
    for offset in range(size):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + length]
    return hashes


Filter = Callable[[Measured], str | None]


def too_short(measured: Measured) -> str | None:
    """Less text than any sentence that is worth learning."""
    minimum = measured.thresholds.min_characters
    return f"{measured.num_visible} characters" if measured.num_visible < minimum else None


def no_letters(measured: Measured) -> str | None:
    """Tables of numbers, rulers, drawings."""
    share = measured.letter_fraction
    return f"{share:.0%} letters" if share < measured.thresholds.min_letter_fraction else None


def symbol_ratio(measured: Measured) -> str | None:
    """Mostly symbols: markup without text, encoded data."""
    share = measured.symbol_fraction
    return f"{share:.0%} symbols" if share > measured.thresholds.max_symbol_fraction else None


def long_words(measured: Measured) -> str | None:
    """Words of a length that no language has: base64, minified code, missing spaces."""
    words, limits = measured.words, measured.thresholds
    mean = sum(map(len, words)) / max(1, len(words))
    if mean > limits.max_mean_word_characters:
        return f"mean word length {mean:.1f}"
    glued = sum(len(word) for word in words if len(word) > limits.max_word_characters)
    return "words of over 200 characters" if glued > 0.2 * measured.num_visible else None


def duplicate_lines(measured: Measured) -> str | None:
    """The same lines again and again."""
    share = measured.duplicate_line_fraction
    over = share > measured.thresholds.max_duplicate_line_fraction
    return f"{share:.0%} in repeated lines" if over else None


def repeated_ngrams(measured: Measured) -> str | None:
    """The same phrases again and again."""
    share = measured.repeated_ngram_fraction
    over = share > measured.thresholds.max_repeated_ngram_fraction
    return f"{share:.0%} of 8-grams repeated" if over else None


def broken_characters(measured: Measured) -> str | None:
    """Replacement characters: the bytes were lost before we saw them."""
    share = measured.text.count("\ufffd") / max(1, measured.num_visible)
    return f"{share:.1%} replacement characters" if share > 0.01 else None


#: In the order in which they are asked; the first that drops a document gives the reason.
FILTERS: tuple[Filter, ...] = (
    too_short,
    broken_characters,
    no_letters,
    symbol_ratio,
    long_words,
    duplicate_lines,
    repeated_ngrams,
)


def judge(text: str, language: str) -> tuple[bool, str, str]:
    """(True, "", "") to keep the text, or (False, reason, detail)."""
    measured = Measured(text, language)
    for check in FILTERS:
        if (detail := check(measured)) is not None:
            return False, check.__name__, detail
    return True, "", ""
