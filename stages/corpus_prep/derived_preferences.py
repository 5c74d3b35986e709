"""Preference pairs where the user gives none: the right answer against four kinds of wrong ones.

wrong_answer   the answer to another question, of the same source where possible
truncated      the answer broken off in the middle
garbled        the words of the answer in another order
repeating      the answer, or more than half of it, and then a few words of it again and again

Truncated answers alone would teach that it is always too early to end, repeating ones alone that it is always
high time: each kind holds the other back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KINDS = ("wrong_answer", "truncated", "garbled", "repeating")
MIN_PIECES = 5


@dataclass(frozen=True)
class Answered:
    """A conversation's id, its source and its last answer, which is the right one."""

    key: str
    source: str
    answer: str


@dataclass(frozen=True)
class DerivedPair:
    """A question with a right and a wrong answer; `kind` says how it is wrong."""

    of: Answered
    kind: str
    rejected: str


def derive_pairs(answered: Sequence[Answered], number: int, seed: int) -> Iterator[DerivedPair]:
    """At most `number` pairs, the kinds in turn; answers that are too short to be spoilt are left out."""
    rng = random.Random(f"{seed}/preferences")
    usable = [item for item in answered if len(pieces(item.answer)) >= MIN_PIECES]
    by_source: dict[str, list[Answered]] = {}
    for item in usable:
        by_source.setdefault(item.source, []).append(item)
    count = 0
    for round_number in range(len(KINDS)):
        for index, item in enumerate(usable):
            if count >= number:
                return
            kind = KINDS[(index + round_number) % len(KINDS)]
            rejected = _spoil(kind, item, by_source[item.source], usable, rng)
            if rejected and rejected != item.answer:
                count += 1
                yield DerivedPair(item, kind, rejected)


def pieces(text: str) -> list[str]:
    """Words with the space after them, or characters where the language writes no spaces."""
    words = text.split(" ")
    if len(words) >= MIN_PIECES or text.isascii():
        return [word + " " for word in words[:-1]] + words[-1:]
    return list(text)


def _spoil(
    kind: str,
    item: Answered,
    neighbours: Sequence[Answered],
    everybody: Sequence[Answered],
    rng: random.Random,
) -> str:
    if kind == "wrong_answer":
        pool = neighbours if len(neighbours) > 1 else everybody
        candidates = [rng.choice(pool).answer for _ in range(5)]
        return next((answer for answer in candidates if answer != item.answer), "")
    parts = pieces(item.answer)
    if kind == "truncated":
        return "".join(parts[: max(2, int(len(parts) * rng.uniform(0.3, 0.6)))]).rstrip(" ,;:.")
    if kind == "repeating":
        return _repeating(parts, rng)
    shuffled = parts[:]
    rng.shuffle(shuffled)
    return _joined(shuffled)


def _repeating(parts: Sequence[str], rng: random.Random) -> str:
    """Ends with 1 to 4 of its pieces in a loop, and is half as long again as the answer, or a little more."""
    end = rng.randint(len(parts) // 2 + 1, len(parts))
    loop = parts[max(0, end - rng.randint(1, MIN_PIECES - 1)) : end]
    missing = len(parts) + len(parts) // 2 - end
    return _joined([*parts[:end], *loop * math.ceil(missing / len(loop))])


def _joined(parts: Sequence[str]) -> str:
    return "".join(part if part.endswith(" ") or len(part) == 1 else part + " " for part in parts).strip()
