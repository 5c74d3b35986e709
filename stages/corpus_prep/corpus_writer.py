"""The last pass over a shard: what stays becomes a file of the documents part, all else is recorded."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_contracts import DEDUP_INDEX, DOCUMENTS
from data_contracts.tables import PartWriter, part_files
from stages.corpus_prep.decontamination import ContaminationIndex, LeakRules, Overlap
from stages.corpus_prep.filtering import Filters, explain_documents
from stages.corpus_prep.funnel import LINEAGE, Funnel
from stages.corpus_prep.preparation import REJECTS_NAME
from stages.corpus_prep.scores import NOT_SCORES, RowReader, ScoreWriter
from stages.corpus_prep.selection import (
    DUPLICATE,
    KEPT,
    LOW_QUALITY,
    NEAR_DUPLICATE,
    OTHER_LANGUAGE,
    OVER_LIMIT,
    SPLIT_NAMES,
)
from stages.corpus_prep.survey import DecidedBatch, Row, decided, read_leaks
from stages.runtime.shard_map import Shard

DOCUMENTS_FOLDER = "documents"
INDEX_FOLDER = "dedup_index"
SCORES_FOLDER = "document_scores"
#: Step of the funnel -> verdicts that it gives.
DROPPED_BY = {"quality": (LOW_QUALITY, OTHER_LANGUAGE), "deduplicated": (DUPLICATE, NEAR_DUPLICATE)}
STEP_OF = {verdict: step for step, verdicts in DROPPED_BY.items() for verdict in verdicts}
STEP_OF |= {KEPT: "kept", OVER_LIMIT: "size_limit"}
#: Verdict -> the reason, where no filter gave it.
OTHER_REASONS = {DUPLICATE: "exact_duplicate", NEAR_DUPLICATE: "near_duplicate", OVER_LIMIT: "size_limit"}
CONTAMINATED = "benchmark_overlap"


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
    filters: Filters
    switches: tuple[tuple[str, tuple[str, ...]], ...]
    """Source -> filters that it switches."""
    languages: tuple[str, ...]
    run_words: int
    run_characters: int


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

    def find_batch(self, documents: pa.RecordBatch) -> dict[int, Overlap]:
        """Place in the batch -> the question that the document gives away."""
        leaks = self.own.find_batch(documents.column("text"))
        found: dict[int, Overlap] = {}
        for number, overlap in zip(leaks.document.tolist(), self.own.overlaps(leaks), strict=True):
            found.setdefault(number, overlap)
        if self.derived:
            for number, doc_id in enumerate(documents.column("doc_id").to_pylist()):
                derived = (leak for leak in self.derived.get(doc_id, ()) if leak.item in self.asked)
                if (first := next(derived, None)) is not None:
                    found[number] = first
        return found


def write_questions(own: Sequence[tuple[str, str]], asked: Sequence[str], path: Path) -> None:
    """The file that `WriteTask.questions` names."""
    path.write_text(json.dumps({"own": own, "asked": asked}, ensure_ascii=False), encoding="utf-8")


def write_shard(task: WriteTask, folder: Path) -> dict[str, Any]:
    """Stream a shard into its file of the documents part; what stays out is counted and recorded."""
    return _ShardWriter(task, folder).run()


class _ShardWriter:
    def __init__(self, task: WriteTask, folder: Path) -> None:
        questions = json.loads(task.questions.read_text(encoding="utf-8"))
        rules = LeakRules(task.run_words, task.run_characters)
        own = ContaminationIndex([tuple(item) for item in questions["own"]], rules)
        self.task = task
        self.contamination = Contamination(own, read_leaks(task.leaks), frozenset(questions["asked"]))
        self.funnel, self.written = Funnel(folder / REJECTS_NAME), Written()
        self.folder = folder
        self.why = Reasons(task)
        self.scores = ScoreWriter(folder / SCORES_FOLDER, self.why.filters, task.languages, self.why.switches)

    def run(self) -> dict[str, Any]:
        kept = []
        with PartWriter(self.folder / DOCUMENTS_FOLDER, DOCUMENTS) as writer, self.scores:
            for batch in decided(self.task.texts, self.task.decision):
                measures = self.why.begin(batch)
                stays = self._what_stays(batch)
                kept.append(stays)
                self._score(batch, measures, stays)
                documents, splits = batch.texts.filter(pa.array(stays)), batch.splits[stays]
                if documents.num_rows:
                    names = pa.array(SPLIT_NAMES).take(pa.array(splits))
                    writer.write_table(documents.append_column("split", names))
                    self.written.count(documents, splits)
        self.funnel.close()
        self._write_index(np.concatenate(kept) if kept else np.empty(0, bool))
        return {"written": vars(self.written), "funnel": self.funnel.counts()}

    def _write_index(self, kept: NDArray[np.bool_]) -> None:
        """What later builds are told about the documents that stay."""
        start = 0
        with (
            PartWriter(self.folder / INDEX_FOLDER, DEDUP_INDEX) as writer,
            pq.ParquetFile(self.task.measures) as measures,
            pq.ParquetFile(self.task.decision) as decision,
        ):
            keys = decision.read(columns=["split_key"]).column(0)
            for batch in measures.iter_batches(columns=["doc_id", "source", "text_hash", "signature"]):
                chosen = pa.array(kept[start : start + batch.num_rows])
                own = pa.concat_arrays(keys.slice(start, batch.num_rows).chunks)
                start += batch.num_rows
                writer.write_table(batch.append_column("split_key", own).filter(chosen))

    def _score(self, batch: DecidedBatch, measures: pa.Table, stays: NDArray[np.bool_]) -> None:
        verdicts = [STEP_OF[verdict] for verdict in batch.verdicts.tolist()]
        gone = np.flatnonzero(np.isin(batch.verdicts, tuple(OTHER_REASONS)))
        others = {place: OTHER_REASONS[int(batch.verdicts[place])] for place in gone.tolist()}
        for place in np.flatnonzero((batch.verdicts == KEPT) & ~stays).tolist():
            verdicts[place], others[place] = "decontaminated", CONTAMINATED
        keys = self.why.split_keys.slice(batch.start, len(verdicts))
        self.scores.add(batch.texts, measures, keys, verdicts, others)

    def _what_stays(self, batch: DecidedBatch) -> NDArray[np.bool_]:
        """bool [documents]; the others are recorded, step by step."""
        sizes = batch.texts.column("num_bytes").to_numpy()
        left = np.ones(len(sizes), bool)
        for step, verdicts in DROPPED_BY.items():
            out = np.isin(batch.verdicts, verdicts)
            for place, row in batch.rows(out):
                reason, detail = self.why.of(int(batch.verdicts[place]), place, row)
                self._drop(step, reason, detail, row)
            left &= ~out
            self.funnel.passed(step, int(sizes[left].sum()), documents=int(left.sum()))
        out = batch.verdicts == OVER_LIMIT
        self.funnel.left_out("size_limit", int(sizes[out].sum()), int(out.sum()))
        left &= ~out
        self.funnel.passed("size_limit", int(sizes[left].sum()), documents=int(left.sum()))
        for place, row, overlap in self._contaminated(batch, left):
            self._drop("decontaminated", CONTAMINATED, f"{overlap.item}: {overlap.detail}", row)
            self.written.contaminated.append(row["doc_id"])
            left[place] = False
        self.funnel.passed("decontaminated", int(sizes[left].sum()), documents=int(left.sum()))
        return left

    def _contaminated(
        self, batch: DecidedBatch, left: NDArray[np.bool_]
    ) -> Iterator[tuple[int, Row, Overlap]]:
        places = np.flatnonzero(left)
        documents = batch.texts.take(pa.array(places))
        found = self.contamination.find_batch(documents)
        for number, overlap in sorted(found.items()):
            yield int(places[number]), documents.slice(number, 1).to_pylist()[0], overlap

    def _drop(self, step: str, reason: str, detail: str, row: Row) -> None:
        about = {name: row[name] for name in LINEAGE}
        self.funnel.dropped(step, reason, row["text"], detail, **about)


class Reasons:
    """Why documents of a shard do not stay, in words; batch after batch."""

    def __init__(self, task: WriteTask) -> None:
        self.filters = task.filters
        self.switches = dict(task.switches)
        names = [name for name in pq.read_schema(task.measures).names if name not in NOT_SCORES]
        self._rows = RowReader(task.measures, names)
        with pq.ParquetFile(task.decision) as file:
            self.duplicates = file.read(columns=["keeper", "similarity"])
            self.split_keys = file.read(columns=["split_key"]).column(0)

    def begin(self, batch: DecidedBatch) -> pa.Table:
        """Go on to the next batch of the shard; its measures."""
        measures = self._rows.take(batch.texts.num_rows)
        bad = np.flatnonzero(batch.verdicts == LOW_QUALITY)
        told = explain_documents(measures.take(pa.array(bad)), self.filters, self.switches)
        self._start, self._broken = batch.start, dict(zip(bad.tolist(), told, strict=True))
        return measures

    def of(self, verdict: int, place: int, row: Row) -> tuple[str, str]:
        """(reason, detail) of a document of this batch."""
        if verdict == OTHER_LANGUAGE:
            return "other_language", str(row["language"])
        if verdict == LOW_QUALITY:
            return self._broken[place]
        keeper, similarity = (column[self._start + place].as_py() for column in self.duplicates.columns)
        if verdict == DUPLICATE:
            return OTHER_REASONS[DUPLICATE], f"of {keeper}"
        return OTHER_REASONS[NEAR_DUPLICATE], f"{similarity:.2f} like {keeper}"


def collect(shards: Sequence[Shard], outputs: Mapping[str, Path], funnel: Funnel) -> Written:
    """Put the shards' files together as the parts `documents`, `dedup_index` and `document_scores`."""
    written = Written()
    for number, shard in enumerate(shards):
        for part in (DOCUMENTS_FOLDER, INDEX_FOLDER, SCORES_FOLDER):
            outputs[part].mkdir(parents=True, exist_ok=True)
            [path] = part_files(shard.folder / part)
            shutil.copyfile(path, outputs[part] / f"part-{number:05d}.parquet")
        funnel.merge(shard.result["funnel"], shard.folder / REJECTS_NAME)
        written.merge(shard.result["written"])
    return written
