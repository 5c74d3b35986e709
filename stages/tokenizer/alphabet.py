"""Which characters get a piece of their own; the others are spelled in bytes.

SentencePiece has one coverage for all of the text and refuses one below 0.98, which a small vocabulary over
Chinese text needs. So we choose the alphabet, by script where that is wished: Chinese has thousands of
characters that occur a few times each, an alphabet has none to spare.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

BATCH_CHARACTERS = 1 << 20
NUM_CODE_POINTS = 0x110000
_SCRIPT_OF_WORD = {"CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana", "FULLWIDTH": "Common"}


@dataclass(frozen=True)
class Coverage:
    """Share of the characters of a text that shall have a piece of their own."""

    default: float = 0.9995
    of_script: Mapping[str, float] = field(default_factory=dict)
    """Script, as `script_of` names it -> the share of its characters instead."""


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs in `texts`, some of which are in memory at a time."""
    totals = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
    for batch in _batches(texts):
        points = np.frombuffer(batch.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        counts = np.bincount(points)
        totals[: len(counts)] += counts
    return Counter({chr(point): int(totals[point]) for point in np.flatnonzero(totals)})


def _batches(texts: Iterable[str]) -> Iterator[str]:
    """`texts` joined, in parts of about BATCH_CHARACTERS; ASCII apart, since it needs a small table only."""
    waiting: dict[bool, list[str]] = {True: [], False: []}
    sizes = {True: 0, False: 0}
    for text in texts:
        kind = text.isascii()
        waiting[kind].append(text)
        sizes[kind] += len(text)
        if sizes[kind] >= BATCH_CHARACTERS:
            yield "".join(waiting[kind])
            waiting[kind], sizes[kind] = [], 0
    yield from map("".join, waiting.values())


def rare_characters(counts: Mapping[str, int], max_characters: int, coverage: Coverage) -> frozenset[str]:
    """Characters without a piece: the rarest, beyond the coverage of their script or `max_characters`.

    ASCII always has pieces.
    """
    totals: Counter[str] = Counter()
    for character, count in counts.items():
        totals[_stratum(character, coverage)] += count
    covered: Counter[str] = Counter()
    kept, rare = 0, set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        stratum = _stratum(character, coverage)
        wanted = coverage.of_script.get(stratum, coverage.default) * totals[stratum]
        if character.isascii() or (kept < max_characters and covered[stratum] < wanted):
            covered[stratum], kept = covered[stratum] + count, kept + 1
        else:
            rare.add(character)
    return frozenset(rare)


def _stratum(character: str, coverage: Coverage) -> str:
    """The script, if it has a coverage of its own; all others are counted together."""
    script = script_of(character) if coverage.of_script else ""
    return script if script in coverage.of_script else ""


@lru_cache(maxsize=1 << 17)
def script_of(character: str) -> str:
    """Han, Latin, Cyrillic, Arabic, Hiragana, Hangul ... for letters, by their Unicode name; else Common.

    The name's first word stands for the script: Python knows no others, and for letters the two agree.
    """
    if not unicodedata.category(character).startswith(("L", "M", "Nl")):
        return "Common"
    first = unicodedata.name(character, "Common").split()[0]
    return _SCRIPT_OF_WORD.get(first, first.capitalize())


def scripts_of(text: Iterable[str]) -> set[str]:
    """The scripts of the letters in `text`."""
    return {script_of(character) for character in text} - {"Common"}
