"""The second and third pass over the scratch file: what conversations need of it, then the documents part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts import DOCUMENTS
from data_contracts.tables import PartWriter
from stages.corpus_prep.benchmark_questions import Passage
from stages.corpus_prep.cleaning import scratch_rows
from stages.corpus_prep.decontamination import ContaminationIndex, Overlap
from stages.corpus_prep.entries import Entry, EntryBook
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.sampling import Smallest, split_of
from stages.corpus_prep.selection import DUPLICATE, KEPT, OVER_LIMIT, Selection

MAX_PASSAGES = 2000


@dataclass
class Splits:
    """Train or validation by hash of the id; a corpus of a few documents still gets one of each."""

    validation_fraction: float
    override: dict[str, str] = field(default_factory=dict)

    @classmethod
    def choose(cls, doc_ids: Iterable[str], validation_fraction: float) -> Splits:
        """Splits that leave neither side empty (a single document is for training)."""
        splits = cls(validation_fraction)
        counts: Counter[str] = Counter()
        smallest, largest = "g", ""  # ids are hexadecimal
        for doc_id in doc_ids:
            counts[splits.of(doc_id)] += 1
            smallest, largest = min(smallest, doc_id), max(largest, doc_id)
        if counts.total() > 1 and not counts["validation"]:
            splits.override[smallest] = "validation"
        elif counts.total() and not counts["train"]:
            splits.override[largest] = "train"
        return splits

    def of(self, doc_id: str) -> str:
        """Split of a document, and of everything that is made of it."""
        return self.override.get(doc_id) or split_of(doc_id, self.validation_fraction)


def kept_rows(scratch: Path, selection: Selection) -> Iterator[dict[str, Any]]:
    """Rows that are neither duplicates nor over the limit."""
    return (row for row in scratch_rows(scratch) if selection.of(row["position"]) == KEPT)


@dataclass
class Survey:
    """What the second pass collects: entries of titled documents, passages of held-out ones."""

    book: EntryBook = field(default_factory=EntryBook)
    passages: Smallest[Passage] = field(default_factory=lambda: Smallest(MAX_PASSAGES))


def survey(scratch: Path, selection: Selection, splits: Splits) -> Survey:
    """Stream the kept rows once."""
    found = Survey()
    for row in kept_rows(scratch, selection):
        split = splits.of(row["doc_id"])
        found.book.add(row, split)
        if split == "validation" and (passage := _passage(row)) is not None:
            found.passages.add(row["doc_id"], passage)
    return found


_SENTENCES = re.compile(r"[^.!?。！？؟]{12,160}[.!?。！？؟]")


def _passage(row: dict[str, Any]) -> Passage | None:
    """Two sentences that follow each other, from the beginning of a document."""
    sentences = [" ".join(s.split()) for s in _SENTENCES.findall(row["text"][:2000])]
    if len(sentences) < 2:
        return None
    return Passage(row["doc_id"], row["source"], row["language"], sentences[0], sentences[1])


@dataclass
class Written:
    """What is in the documents part."""

    languages: Counter[str] = field(default_factory=Counter)
    language_bytes: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    source_bytes: Counter[str] = field(default_factory=Counter)
    split_documents: Counter[str] = field(default_factory=Counter)
    split_bytes: Counter[str] = field(default_factory=Counter)
    contaminated: set[str] = field(default_factory=set)

    def count(self, row: dict[str, Any], split: str) -> None:
        """Count one document."""
        size = row["num_bytes"]
        for counter, name in ((self.languages, row["language"]), (self.sources, row["source"])):
            counter[name] += 1
        self.language_bytes[row["language"]] += size
        self.source_bytes[row["source"]] += size
        self.split_documents[split] += 1
        self.split_bytes[split] += size


@dataclass
class Contamination:
    """What must stay out: the user's questions of all documents, derived ones of training documents.

    derived: doc_id of a training document -> what it gives away, by the doc_id of the held-out document.
    asked: held-out documents that there is a question about.
    """

    own: ContaminationIndex
    derived: dict[str, list[Overlap]] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def find(self, doc_id: str, text: str) -> Overlap | None:
        """The question that a document gives away, or None."""
        leaks = (leak for leak in self.derived.get(doc_id, ()) if leak.item in self.asked)
        return next(leaks, None) or self.own.find(text)


def find_leaks(
    scratch: Path, selection: Selection, splits: Splits, held_out: Sequence[Entry]
) -> dict[str, list[Overlap]]:
    """Training documents that hold the first sentence of a held-out one: doc_id -> which."""
    index = ContaminationIndex([(entry.doc_id, entry.sentence) for entry in held_out])
    leaks: dict[str, list[Overlap]] = {}
    for row in kept_rows(scratch, selection):
        if splits.of(row["doc_id"]) == "train" and (found := index.find_all(row["text"])):
            leaks[row["doc_id"]] = found
    return leaks


def write_documents(
    scratch: Path,
    selection: Selection,
    splits: Splits,
    contamination: Contamination,
    funnel: Funnel,
    folder: Path,
) -> Written:
    """Stream the scratch file into the documents part; every row that stays out is counted and recorded."""
    written = Written()
    with PartWriter(folder, DOCUMENTS) as writer:
        for row in scratch_rows(scratch):
            verdict, split = selection.of(row.pop("position")), splits.of(row["doc_id"])
            about = {name: row[name] for name in ("doc_id", "source", "title", "num_bytes")}
            if verdict == DUPLICATE:
                funnel.dropped("deduplicated", "exact_duplicate", row["text"], "of the same doc_id", **about)
                continue
            funnel.passed("deduplicated", row["num_bytes"])
            if verdict == OVER_LIMIT:
                funnel.left_out("size_limit", row["num_bytes"])
                continue
            funnel.passed("size_limit", row["num_bytes"])
            if (overlap := contamination.find(row["doc_id"], row["text"])) is not None:
                detail = f"{overlap.item}: {overlap.detail}"
                funnel.dropped("decontaminated", "benchmark_overlap", row["text"], detail, **about)
                written.contaminated.add(row["doc_id"])
                continue
            funnel.passed("decontaminated", row["num_bytes"])
            written.count(row, split)
            writer.write({**row, "split": split})
    return written
