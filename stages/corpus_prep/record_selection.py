"""Which of the user's conversations and pairs stay, and which of them share a side of the split.

Equal records and near-duplicates go, by the rules and the machinery of the documents (`duplicates/`): of two
the one stays whose source comes first, then the one of smaller key. What differs:

- Digits count: the numbers are often all that tells one question from another, while the signature of
  documents takes every number for the same.
- System prompts and tools do not count, and near-duplicates must have answers that are alike by themselves:
  long instructions that thousands share would make duplicates of all their questions.
- Of a pair both answers count: one prompt and one chosen answer may well stand against several rejected ones.

Conversations are compared with conversations, and pairs with pairs: a prompt may be in both parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.clusters import connected_components, rank_documents
from stages.corpus_prep.duplicates.deduplication import KEPT, Decisions, Deduplicator
from stages.corpus_prep.duplicates.near_duplicates import NearDuplicateReport, NearDuplicateSettings
from stages.corpus_prep.duplicates.verification import Edges, FetchWords, exact_similarities
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.held_records import Held, HeldRecord, Records
from stages.corpus_prep.measuring.measures import measure, word_hashes
from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import PreferencePair
from stages.corpus_prep.record_rows import prompt_id, record_id
from stages.corpus_prep.sampling import split_of
from stages.corpus_prep.screening.screen_records import Talk, message_text, record_text

RECORDS_PER_BATCH = 1024
ANSWERS_ALIKE = 0.5
"""How much of the similarity that is asked for the answers must have by themselves."""
RUNES = "\u16a0\u16a2\u16a6\u16a8\u16b1\u16b2\u16b7\u16b9\u16ba\u16be"
"""Letters that stand for the digits 0 to 9: words of letters are taken as they are."""
_DIGIT = re.compile(r"\d")


class Item(NamedTuple):
    """A record with its source and its key."""

    source: str
    key: str
    held: HeldRecord


@dataclass
class ChosenRecords:
    """Records that stay, and the side of the split that each belongs to."""

    records: Records
    groups: dict[str, str] = field(default_factory=dict)
    """Key of a record -> the id whose hash decides on the split: near-duplicates share it, and so do pairs of
    one prompt."""
    train_only: set[str] = field(default_factory=set)
    """Groups that are too large to be held out, see `clusters.TRAIN_ONLY`."""
    reports: list[NearDuplicateReport] = field(default_factory=list)

    def split_of(self, key: str, validation_fraction: float) -> str:
        """`train` or `validation`."""
        group = self.groups[key]
        return "train" if group in self.train_only else split_of(group, validation_fraction)


def choose_records(records: Records, similarity: float, funnel: Funnel, folder: Path) -> ChosenRecords:
    """Leave out copies and near-duplicates, and write them down in the funnel.

    similarity: Jaccard similarity of word 5-grams from which one of two records goes; 0 keeps all but copies.
    folder: for work files.
    """
    chosen = ChosenRecords(Records(records.max_conversations, records.max_preferences))
    for held in (records.conversations, records.preferences):
        items = _without_copies(held, funnel)
        if items:
            _Choosing(items, chosen, funnel).run(similarity, folder)
    return chosen


def _without_copies(held: Held, funnel: Funnel) -> list[Item]:
    """Each record once, in the order of the sources; the others are recorded as dropped."""
    first: dict[str, Item] = {}
    for source, sample in held.items():
        for key, item in sample.items():
            keeper = first.setdefault(key, Item(source, key, item))
            copies = item.copies if keeper.held is item else item.copies + 1
            same_as = f"of {record_id(keeper.held.record)}"
            for _ in range(copies):
                drop(funnel, Item(source, key, item), "exact_duplicate", same_as)
    return list(first.values())


def drop(funnel: Funnel, item: Item, reason: str, detail: str) -> None:
    """Record that a record of the user's does not stay."""
    source, _, held = item
    text = record_text(held.record)
    about = {"doc_id": record_id(held.record), "source": source, "title": "", "num_bytes": len(text.encode())}
    lineage = {"licence": held.licence, "origin": held.origin}
    funnel.dropped("records", reason, text, detail, **about, **lineage)


