"""The last pass over a shard: what stays becomes a file of the documents part, all else is recorded."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_contracts import DOCUMENTS
from data_contracts.tables import PartWriter, part_files
from stages.corpus_prep.decontamination import ContaminationIndex, Overlap
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.preparation import REJECTS_NAME
from stages.corpus_prep.selection import DUPLICATE, LOW_QUALITY, OVER_LIMIT, SPLIT_NAMES
from stages.corpus_prep.survey import DecidedBatch, Row, decided, read_leaks
from stages.runtime.shard_map import Shard

DOCUMENTS_FOLDER = "documents"


@dataclass(frozen=True)
class WriteTask:
    """A shard, what was decided, and what must stay out of the documents.

    leaks: what `find_leaks` found in it. questions: a JSON object of the user's own questions (`own`: pairs
    of name and text) and of the held-out documents that there is a question about (`asked`: their ids).
    """

    texts: Path
    measures: Path
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

    def count(self, documents: pa.RecordBatch, splits: NDArray[np.uint8]) -> None:
        """Count documents that stay."""
        sizes = documents.column("num_bytes").to_pylist()
        for split, size in zip(splits.tolist(), sizes, strict=True):
            self.split_documents[SPLIT_NAMES[split]] += 1
            self.split_bytes[SPLIT_NAMES[split]] += size
        for name, counts, byte_counts in (
            ("language", self.languages, self.language_bytes),
            ("source", self.sources, self.source_bytes),
        ):
            for value, size in zip(documents.column(name).to_pylist(), sizes, strict=True):
                counts[value] += 1
                byte_counts[value] += size

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
    return _ShardWriter(task, folder).run()


class _ShardWriter:
    def __init__(self, task: WriteTask, folder: Path) -> None:
        questions = json.loads(task.questions.read_text(encoding="utf-8"))
        own = ContaminationIndex([tuple(item) for item in questions["own"]])
        self.task = task
        self.contamination = Contamination(own, read_leaks(task.leaks), frozenset(questions["asked"]))
        self.funnel, self.written = Funnel(folder / REJECTS_NAME), Written()
        self.folder = folder
        with pq.ParquetFile(task.measures) as file:
            judged = file.read(columns=["reason", "detail"])
        self.reasons, self.details = judged.column("reason"), judged.column("detail")

    def run(self) -> dict[str, Any]:
        with PartWriter(self.folder / DOCUMENTS_FOLDER, DOCUMENTS) as writer:
            for batch in decided(self.task.texts, self.task.decision):
                stays = self._what_stays(batch)
                documents, splits = batch.texts.filter(pa.array(stays)), batch.splits[stays]
                if documents.num_rows:
                    names = pa.array(SPLIT_NAMES).take(pa.array(splits))
                    writer.write_table(documents.append_column("split", names))
                    self.written.count(documents, splits)
        self.funnel.close()
        return {"written": vars(self.written), "funnel": self.funnel.counts()}

    def _what_stays(self, batch: DecidedBatch) -> NDArray[np.bool_]:
        """bool [documents]; the others are recorded, step by step."""
        sizes = batch.texts.column("num_bytes").to_numpy()
        left = np.ones(len(sizes), bool)
        for step, verdict in (("quality", LOW_QUALITY), ("deduplicated", DUPLICATE)):
            out = batch.verdicts == verdict
            for place, row in batch.rows(out):
                self._drop(step, *self._why(verdict, batch.start + place), row)
            left &= ~out
            self.funnel.passed(step, int(sizes[left].sum()), documents=int(left.sum()))
        out = batch.verdicts == OVER_LIMIT
        self.funnel.left_out("size_limit", int(sizes[out].sum()), int(out.sum()))
        left &= ~out
        self.funnel.passed("size_limit", int(sizes[left].sum()), documents=int(left.sum()))
        for place, row in batch.rows(left):
            overlap = self.contamination.find(row["doc_id"], row["text"])
            if overlap is not None:
                self._drop("decontaminated", "benchmark_overlap", f"{overlap.item}: {overlap.detail}", row)
                self.written.contaminated.append(row["doc_id"])
                left[place] = False
        self.funnel.passed("decontaminated", int(sizes[left].sum()), documents=int(left.sum()))
        return left

    def _why(self, verdict: int, position: int) -> tuple[str, str]:
        """(reason, detail) of a document that does not stay."""
        if verdict == DUPLICATE:
            return "exact_duplicate", "of the same doc_id"
        return self.reasons[position].as_py(), self.details[position].as_py()

    def _drop(self, step: str, reason: str, detail: str, row: Row) -> None:
        about = {name: row[name] for name in ("doc_id", "source", "title", "num_bytes")}
        self.funnel.dropped(step, reason, row["text"], detail, **about)


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
