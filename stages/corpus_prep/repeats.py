"""Text that stands in many documents, cut out of all but the first: paragraphs, lines, runs of words.

A pass over all shards between measuring and selection, so that filters and duplicates see the text that is
kept:

    note    each shard writes hashes of what it holds, divided by their top bits
    count   which hashes more than so many documents hold: a partition of all shards at a time
            (runs of words take these two twice: see `duplicates/repeated_runs.py`)
    cut     each shard cuts, and measures anew what it changed

The first document is the first in the order of sources, of shards, of rows. What is cut is decided on the
texts as they came out of repair, for all kinds at once. Documents with equal texts count as one and are cut
alike, so they are duplicates afterwards as they were before. Source code is left alone: a line of code that
others hold is still needed. The id of a document that was cut is the hash of what is left; its place in its
file, its title and its language stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.corpus_prep.duplicates.exact_duplicates import exact_keepers, hash_halves
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.preparation import MEASURES_NAME, REJECTS_NAME, TEXTS_NAME
from stages.corpus_prep.repeat_passes import (
    NUM_EXAMPLES,
    NUM_PARTITIONS,
    RUN,
    STEP,
    CountTask,
    CutTask,
    MeasuredShard,
    NoteTask,
    RepeatRules,
    count_repeats,
    cut_shard,
    note_shard,
)
from stages.corpus_prep.screening.screen_documents import Screening
from stages.corpus_prep.selection import Shards
from stages.runtime.session import StageSession
from stages.runtime.shard_map import Shard, ShardMap

NUM_COUNT_TASKS = 8


@dataclass(frozen=True)
class Cut:
    """The tables of all shards after the pass. done: its shards, none where nothing is to be cut."""

    tables: Shards
    done: tuple[Shard, ...] = ()

    def count(self, funnel: Funnel) -> None:
        """Tell the funnel."""
        for shard in self.done:
            funnel.merge(shard.result["funnel"], shard.folder / REJECTS_NAME)
        if not self.done:
            before = funnel.steps["repaired"]
            funnel.passed(STEP, before.bytes_out, documents=before.documents_out)

    def show(self, session: StageSession) -> None:
        """How much was cut, with examples."""
        if not self.done:
            return
        spans: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        for shard in self.done:
            spans.update(shard.result["num_spans"])
            for kind, texts in shard.result["examples"].items():
                examples.setdefault(kind, []).extend(texts)
        steps = [shard.result["funnel"]["steps"][STEP] for shard in self.done]
        num_bytes = sum(step["bytes_in"] - step["bytes_out"] for step in steps)
        emptied = sum(step["documents_in"] - step["documents_out"] for step in steps)
        changed = sum(shard.result["num_changed"] for shard in self.done)
        told = ", ".join(f"{count:,} {kind}s" for kind, count in spans.items())
        session.log(
            f"repeated text: {told} cut, {num_bytes / 1e6:,.3f} MB; {changed:,} documents changed, "
            f"{emptied:,} held nothing else"
        )
        rows = [[kind, count, " | ".join(examples[kind][:NUM_EXAMPLES])] for kind, count in spans.items()]
        session.table("repeats", ["what", "cut", "for example"], rows, "Text of earlier documents")


def cut_repeats(
    shards: ShardMap, tables: Shards, rules: RepeatRules, screening: Screening, folder: Path
) -> Cut:
    """Do all passes that the rules ask for; the tables come back as they are where that is none."""
    if not rules.more_than or not sum(tables.counts):
        return Cut(tables)
    return _Repeats(shards, tables, rules, folder).cut(screening)


class _Repeats:
    def __init__(self, shards: ShardMap, tables: Shards, rules: RepeatRules, folder: Path) -> None:
        self.shards, self.rules = shards, rules
        self.starts = tuple(tables.starts.tolist())
        self.originals = _write_originals(tables, folder / "originals.npy")
        self.measured = [
            MeasuredShard(texts, measures, self.originals, number, self.starts)
            for number, (texts, measures) in enumerate(zip(tables.texts, tables.measures, strict=True))
        ]

    def cut(self, screening: Screening) -> Cut:
        """Note, count, cut."""
        noted = self._note("repeats_noted", None)
        counted = self._count("repeats_counted", noted, self.rules.more_than)
        folders = dict.fromkeys(self.rules.more_than, counted)
        if RUN in folders:
            noted = self._note("runs_noted", counted)
            folders[RUN] = self._count("runs_counted", noted, {RUN: self.rules.more_than[RUN]})
        tasks = [CutTask(shard, self.rules, tuple(folders.items()), screening) for shard in self.measured]
        done = self.shards.run(STEP, cut_shard, tasks)
        tables = Shards(
            [shard.folder / TEXTS_NAME for shard in done],
            [shard.folder / MEASURES_NAME for shard in done],
            [shard.result["num_documents"] for shard in done],
        )
        return Cut(tables, tuple(done))

    def _note(self, step: str, counted: Path | None) -> Path:
        tasks = [NoteTask(shard, self.rules, counted) for shard in self.measured]
        return self.shards.run(step, note_shard, tasks)[0].folder.parent

    def _count(self, step: str, noted: Path, more_than: dict[str, int]) -> Path:
        width = NUM_PARTITIONS // NUM_COUNT_TASKS
        tasks = [
            CountTask(noted, self.originals, tuple(more_than.items()), self.starts, first, first + width)
            for first in range(0, NUM_PARTITIONS, width)
        ]
        return self.shards.run(step, count_repeats, tasks)[0].folder.parent


def _write_originals(tables: Shards, path: Path) -> Path:
    """For every document the first one with the same text: 16 bytes of memory each."""
    halves = [np.empty((0, 2), np.uint64)]
    for measures in tables.measures:
        with pq.ParquetFile(measures) as file:
            for batch in file.iter_batches(columns=["text_hash"], use_threads=False):
                halves.append(hash_halves(batch.column(0)).copy())
    joined = np.concatenate(halves)
    np.save(path, exact_keepers(joined, np.arange(len(joined))).astype(np.uint32))
    return path
