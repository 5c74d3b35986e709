"""What people look at: a few texts of each reason, cut out around the place that broke the rule."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

EXAMPLES_PER_REASON = 3
PREVIEW_CHARACTERS = 200
SHINGLE_WORDS = 5
SHORT_LINES, SHORT_LINE_CHARACTERS = 5, 30
MAX_SEARCHED_CHARACTERS = 10_000
"""Where a place is looked for: every document that is dropped has a preview, so this must cost little."""

Place = tuple[int, int]
T = TypeVar("T")
_WORD = re.compile(r"\S+")
_QUOTED = re.compile(r"'([^']{2,60})'")


def preview_around(text: str, reason: str, detail: str = "", characters: int = PREVIEW_CHARACTERS) -> str:
    """At most `characters` of the text on one line, around what `broken_at` finds, else its beginning.

    `...` stands where something was cut off.
    """
    whole, text = len(text), text[:MAX_SEARCHED_CHARACTERS]
    start, end = broken_at(text, reason, detail) or (0, 0)
    spare = max(0, characters - (end - start)) // 3  # a third before it, two thirds behind
    first = max(0, start - spare) if end else 0
    cut = " ".join(text[first : first + 2 * characters].split())[:characters]
    is_cut = whole > len(text) or first + len(cut) < len(text.rstrip())
    return f"{'...' if first else ''}{cut}{'...' if is_cut else ''}"


def broken_at(text: str, reason: str, detail: str = "") -> Place | None:
    """(start, end) of the place that broke the rule, or None where the whole text did.

    The rule is told by words of its name, so that one that is added to a family finds its place, too. What
    the detail quotes is looked for first.
    """
    if reason in OF_THE_WHOLE:
        return None
    if quoted := _QUOTED.search(detail):
        at = text.casefold().find(quoted[1].casefold())
        if at >= 0:
            return at, at + len(quoted[1])
    for part, find in _FINDERS:
        if part in reason and (place := find(text)) is not None:
            return place
    return None


def _repeated_line(text: str) -> Place | None:
    seen: set[str] = set()
    at = 0
    for line in text.split("\n"):
        if line.strip() and line.strip() in seen:
            return at, at + len(line)
        seen.add(line.strip())
        at += len(line) + 1
    return None


def _repeated_words(text: str) -> Place | None:
    """The first run of words that stood before; of characters where nothing separates words."""
    words = list(_WORD.finditer(text))
    if len(words) * 20 < len(text):
        return _repeated_characters(text)
    seen: set[str] = set()
    for first in range(len(words) - SHINGLE_WORDS + 1):
        run = " ".join(word[0] for word in words[first : first + SHINGLE_WORDS])
        if run in seen:
            return words[first].start(), words[first + SHINGLE_WORDS - 1].end()
        seen.add(run)
    return None


def _repeated_characters(text: str, length: int = 10) -> Place | None:
    seen: set[str] = set()
    for first in range(len(text) - length + 1):
        run = text[first : first + length]
        if run in seen:
            return first, first + length
        seen.add(run)
    return None


def _longest_word(text: str) -> Place | None:
    longest = max(_WORD.finditer(text), key=lambda word: len(word[0]), default=None)
    return (longest.start(), min(longest.end(), longest.start() + 60)) if longest else None


def _most_of(pattern: str) -> Callable[[str], Place | None]:
    """Finds the stretch of 60 characters with most matches of a pattern."""
    compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)

    def find(text: str) -> Place | None:
        dense = Counter(match.start() // 60 for match in compiled.finditer(text))
        block = min(dense, key=lambda number: (-dense[number], number), default=None)
        return (60 * block, 60 * block + 60) if block is not None else None

    return find


def _short_lines(text: str) -> Place | None:
    """The first five lines in a row that are short."""
    at, run, begin = 0, 0, 0
    for line in text.split("\n"):
        begin = at if run == 0 else begin
        run = run + 1 if 0 < len(line.strip()) <= SHORT_LINE_CHARACTERS else 0
        at += len(line) + 1
        if run == SHORT_LINES:
            return begin, at - 1
    return None


#: These are not broken in one place, whatever words are in their names.
OF_THE_WHOLE = frozenset(
    {"exact_duplicate", "near_duplicate", "fineweb.line_punctuation", "fineweb.newlines"}
)

#: (part of a reason, where it is broken); the first that finds something counts.
_FINDERS: tuple[tuple[str, Callable[[str], Place | None]], ...] = (
    ("bullet", _most_of(r"^\s*[\u2022\-*]")),
    ("ellips", _most_of(r"\.\.\.|\u2026")),
    ("short_line", _short_lines),
    ("line", _repeated_line),
    ("paragraph", _repeated_line),
    ("dup", _repeated_words),
    ("repe", _repeated_words),
    ("gram", _repeated_words),
    ("long_word", _longest_word),
    ("word_length", _longest_word),
    ("javascript", _most_of("javascript")),
    ("lorem", _most_of("lorem ipsum")),
    ("curly", _most_of("[{}]")),
    ("policy", _most_of("cookie|terms of use|privacy")),
    ("broken", _most_of("\ufffd")),
    ("symbol", _most_of(r"[^\w\s]")),
    ("hash", _most_of("#")),
)


class Examples(Generic[T]):
    """Keeps a few documents of each reason: those with the smallest ids, so in any order the same ones."""

    def __init__(self, per_reason: int = EXAMPLES_PER_REASON) -> None:
        self.per_reason = per_reason
        self._held: dict[tuple[str, str], dict[str, T]] = {}

    def wants(self, step: str, reason: str, doc_id: str) -> bool:
        """Whether `add` would keep it: previews need not be made of texts that nobody will see."""
        held = self._held.get((step, reason), {})
        return len(held) < self.per_reason or doc_id < max(held)

    def add(self, step: str, reason: str, doc_id: str, shown: T) -> None:
        """Offer one; ids are hashes, so the smallest are a fair sample. Of one id the first stays."""
        held = self._held.setdefault((step, reason), {})
        held.setdefault(doc_id, shown)
        if len(held) > self.per_reason:
            del held[max(held)]

    def merge(self, other: Examples[T]) -> None:
        """Take those of another shard."""
        self.merge_rows(other.as_rows())

    def as_rows(self) -> list[tuple[str, str, str, T]]:
        """(step, reason, id, what is shown) of all, for `merge_rows`."""
        return [(*key, doc_id, shown) for key, held in self._held.items() for doc_id, shown in held.items()]

    def merge_rows(self, rows: Iterable[tuple[str, str, str, T]]) -> None:
        """Take what `as_rows` gave."""
        for row in rows:
            self.add(*row)

    def of(self, step: str, reason: str) -> list[tuple[str, T]]:
        """(id, what is shown) of those kept, in the order of their ids."""
        return heapq.nsmallest(
            self.per_reason, self._held.get((step, reason), {}).items(), key=lambda item: item[0]
        )
