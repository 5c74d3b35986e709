"""Stage 1 as a story: read or harvest, mend, filter, deduplicate, decontaminate; then make the records.

Text is streamed three times and never held as a whole: once into a scratch file, once for titles and first
sentences, once into the documents part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.corpus_prep.benchmark_forms import Question
from stages.corpus_prep.cleaning import Cleaner
from stages.corpus_prep.corpus_writer import (
    Contamination,
    Splits,
    Written,
    find_leaks,
    kept_rows,
    survey,
    write_documents,
)
from stages.corpus_prep.decontamination import ContaminationIndex
from stages.corpus_prep.entries import of_split
from stages.corpus_prep.findings import (
    show_conversations,
    show_corpus,
    show_funnel,
    show_records,
    show_rejects,
)
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.gathering import Gatherer, read_own_questions
from stages.corpus_prep.sampling import Smallest
from stages.corpus_prep.selection import select
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.training_records import RecordWriter, make_questions, write_benchmark
from stages.runtime.session import StageSession


def run(
    config: CorpusPrepConfig,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
) -> dict[str, float]:
    """Fill the seven parts; returns the headline numbers. `inputs` is empty: this is where data comes in."""
    own_questions = read_own_questions(config, session)
    funnel = Funnel(outputs["rejects"])
    scratch = session.work_dir / "scratch.parquet"
    with Cleaner(scratch, funnel, config.languages) as cleaner:
        gathered = Gatherer(config, cleaner, funnel, session).gather()
    _log_repairs(session, cleaner)

    max_bytes = int(config.max_megabytes * 1e6)
    # The harvest has shared the limit out already; it must not be cut again for a few bytes.
    limit = max_bytes if config.sources else 2 * max_bytes
    selection = select(scratch, cleaner.num_kept, limit, session.work_dir)
    splits = Splits.choose(
        (row["doc_id"] for row in kept_rows(scratch, selection)), config.validation_fraction
    )
    found = survey(scratch, selection, splits)
    leaks = find_leaks(scratch, selection, splits, of_split(found.book.entries(), "validation"))
    questions = make_questions(found, leaks, config)
    tasks = write_benchmark(questions, own_questions, outputs["benchmark"])
    if not tasks:
        session.warn("no benchmark question could be made: too few held-out documents")

    asked = frozenset(question.doc_id for question in questions)
    contamination = Contamination(_index_of(own_questions), leaks, asked)
    written = write_documents(scratch, selection, splits, contamination, funnel, outputs["documents"])
    session.log(
        f"kept {sum(written.sources.values()):,} documents, {sum(written.source_bytes.values()) / 1e6:.1f} MB"
    )

    entries = found.book.entries(without=written.contaminated)
    records = RecordWriter(config, entries, gathered, funnel, contamination.own)
    records.write_scenarios(outputs["scenarios"])
    conversations = records.write_conversations(outputs["conversations"])
    pairs = records.write_preferences(conversations, outputs["preferences"])
    funnel.close()
    funnel.write(outputs["funnel"])
    scratch.unlink()

    kinds = Counter(row["kind"] for row in conversations)
    show_funnel(session, funnel)
    show_rejects(session, funnel)
    show_corpus(session, written)
    show_records(session, {"conversations": kinds, "preferences": pairs, "benchmark": tasks})
    show_conversations(session, conversations)
    return _headline(written, funnel, kinds, pairs, tasks, len(records.scenarios.rows))


def _log_repairs(session: StageSession, cleaner: Cleaner) -> None:
    if cleaner.repairs:
        named = ", ".join(f"{name} {count:,}" for name, count in sorted(cleaner.repairs.items()))
        session.log(f"documents repaired: {named}")


def _index_of(own: Mapping[str, Smallest[Question]]) -> ContaminationIndex:
    """The user's own questions, which no text and no record may hold."""
    return ContaminationIndex(
        [
            (f"{source} {key[:8]}", question.question)
            for source, sample in own.items()
            for key, question in sample.items()
        ]
    )


def _headline(
    written: Written,
    funnel: Funnel,
    conversations: Counter[str],
    pairs: Counter[str],
    tasks: Counter[str],
    num_scenarios: int,
) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for (_, reason), count in funnel.reasons.items():
        dropped[f"dropped_{reason}"] += count
    return {
        "num_documents": written.split_documents.total(),
        "num_bytes": written.split_bytes.total(),
        "validation_bytes": written.split_bytes["validation"],
        "num_validation_documents": written.split_documents["validation"],
        "num_conversations": conversations.total(),
        "num_tool_conversations": conversations["tool"],
        "num_preferences": pairs.total(),
        "num_questions": tasks.total(),
        "num_scenarios": num_scenarios,
        **dict(sorted(dropped.items())),
    }
