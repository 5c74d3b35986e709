"""Stage 1 as a story: read or harvest, mend, filter, deduplicate, decontaminate; then make the records.

Documents are worked on in shards, which may go to other processes or other machines; text is streamed and
never held as a whole. Between the passes over the shards everything is decided on skinny columns.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.corpus_prep.benchmark_forms import Question
from stages.corpus_prep.corpus_writer import WriteTask, collect, write_questions, write_shard
from stages.corpus_prep.decontamination import ContaminationIndex
from stages.corpus_prep.entries import of_split
from stages.corpus_prep.filtering import Filters
from stages.corpus_prep.findings import (
    headline,
    show_conversations,
    show_corpus,
    show_duplicates,
    show_funnel,
    show_records,
    show_rejects,
)
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.gathering import Gathered, Gatherer, read_own_questions
from stages.corpus_prep.inputs import earlier_folders
from stages.corpus_prep.sampling import Smallest
from stages.corpus_prep.selection import Choice, Selection, Shards, select
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.survey import (
    LEAKS_NAME,
    LeakTask,
    Survey,
    SurveyTask,
    find_leaks,
    read_leaks,
    survey_shard,
    write_held_out,
)
from stages.corpus_prep.training_records import RecordWriter, make_questions, write_benchmark
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.runtime.shard_map import ShardMap, peak_worker_memory_bytes


def run(
    config: CorpusPrepConfig,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
) -> dict[str, float]:
    """Fill the seven parts; returns the headline numbers. `inputs` is empty: this is where data comes in."""
    with ShardMap(session, config.num_workers, config.dask_scheduler) as shards:
        metrics = _build(config, outputs, session, shards)
    session.log(f"most memory of one process: {peak_worker_memory_bytes() / 2**20:,.0f} MiB")
    for name in ("shards", "tables"):
        shutil.rmtree(session.work_dir / name)
    return metrics


def _build(
    config: CorpusPrepConfig, outputs: Mapping[str, Path], session: StageSession, shards: ShardMap
) -> dict[str, Any]:
    work = session.work_dir / "tables"
    work.mkdir(parents=True, exist_ok=True)
    own_questions = read_own_questions(config, session)
    funnel = Funnel(outputs["rejects"])
    gatherer = Gatherer(config, shards, funnel, session)
    gathered = gatherer.gather()
    _log_repairs(session, gathered)

    selection = _select(config, gathered, work)
    if not selection.keeps_any:
        gatherer.add_documents_of_records()
        selection = _select(config, gathered, work)
    if not selection.keeps_any:
        raise UserError(
            "corpus_prep found no document that it could keep", hint=gatherer.why_nothing(selection.bad)
        )
    show_duplicates(session, selection)
    decided = list(zip(gathered.texts, selection.write(work / "decisions", gathered.counts), strict=True))

    found = Survey()
    for shard in shards.run("survey", survey_shard, [SurveyTask(*pair) for pair in decided]):
        found.merge(shard)
    write_held_out(of_split(found.book.entries(), "validation"), work / "held_out.json")
    leaky = shards.run("leaks", find_leaks, [LeakTask(*pair, work / "held_out.json") for pair in decided])
    leak_files = [shard.folder / LEAKS_NAME for shard in leaky]
    leaking = {doc_id: items for path in leak_files for doc_id, items in read_leaks(path).items()}
    questions = make_questions(found, leaking, config)
    tasks = write_benchmark(questions, own_questions, outputs["benchmark"])
    if not tasks:
        session.warn("no benchmark question could be made: too few held-out documents")

    own_items = _items_of(own_questions)
    write_questions(own_items, [question.doc_id for question in questions], work / "questions.json")
    orders = [
        WriteTask(
            texts,
            measures,
            decision,
            leaks,
            work / "questions.json",
            config.filters,
            config.thresholds,
            tuple(sorted(gathered.switches.items())),
        )
        for (texts, decision), measures, leaks in zip(decided, gathered.measures, leak_files, strict=True)
    ]
    written = collect(shards.run("write", write_shard, orders), outputs, funnel)
    session.log(
        f"kept {sum(written.sources.values()):,} documents, {sum(written.source_bytes.values()) / 1e6:.1f} MB"
    )

    entries = found.book.entries(without=written.contaminated)
    records = RecordWriter(config, entries, gathered.records, funnel, ContaminationIndex(own_items))
    records.write_scenarios(outputs["scenarios"])
    conversations = records.write_conversations(outputs["conversations"])
    pairs = records.write_preferences(conversations, outputs["preferences"])
    funnel.close()
    funnel.write(outputs["funnel"])

    kinds = Counter(row["kind"] for row in conversations)
    show_funnel(session, funnel)
    show_rejects(session, funnel)
    show_corpus(session, written)
    show_records(session, {"conversations": kinds, "preferences": pairs, "benchmark": tasks})
    show_conversations(session, conversations)
    return headline(written, funnel, kinds, pairs, tasks, len(records.scenarios.rows))


def _select(config: CorpusPrepConfig, gathered: Gathered, work: Path) -> Selection:
    limit = int(config.max_megabytes * 1e6)
    choice = Choice(
        # The harvest has shared the limit out already; it must not be cut again for a few bytes.
        max_bytes=limit if config.sources else 2 * limit,
        validation_fraction=config.validation_fraction,
        filters=Filters(config.filters, config.thresholds),
        languages=config.languages,
        similarity=config.near_duplicate_similarity,
        earlier=earlier_folders(config.earlier_corpora),
        switches=gathered.switches,
        weights=gathered.weights,
    )
    return select(Shards(gathered.texts, gathered.measures, gathered.counts), choice, work)


def _log_repairs(session: StageSession, gathered: Gathered) -> None:
    if gathered.repairs:
        named = ", ".join(f"{name} {count:,}" for name, count in sorted(gathered.repairs.items()))
        session.log(f"documents repaired: {named}")


def _items_of(own: Mapping[str, Smallest[Question]]) -> list[tuple[str, str]]:
    """The user's own questions, which no text and no record may hold: name and text."""
    return [
        (f"{source} {key[:8]}", question.question)
        for source, sample in own.items()
        for key, question in sample.items()
    ]
