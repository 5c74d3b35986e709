"""What the stage shows of its work: tables and charts for the log, the report and the Prefect UI."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.corpus_prep.corpus_writer import Written
from stages.corpus_prep.funnel import STEPS, Funnel
from stages.corpus_prep.selection import Selection
from stages.runtime.session import StageSession

MAX_ROWS = 30


def show_funnel(session: StageSession, funnel: Funnel) -> None:
    """The funnel as a table and as bars."""
    rows = []
    for name in STEPS:
        step = funnel.steps[name]
        dropped = step.documents_in - step.documents_out
        rows.append([name, step.documents_in, step.documents_out, dropped, round(step.bytes_out / 1e6, 3)])
    session.table("funnel", ["step", "in", "out", "dropped", "MB out"], rows, "What each step left")
    session.chart(
        "funnel",
        title="Documents after each step",
        x_label="step",
        y_label="documents",
        series={"documents": [[name, funnel.steps[name].documents_out] for name in STEPS]},
        kind="bar",
    )


def show_rejects(session: StageSession, funnel: Funnel) -> None:
    """Reasons with their counts and a few examples each."""
    rows = [
        [step, reason, count, " | ".join(text[:60] for text in funnel.examples[step, reason])]
        for (step, reason), count in sorted(funnel.reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    session.table(
        "rejects", ["step", "reason", "documents", "examples"], rows[:MAX_ROWS], "Why documents were dropped"
    )


def show_duplicates(session: StageSession, selection: Selection) -> None:
    """What the search for near-duplicates met."""
    report = selection.report
    if report.num_clusters:
        session.log(
            f"near-duplicates: {report.num_dropped:,} documents go, of {report.num_clusters:,} clusters; "
            f"the largest has {report.largest_cluster:,}"
        )
    for cluster in report.split_clusters:
        session.warn(f"a large cluster of near-duplicates was divided: {cluster}")


def show_corpus(session: StageSession, written: Written) -> None:
    """Languages and sources of what was kept."""
    languages = _by_bytes(written.languages, written.language_bytes)
    session.table("languages", ["language", "documents", "MB"], languages, "Languages by script")
    sources = _by_bytes(written.sources, written.source_bytes)
    session.table("sources", ["source", "documents", "MB"], sources[:MAX_ROWS], "Largest sources")


def _by_bytes(counts: Counter[str], sizes: Counter[str]) -> list[list[Any]]:
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return [[name, counts[name], round(size / 1e6, 3)] for name, size in ordered]


def show_records(session: StageSession, counts: Mapping[str, Counter[str]]) -> None:
    """How many conversations, pairs and questions of which kind."""
    rows = [[part, kind, number] for part, kinds in counts.items() for kind, number in sorted(kinds.items())]
    session.table("records", ["part", "kind", "number"], rows, "What was made of the documents and records")


def show_conversations(session: StageSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """One conversation of each kind, as samples."""
    shown: set[str] = set()
    for row in rows:
        if row["kind"] not in shown:
            shown.add(row["kind"])
            turns = [m["content"] or json.dumps(m["tool_calls"], ensure_ascii=False) for m in row["messages"]]
            session.sample(turns[0][:300], " | ".join(turns[1:])[:600], kind=f"conversation_{row['kind']}")


def headline(
    written: Written,
    funnel: Funnel,
    conversations: Counter[str],
    pairs: Counter[str],
    tasks: Counter[str],
    num_scenarios: int,
) -> dict[str, Any]:
    """The numbers that the manifest keeps."""
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
