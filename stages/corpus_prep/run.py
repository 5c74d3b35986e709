"""Stage 1 as a story: read or harvest, mend, measure, choose; then make the records and write everything.

Documents are worked on in shards, which may go to other processes or other machines; text is streamed and
never held as a whole. Between the passes over the shards everything is decided on skinny columns.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from stages.corpus_prep.corpus_build import CorpusBuild
from stages.corpus_prep.findings import (
    headline,
    masked_numbers,
    show_conversations,
    show_corpus,
    show_funnel,
    show_masked,
    show_records,
    show_rejects,
)
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.record_selection import choose_records
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.training_records import RecordWriter
from stages.runtime.session import StageSession
from stages.runtime.shard_map import ShardMap, peak_worker_memory_bytes


def run(
    config: CorpusPrepConfig,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
) -> dict[str, float]:
    """Fill the parts; returns the headline numbers. `inputs` is empty: this is where data comes in."""
    funnel = Funnel(outputs["rejects"])
    with ShardMap(session, config.num_workers, config.dask_scheduler) as shards:
        build = CorpusBuild(config, outputs, session, shards, funnel)
        build.gather()
        build.select()
        build.survey()
        tasks = build.write_benchmark()
        written = build.write_documents()

    entries = build.found.book.entries(without=written.contaminated)
    similarity = config.near_duplicate_similarity
    chosen = choose_records(build.gathered.records, similarity, funnel, build.tables / "records")
    if near := sum(report.num_dropped for report in chosen.reports):
        session.log(f"near-duplicates: {near:,} of your conversations and pairs go")
    records = RecordWriter(config, entries, chosen, funnel, build.own_index())
    records.write_scenarios(outputs["scenarios"])
    conversations = records.write_conversations(outputs["conversations"])
    pairs = records.write_preferences(conversations, outputs["preferences"])
    funnel.close()
    funnel.write(outputs["funnel"])

    kinds = Counter(row["kind"] for row in conversations)
    if not (kinds["qa"] or kinds["own"] or pairs["own"]):
        what = "made of small talk and calculations" if pairs else "none"
        session.warn(f"preference pairs: {what}, as no document has a title; give pairs or conversations")
    show_funnel(session, funnel)
    show_rejects(session, funnel)
    show_masked(session, build.gathered.masked)
    show_corpus(session, written)
    show_records(session, {"conversations": kinds, "preferences": pairs, "benchmark": tasks})
    show_conversations(session, conversations)
    session.log(f"most memory of one process: {peak_worker_memory_bytes() / 2**20:,.0f} MiB")
    shutil.rmtree(session.work_dir / "shards")
    shutil.rmtree(build.tables)
    numbers = headline(written, funnel, kinds, pairs, tasks, len(records.scenarios.rows))
    return numbers | masked_numbers(build.gathered.masked)
