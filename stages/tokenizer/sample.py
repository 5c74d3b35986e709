"""A byte budget of text to learn the vocabulary from: stratified, and the same on every machine.

A stratum is one language of one source. Half of the budget is shared out equally, half by size, so that a
small language is heard and a large one leads. Within a stratum documents come in the order of a hash of their
id, which neither depends on the order of the files nor on a random generator.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_contracts.tables import part_files, read_rows

ConversationAsText = Callable[[Mapping[str, Any]], str]
"""Turns the messages and tools of a conversation's row into the text that the vocabulary learns from."""


@dataclass(frozen=True)
class Candidate:
    """A document that may enter the sample: its place in the drawing and what it would cost."""

    order: bytes
    doc_id: str
    num_bytes: int

    def __lt__(self, other: Candidate) -> bool:
        """Whether it is drawn later: the first of a heap is the one to give up."""
        return (self.order, self.doc_id) > (other.order, other.doc_id)


class Draw:
    """Candidates in their order until a quota of bytes is spent; no others are held."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self._held: list[Candidate] = []
        self._num_bytes = 0

    def offer(self, key: str, num_bytes: int) -> None:
        """Let one take part."""
        heapq.heappush(self._held, Candidate(_order(key), key, num_bytes))
        self._num_bytes += num_bytes
        while self._held and self._num_bytes - self._held[0].num_bytes >= self.quota:
            self._num_bytes -= heapq.heappop(self._held).num_bytes

    def taken(self) -> dict[str, int]:
        """Id -> how many of its bytes may be used; the last one may go over the quota."""
        left, taken = self.quota, {}
        for candidate in sorted(self._held, reverse=True):
            taken[candidate.doc_id] = min(candidate.num_bytes, left)
            left -= candidate.num_bytes
        return taken


def allocate(totals: Mapping[Hashable, int], budget: int) -> dict[Hashable, int]:
    """Bytes for each stratum: an equal share of half the budget (or all it has), the rest by what is left."""
    if sum(totals.values()) <= budget:
        return dict(totals)
    equal = budget // (2 * len(totals))
    floors = {key: min(total, equal) for key, total in totals.items()}
    left_over, left_in = budget - sum(floors.values()), sum(totals.values()) - sum(floors.values())
    return {key: floors[key] + (totals[key] - floors[key]) * left_over // left_in for key in totals}


def count_splits(documents: Path) -> Counter[str]:
    """Split -> documents in it."""
    counts: Counter[str] = Counter()
    for path in part_files(documents):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["split"]):
                counted = batch.column(0).value_counts().to_pylist()
                counts.update({row["values"]: row["counts"] for row in counted})
    return counts


def choose_documents(documents: Path, budget: int, max_document_bytes: int) -> dict[str, int]:
    """Ids of the training documents in the sample -> how many of their bytes may be used.

    Read twice, so that memory depends on the budget and not on the corpus.
    """
    totals: Counter[Hashable] = Counter()
    for stratum, _, cost in _training_documents(documents, max_document_bytes):
        totals[stratum] += cost
    draws = {stratum: Draw(quota) for stratum, quota in allocate(totals, budget).items()}
    for stratum, doc_id, cost in _training_documents(documents, max_document_bytes):
        draws[stratum].offer(doc_id, cost)
    return {doc_id: size for draw in draws.values() for doc_id, size in draw.taken().items()}


def _training_documents(documents: Path, max_document_bytes: int) -> Iterator[tuple[Hashable, str, int]]:
    """(stratum, id, bytes that it would cost)."""
    for row in read_rows(documents, ["doc_id", "source", "language", "split", "num_bytes"]):
        if row["split"] == "train":
            cost = min(int(row["num_bytes"]), max_document_bytes)
            yield (row["language"], row["source"]), row["doc_id"], cost


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
    draw = Draw(budget)
    for row in read_rows(conversations, ["conversation_id", "split", "tools", "messages"]):
        if row["split"] == "train":
            draw.offer(row["conversation_id"], len(as_text(row).encode()))
    return frozenset(draw.taken())


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
