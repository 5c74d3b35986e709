"""The last pass over a shard: what stays becomes a file of the documents part, all else is recorded."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts import DOCUMENTS
from data_contracts.tables import PartWriter, part_files
from stages.corpus_prep.decontamination import ContaminationIndex, Overlap
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.preparation import REJECTS_NAME
from stages.corpus_prep.selection import DUPLICATE, LOW_QUALITY, OVER_LIMIT
from stages.corpus_prep.survey import Row, decided_rows, read_leaks
from stages.runtime.shard_map import Shard

DOCUMENTS_FOLDER = "documents"


@dataclass(frozen=True)
class WriteTask:
    """A shard, what was decided, and what must stay out of the documents.

    leaks: what `find_leaks` found in it. questions: a JSON object of the user's own questions (`own`: pairs
    of name and text) and of the held-out documents that there is a question about (`asked`: their ids).
    """

    documents: Path
    decision: Path
    leaks: Path
    questions: Path


@dataclass
class Written:
    """What is in the documents part."""

    languages: Counter[str] = field(default_factory=Counter)
    language_bytes: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    source_bytes: Counter[str] = field(default_factory=Counter)
    split_documents: Counter[str] = field(default_factory=Counter)
    split_bytes: Counter[str] = field(default_factory=Counter)
    contaminated: list[str] = field(default_factory=list)

    def count(self, row: Row, split: str) -> None:
        """Count one document."""
        size = row["num_bytes"]
        for counter, name in ((self.languages, row["language"]), (self.sources, row["source"])):
            counter[name] += 1
        self.language_bytes[row["language"]] += size
        self.source_bytes[row["source"]] += size
        self.split_documents[split] += 1
        self.split_bytes[split] += size

    def merge(self, fields: Mapping[str, Any]) -> None:
        """Add what was written of a shard."""
        for name, counts in fields.items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(counts)
            else:
                mine.extend(counts)


@dataclass
class Contamination:
    """What must stay out: the user's questions of all documents, derived ones of training documents.

    derived: doc_id of a training document -> what it gives away, by the doc_id of the held-out document.
    asked: held-out documents that there is a question about.
    """

    own: ContaminationIndex
    derived: Mapping[str, Sequence[Overlap]] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def find(self, doc_id: str, text: str) -> Overlap | None:
        """The question that a document gives away, or None."""
        leaks = (leak for leak in self.derived.get(doc_id, ()) if leak.item in self.asked)
        return next(leaks, None) or self.own.find(text)


def write_questions(own: Sequence[tuple[str, str]], asked: Sequence[str], path: Path) -> None:
    """The file that `WriteTask.questions` names."""
    path.write_text(json.dumps({"own": own, "asked": asked}, ensure_ascii=False), encoding="utf-8")


def write_shard(task: WriteTask, folder: Path) -> dict[str, Any]:
    """Stream a shard into its file of the documents part; what stays out is counted and recorded."""
    questions = json.loads(task.questions.read_text(encoding="utf-8"))
    own = ContaminationIndex([tuple(item) for item in questions["own"]])
    contamination = Contamination(own, read_leaks(task.leaks), frozenset(questions["asked"]))
    funnel, written = Funnel(folder / REJECTS_NAME), Written()
    with PartWriter(folder / DOCUMENTS_FOLDER, DOCUMENTS) as writer:
        for row, verdict, split in decided_rows(task.documents, task.decision):
            reason, detail = row.pop("reason"), row.pop("detail")
            about = {name: row[name] for name in ("doc_id", "source", "title", "num_bytes")}
            if verdict == LOW_QUALITY:
                funnel.dropped("quality", reason, row["text"], detail, **about)
            elif _passes(row, verdict, about, funnel, contamination, written):
                written.count(row, split)
                writer.write({**row, "split": split})
    funnel.close()
    return {"written": vars(written), "funnel": funnel.counts()}


def _passes(
    row: Row,
    verdict: int,
    about: Mapping[str, Any],
    funnel: Funnel,
    contamination: Contamination,
    written: Written,
) -> bool:
    """Whether a good document stays; if it does not, that is recorded."""
    size, text = row["num_bytes"], row["text"]
    funnel.passed("quality", size)
    if verdict == DUPLICATE:
        funnel.dropped("deduplicated", "exact_duplicate", text, "of the same doc_id", **about)
        return False
    funnel.passed("deduplicated", size)
    if verdict == OVER_LIMIT:
        funnel.left_out("size_limit", size)
        return False
    funnel.passed("size_limit", size)
    overlap = contamination.find(row["doc_id"], text)
    if overlap is not None:
        detail = f"{overlap.item}: {overlap.detail}"
        funnel.dropped("decontaminated", "benchmark_overlap", text, detail, **about)
        written.contaminated.append(row["doc_id"])
        return False
    funnel.passed("decontaminated", size)
    return True


def collect(shards: Sequence[Shard], folder: Path, funnel: Funnel) -> Written:
    """Put the shards' files together as the documents part."""
    written = Written()
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        [path] = part_files(shard.folder / DOCUMENTS_FOLDER)
        shutil.copyfile(path, folder / f"part-{number:05d}.parquet")
        funnel.merge(shard.result["funnel"], shard.folder / REJECTS_NAME)
        written.merge(shard.result["written"])
    return written
