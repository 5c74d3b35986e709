"""What the vocabulary is learned from: words and how often each occurs, alone and behind a space.

Words are learned without the space before them, and without the punctuation that ends a sentence or quotes a
name. Why: a model that calls a tool copies a name out of a sentence into JSON. If "torch.add" were cut one
way behind a space, another way behind a quote, and a third way before a full stop, copying would be
translating.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MAX_WORD_CHARACTERS = 4000  # four bytes each at most: below SentencePiece's limit, over which it drops words

_CHUNK = re.compile(r" ?[^ \n\t]+| +")
"""A word with the one space before it, or a run of spaces; newlines and tabs have pieces of their own."""
_PARTS = re.compile(r"((?:[\"'`]+(?=[\w(\[{<-]))?)(.*?)([\"'`.,;?!]*)", re.DOTALL)
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
    table = {ord(character): "\n" for character in rare}
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(_CHUNK.findall(text.translate(table) if table else text))
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


def split_word(word: str) -> Iterator[str]:
    """The parts of `word` that pieces may not straddle: opening quotes, core, closing punctuation."""
    match = _PARTS.fullmatch(word)
    opening, core, closing = match.groups() if match else ("", "", "")
    for part in (opening, *_JOINS.split(core), closing):
        for start in range(0, len(part), MAX_WORD_CHARACTERS):
            yield part[start : start + MAX_WORD_CHARACTERS]
