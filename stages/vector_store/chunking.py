"""Cut documents into chunks with exact offsets.

Every chunk is `document.text[char_start:char_end]`, character for character, so a hit can be shown in its
place. Chunks end at headings where they can, else at line or sentence ends; a chunk repeats the last whole
sentences of the one before it, so that no thought is lost at a border. Together they hold every character
that is not a space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import NamedTuple, Protocol

from stages.vector_store.headings import Section, split_sections

# The end of a sentence: a full stop with a space behind it, or a Chinese one, which needs none.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*[ \t]+|(?<=[。！？；])[”’」』）]*")
_CHARS_PER_TOKEN_LIMIT = 8
"""Units are pre-cut to max_tokens times this, so that a line of megabytes never reaches the tokenizer
whole."""


class Encoder(Protocol):
    """What chunking needs of a tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""


class Span(NamedTuple):
    """`text[start:end]`, how many tokens it has, and the headings above it."""

    start: int
    end: int
    num_tokens: int
    heading_path: tuple[str, ...]


class _Unit(NamedTuple):
    """The smallest piece that chunking moves: a sentence, a line, or a part of an over-long one."""

    start: int
    end: int
    num_tokens: int


@dataclass(frozen=True)
class Chunker:
    """Cuts texts into spans of at most `max_tokens`, each repeating at most `overlap_tokens` of the one
    before."""

    encoder: Encoder
    max_tokens: int
    overlap_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_tokens * 2 <= self.max_tokens or self.max_tokens < 16:
            raise ValueError(
                f"max_tokens {self.max_tokens}, overlap_tokens {self.overlap_tokens}: a chunk needs at least "
                "16 tokens, and the overlap may be at most half of it"
            )

    def cut(self, text: str) -> list[Span]:
        """The chunks of `text` in order: within the budget, no gap but spaces; none for a text of spaces."""
        start, end = _strip(text, 0, len(text))
        if start >= end:
            return []
        sections = split_sections(text)
        if end - start <= self.max_tokens * _CHARS_PER_TOKEN_LIMIT:
            num_tokens = self._count([text[start:end]])[0]
            if num_tokens <= self.max_tokens:
                return [Span(start, end, num_tokens, _shared_path(sections))]
        return self._cut_long(text, sections)

    def _cut_long(self, text: str, sections: list[Section]) -> list[Span]:
        spans: list[Span] = []
        group: list[tuple[Section, list[_Unit]]] = []
        for section in sections:
            units = self._units(text, section.start, section.end, self.max_tokens)
            # A heading ends the chunk, unless that would leave a scrap: short sections travel together.
            if group and not self._travel_together(group, units):
                spans += self._pack_group(text, group)
                group = []
            group.append((section, units))
        return spans + self._pack_group(text, group)

    def _travel_together(self, group: list[tuple[Section, list[_Unit]]], units: list[_Unit]) -> bool:
        held = sum(unit.num_tokens for _, some in group for unit in some)
        more = sum(unit.num_tokens for unit in units)
        return held + more <= self.max_tokens and held < self.max_tokens // 2

    def _pack_group(self, text: str, group: list[tuple[Section, list[_Unit]]]) -> list[Span]:
        units = [unit for _, some in group for unit in some]
        return self._pack(text, units, _shared_path([section for section, _ in group]), self.max_tokens)

    def _pack(self, text: str, units: list[_Unit], path: tuple[str, ...], budget: int) -> list[Span]:
        """Greedy: fill a chunk, step back by the overlap, go on."""
        borders: list[tuple[int, int]] = []
        first = 0
        while first < len(units):
            last, held = first, 0
            while last < len(units) and (last == first or held + units[last].num_tokens <= budget):
                held += units[last].num_tokens
                last += 1
            borders.append(_strip(text, units[first].start, units[last - 1].end))
            first = last if last == len(units) else self._step_back(units, first, last, budget)
        return self._measured(text, [b for b in borders if b[0] < b[1]], path, budget)

    def _step_back(self, units: list[_Unit], first: int, last: int, budget: int) -> int:
        """Where the next chunk starts: some units before `last`, if the unit at `last` still fits behind
        them."""
        room = min(self.overlap_tokens, budget - units[last].num_tokens)
        start = last
        while start - 1 > first and units[start - 1].num_tokens <= room:
            start -= 1
            room -= units[start].num_tokens
        return start

    def _measured(
        self, text: str, borders: list[tuple[int, int]], path: tuple[str, ...], budget: int
    ) -> list[Span]:
        """Count each chunk as a whole. Cut off from its neighbours a word can take a token more; if that
        breaks the budget, the chunk is packed again with so much less."""
        spans: list[Span] = []
        counts = self._count([text[start:end] for start, end in borders])
        for (start, end), count in zip(borders, counts, strict=True):
            if count <= self.max_tokens:
                spans.append(Span(start, end, count, path))
            else:
                smaller = budget - (count - self.max_tokens)
                spans += self._pack(text, self._units(text, start, end, smaller), path, smaller)
        return spans

    def _units(self, text: str, start: int, end: int, budget: int) -> list[_Unit]:
        """Lines, split at sentence ends; what is still over the budget is halved until it fits."""
        pieces = []
        for line_start, line_end in _lines(text, start, end):
            for piece in _sentences(text, line_start, line_end):
                pieces += _halved(text, *piece, budget * _CHARS_PER_TOKEN_LIMIT)
        counts = self._count([text[a:b] for a, b in pieces])
        units: list[_Unit] = []
        for (a, b), count in zip(pieces, counts, strict=True):
            units += (
                [_Unit(a, b, count)] if count <= budget or b - a == 1 else self._split(text, a, b, budget)
            )
        return units

    def _split(self, text: str, start: int, end: int, budget: int) -> list[_Unit]:
        halves = _halved(text, start, end, (end - start + 1) // 2)
        return [unit for a, b in halves for unit in self._unit_or_split(text, a, b, budget)]

    def _unit_or_split(self, text: str, start: int, end: int, budget: int) -> list[_Unit]:
        count = self._count([text[start:end]])[0]
        if count <= budget or end - start == 1:
            return [_Unit(start, end, count)]
        return self._split(text, start, end, budget)

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.encoder.encode_batch(texts)]


def sentences(text: str) -> list[tuple[int, int]]:
    """Borders of the sentences of `text`; a line end is one too. Without a gap, spaces included."""
    return [piece for line in _lines(text, 0, len(text)) for piece in _sentences(text, *line)]


def _lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    borders, position = [], start
    while position < end:
        stop = text.find("\n", position, end) + 1 or end
        borders.append((position, stop))
        position = stop
    return borders


def _sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    cuts = [match.end() for match in _SENTENCE_END.finditer(text, start, end)]
    edges = [start, *(cut for cut in cuts if start < cut < end), end]
    return list(pairwise(edges))


def _halved(text: str, start: int, end: int, max_chars: int) -> list[tuple[int, int]]:
    """Cut into pieces of at most `max_chars`, at spaces near the middle if there are any."""
    if end - start <= max_chars:
        return [(start, end)]
    middle, reach = (start + end) // 2, (end - start) // 6
    space = text.rfind(" ", middle - reach, middle + reach)
    cut = space + 1 if space > start else middle
    return _halved(text, start, cut, max_chars) + _halved(text, cut, end, max_chars)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))


def _shared_path(sections: Sequence[Section]) -> tuple[str, ...]:
    """The headings that all sections stand under; text before the first heading does not count against
    them."""
    paths = [section.heading_path for section in sections if section.heading_path]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return tuple(names[0] for names in shared)
