"""What the vocabulary is learned from: lines, or words and how often each occurs.

Two schemes say what a piece may not straddle.

* "compact": a word is what stands between spaces, the spaces before it included. Plain SentencePiece does
  that by itself, from lines.
* "copyable": words are learned without the space before them, and without the punctuation that ends a
  sentence or quotes a name. Why: a model that calls a tool copies a name out of a sentence into JSON. If
  "torch.add" were cut one way behind a space, another way behind a quote, and a third way before a full stop,
  copying would be translating.

Texts are streamed: in memory are the counts of distinct words, here, or SentencePiece's copy of the lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

WordScheme = Literal["copyable", "compact"]

MAX_WORD_CHARACTERS = 4000  # four bytes each at most: below SentencePiece's limit, over which it drops words

_CHUNK = re.compile(r" ?[^ \n\t]+| +")
"""A word with the one space before it, or a run of spaces; newlines and tabs have pieces of their own."""
_PARTS = re.compile(r"((?:[\"'`]+(?=[\w(\[{<-]))?)(.*?)([\"'`.,;?!]*)", re.DOTALL)
_PUNCTUATION = re.compile(r"[\"'`.,;:?!]")
_JOINS = re.compile(r"(?<=[^.,;?!])(?=[.,;?!])|(?<=\w)(?=:)")
"""Where punctuation follows. It may begin a piece, as in ".path", but not end one: were there a piece "s.",
the name at the end of a sentence would be cut differently from the same name in a call."""


@dataclass
class WordCounts:
    """How often each word occurs, and how often behind exactly one space."""

    words: Counter[str] = field(default_factory=Counter)
    behind_space: Counter[str] = field(default_factory=Counter)


def count_words(texts: Iterable[str], rare: frozenset[str] = frozenset()) -> WordCounts:
    """Count the words of `texts`; a character in `rare` ends a word and belongs to none."""
    chunks: Counter[str] = Counter()
    for text in without_characters(texts, rare):
        chunks.update(_CHUNK.findall(text))
    counts = WordCounts()
    for chunk, count in chunks.items():
        if chunk.isspace() and not chunk.strip(" "):
            counts.words[chunk] += count
            continue
        word = chunk.removeprefix(" ")
        if word is not chunk:
            counts.behind_space[word] += count
        for part in split_word(word):
            counts.words[part] += count
    return counts


def lines(texts: Iterable[str], rare: frozenset[str] = frozenset()) -> Iterator[str]:
    """The lines of `texts`, as SentencePiece takes them; a character in `rare` ends a line, and so does the
    limit over which SentencePiece would drop it."""
    for text in without_characters(texts, rare) if rare else texts:
        for line in text.split("\n"):
            if len(line) > MAX_WORD_CHARACTERS:
                yield from short_parts(line)
            elif line:
                yield line


def without_characters(texts: Iterable[str], rare: frozenset[str]) -> Iterator[str]:
    """`texts` with a newline for every character in `rare`."""
    table = {ord(character): "\n" for character in rare}
    for text in texts:
        yield text if text.isascii() or rare.isdisjoint(text) else text.translate(table)


def short_parts(text: str) -> Iterator[str]:
    """`text` in parts of at most MAX_WORD_CHARACTERS."""
    for start in range(0, len(text), MAX_WORD_CHARACTERS):
        yield text[start : start + MAX_WORD_CHARACTERS]


def split_word(word: str) -> Iterator[str]:
    """The parts of `word` that pieces may not straddle: opening quotes, core, closing punctuation."""
    if not _PUNCTUATION.search(word):  # most words
        yield from short_parts(word)
        return
    match = _PARTS.fullmatch(word)
    opening, core, closing = match.groups() if match else ("", "", "")
    for part in (opening, *_JOINS.split(core), closing):
        yield from short_parts(part)
