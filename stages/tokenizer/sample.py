"""A byte budget of text to learn the vocabulary from: stratified, and the same on every machine.

A stratum is one language of one source. Half of the budget is shared out equally, half by size, so that a
small language is heard and a large one leads. Within a stratum documents come in the order of a hash of their
id, which neither depends on the order of the files nor on a random generator.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_contracts.tables import read_rows

ConversationAsText = Callable[[Mapping[str, Any]], str]
"""Turns the messages and tools of a conversation's row into the text that the vocabulary learns from."""


@dataclass(frozen=True)
class Candidate:
    """A document that may enter the sample: its place in the drawing and what it would cost."""

    order: bytes
    doc_id: str
    num_bytes: int


def allocate(totals: Mapping[Hashable, int], budget: int) -> dict[Hashable, int]:
    """Bytes for each stratum: an equal share of half the budget (or all it has), the rest by what is left."""
    if sum(totals.values()) <= budget:
        return dict(totals)
    equal = budget // (2 * len(totals))
    floors = {key: min(total, equal) for key, total in totals.items()}
    left_over, left_in = budget - sum(floors.values()), sum(totals.values()) - sum(floors.values())
    return {key: floors[key] + (totals[key] - floors[key]) * left_over // left_in for key in totals}


def choose_documents(documents: Path, budget: int, max_document_bytes: int) -> dict[str, int]:
    """Ids of the training documents in the sample -> how many of their bytes may be used."""
    strata: dict[Hashable, list[Candidate]] = defaultdict(list)
    columns = ["doc_id", "source", "language", "split", "num_bytes"]
    for row in read_rows(documents, columns):
        if row["split"] == "train":
            cost = min(int(row["num_bytes"]), max_document_bytes)
            strata[row["language"], row["source"]].append(
                Candidate(_order(row["doc_id"]), row["doc_id"], cost)
            )
    quotas = allocate({key: sum(c.num_bytes for c in members) for key, members in strata.items()}, budget)
    chosen: dict[str, int] = {}
    for key, members in strata.items():
        chosen |= _take(members, quotas[key])
    return chosen


def _take(members: list[Candidate], quota: int) -> dict[str, int]:
    taken: dict[str, int] = {}
    for candidate in sorted(members, key=lambda c: (c.order, c.doc_id)):
        if quota <= 0:
            break
        taken[candidate.doc_id] = min(candidate.num_bytes, quota)
        quota -= candidate.num_bytes
    return taken


def _order(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def sampled_documents(documents: Path, chosen: Mapping[str, int]) -> Iterator[str]:
    """Texts of the chosen documents, cut to their share, in the order of the table."""
    for row in read_rows(documents, ["doc_id", "text"]):
        if row["doc_id"] in chosen:
            yield cut_bytes(row["text"], chosen[row["doc_id"]])


def cut_bytes(text: str, max_bytes: int) -> str:
    """The longest beginning of `text` with at most `max_bytes` bytes of UTF-8."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def choose_conversations(conversations: Path, budget: int, as_text: ConversationAsText) -> frozenset[str]:
    """Ids of training conversations, drawn by hash until the budget is spent."""
    candidates = [
        Candidate(_order(row["conversation_id"]), row["conversation_id"], len(as_text(row).encode()))
        for row in read_rows(conversations, ["conversation_id", "split", "tools", "messages"])
        if row["split"] == "train"
    ]
    return frozenset(_take(candidates, budget))


def sampled_conversations(
    conversations: Path, chosen: frozenset[str], as_text: ConversationAsText
) -> Iterator[str]:
    """Texts of the chosen conversations in the order of the table."""
    for row in read_rows(conversations, ["conversation_id", "tools", "messages"]):
        if row["conversation_id"] in chosen:
            yield as_text(row)


@dataclass(frozen=True)
class Sample:
    """The chosen texts, read from the tables anew each time they are asked for: none stays in memory."""

    documents: Path
    chosen: Mapping[str, int]
    conversations: Path
    drawn: frozenset[str]
    as_text: ConversationAsText

    def __iter__(self) -> Iterator[str]:
        """Texts of the documents, then of the conversations."""
        yield from sampled_documents(self.documents, self.chosen)
        yield from sampled_conversations(self.conversations, self.drawn, self.as_text)