class _Choosing:
    def __init__(self, items: Sequence[Item], chosen: ChosenRecords, funnel: Funnel) -> None:
        self.items, self.chosen, self.funnel = items, chosen, funnel

    def run(self, similarity: float, folder: Path) -> None:
        count = len(self.items)
        stays, train_only = np.ones(count, bool), np.zeros(count, bool)
        first, second = self._prompts()
        if similarity:
            decisions = self._near_duplicates(similarity, folder)
            self._record_dropped(decisions)
            stays, train_only = decisions.verdict == KEPT, decisions.train_only
            first = np.concatenate((first, np.arange(count)))
            second = np.concatenate((second, decisions.representative))
        self._take(stays, connected_components(count, first, second), train_only)

    def _near_duplicates(self, similarity: float, folder: Path) -> Decisions:
        dedup = Deduplicator(folder, NearDuplicateSettings(threshold=similarity))
        everyone = np.arange(len(self.items))
        for texts in self._texts(everyone, compared_text):
            measured = measure(texts)
            dedup.add(measured.column("text_hash"), measured.column("signature"))
        order = {source: place for place, source in enumerate(dict.fromkeys(i.source for i in self.items))}
        priority = np.array([order[item.source] for item in self.items])
        rank = rank_documents(np.zeros(len(everyone)), priority, [item.key for item in self.items])
        answers = folder / "answers.bin"

        def answers_alike(edges: Edges) -> Edges:
            pairs = edges.first.astype(np.uint64) << np.uint64(32) | edges.second
            found = exact_similarities(pairs, self._words_of(answers_text), answers)
            alike = found >= ANSWERS_ALIKE * similarity
            return Edges(edges.first[alike], edges.second[alike], edges.similarity[alike])

        decisions, report = dedup.decide(rank, self._words_of(compared_text), answers_alike)
        dedup.near.remove()
        self.chosen.reports.append(report)
        return decisions

    def _texts(
        self, numbers: NDArray[np.int64], text_of: Callable[[Talk], str]
    ) -> Iterator[pa.LargeStringArray]:
        for begin in range(0, len(numbers), RECORDS_PER_BATCH):
            batch = numbers[begin : begin + RECORDS_PER_BATCH].tolist()
            yield pa.array([text_of(self.items[n].held.record) for n in batch], pa.large_string())

    def _words_of(self, text_of: Callable[[Talk], str]) -> FetchWords:
        return lambda numbers: map(word_hashes, self._texts(numbers, text_of))

    def _record_dropped(self, decisions: Decisions) -> None:
        for number in np.flatnonzero(decisions.verdict != KEPT).tolist():
            keeper = record_id(self.items[int(decisions.keeper[number])].held.record)
            alike = f"{decisions.similarity[number]:.2f} like {keeper}"
            drop(self.funnel, self.items[number], "near_duplicate", alike)

    def _prompts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each record, and the first one with the same prompt."""
        first: dict[str, int] = {}
        names = [_own_group(item) for item in self.items]
        same = [first.setdefault(name, number) for number, name in enumerate(names)]
        return np.arange(len(names)), np.array(same, np.int64)

    def _take(
        self, stays: NDArray[np.bool_], labels: NDArray[np.int64], train_only: NDArray[np.bool_]
    ) -> None:
        names: dict[int, str] = {}
        for label, item in zip(labels.tolist(), self.items, strict=True):
            names[label] = min(names.get(label, _own_group(item)), _own_group(item))
        self.chosen.train_only |= {names[label] for label in labels[train_only].tolist()}
        for number, item in enumerate(self.items):
            if stays[number]:
                self.chosen.groups[item.key] = names[int(labels[number])]
                self.chosen.records.add(item.source, item.key, item.held)


def _own_group(item: Item) -> str:
    record = item.held.record
    return prompt_id(record) if isinstance(record, PreferencePair) else item.key


def compared_text(record: Talk) -> str:
    """What near-duplicates are told by: all that is said but for system prompts."""
    is_pair = isinstance(record, PreferencePair)
    said = (*record.prompt, *record.answers) if is_pair else record.messages
    return _joined(message for message in said if message.role != "system")


def answers_text(record: Talk) -> str:
    """What is learned of a record: all turns of the assistant, of a pair the two answers."""
    if isinstance(record, PreferencePair):
        return _joined(record.answers)
    return _joined(message for message in record.messages if message.role == "assistant")


def _joined(messages: Iterable[Message]) -> str:
    """Letters stand in place of digits."""
    said = "\n\n".join(filter(None, map(message_text, messages)))
    return _DIGIT.sub(lambda digit: RUNES[int(digit[0])], said)
