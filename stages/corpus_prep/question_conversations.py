"""Questions about documents that are answered without a tool, and small talk.

The answer is the document's first sentence, or the signature where that is asked for. Questions never use the
words that ask for a tool (see phrasings.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from stages.corpus_prep.entries import Entry
from stages.corpus_prep.phrasings import (
    SIGNATURE,
    SMALL_TALK,
    WHAT_DOES_IT_DO,
    WHAT_IS_IT,
    WHAT_IS_IT_AR,
    WHAT_IS_IT_ZH,
)
from stages.whitebox.arithmetic_requests import PREFIXES, Phrasings

SMALL_TALK_ROUNDS = 8
SIGNATURE_SHARE = 0.25
MIN_SIGNATURE_CHARACTERS = 4


@dataclass(frozen=True)
class Exchange:
    """One question with its answer, and the document that it is about (None for small talk)."""

    question: str
    answer: str
    entry: Entry | None


def question_exchanges(
    entries: Sequence[Entry], number: int, seed: int, reserved: AbstractSet[str]
) -> Iterator[Exchange]:
    """`number` questions, or fewer where the documents run out: one each, then second ones.

    reserved: titles that only scenarios ask about.
    """
    rng = random.Random(f"{seed}/questions")
    free = [entry for entry in entries if entry.title not in reserved]
    count = 0
    seen: set[str] = set()
    for entry in [*free, *free]:
        if count >= number:
            return
        exchange = _exchange(entry, rng)
        if exchange.question not in seen:
            seen.add(exchange.question)
            count += 1
            yield exchange


def _exchange(entry: Entry, rng: random.Random) -> Exchange:
    has_parameters = "(" in entry.signature and len(entry.signature) >= MIN_SIGNATURE_CHARACTERS
    if entry.is_code and has_parameters and rng.random() < SIGNATURE_SHARE:
        return Exchange(_asked(SIGNATURE, entry, rng), entry.signature, entry)
    return Exchange(_asked(phrasings_for(entry), entry, rng), entry.sentence, entry)


def phrasings_for(entry: Entry) -> Phrasings:
    """How to ask what the document is about, in its own language."""
    if entry.is_code:
        return WHAT_DOES_IT_DO
    return {"zh": WHAT_IS_IT_ZH, "ar": WHAT_IS_IT_AR}.get(entry.language, WHAT_IS_IT)


def _asked(phrasings: Phrasings, entry: Entry, rng: random.Random) -> str:
    prefix = rng.choice(PREFIXES) if entry.language not in ("zh", "ar") else ""
    return prefix + rng.choice(phrasings.seen).format(title=entry.title)


def small_talk() -> Iterator[Exchange]:
    """Greetings and the like with several prefixes: there are few. The last request is for scenarios."""
    for requests, answer in SMALL_TALK:
        for request in requests[:-1]:
            for prefix in sorted(set(PREFIXES))[:SMALL_TALK_ROUNDS]:
                yield Exchange(prefix + request, answer, None)
