"""What the stage shows of its work: tables and charts for the log, the report and the Prefect UI."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.corpus_prep.corpus_writer import Written
from stages.corpus_prep.duplicates.minhash_bands import s_curve
from stages.corpus_prep.duplicates.near_duplicates import NearDuplicateSettings
from stages.corpus_prep.funnel import STEPS, Funnel
from stages.corpus_prep.screening.personal_data import personal_schema
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
    """Reasons with their counts, and three documents of each, cut out around what broke the rule."""
    by_count = sorted(funnel.reasons.items(), key=lambda item: (-item[1], item[0]))[:MAX_ROWS]
    rows, texts = [], []
    for (step, reason), count in by_count:
        shown = [example for _, example in funnel.examples.of(step, reason)]
        named = " | ".join((each["title"] or each["preview"])[:60] for each in shown)
        rows.append([step, reason, count, named])
        texts += [[step, reason, *each.values()] for each in shown]
    session.table("rejects", ["step", "reason", "documents", "examples"], rows, "Why documents were dropped")
    columns = ["step", "reason", "title", "source", "detail", "text"]
    session.table("dropped_examples", columns, texts, "Dropped for each reason")


def show_duplicates(session: StageSession, selection: Selection, similarity: float) -> None:
    """How near-duplicates are found from this similarity on, and what the search met; 0: none are."""
    report = selection.report
    if similarity:
        _show_s_curve(session, NearDuplicateSettings(threshold=similarity))
    if report.num_clusters:
        session.log(
            f"near-duplicates: {report.num_dropped:,} documents go, of {report.num_clusters:,} clusters; "
            f"the largest has {report.largest_cluster:,}"
        )
    for cluster in report.split_clusters:
        session.warn(f"a large cluster of near-duplicates was divided: {cluster}")


def _show_s_curve(session: StageSession, settings: NearDuplicateSettings) -> None:
    """How likely two documents of each similarity are compared, and then taken for near-duplicates."""
    bands, rows, at = settings.bands, settings.rows, settings.threshold
    curve = s_curve(bands, rows, at)
    told = ", ".join(f"{merged:.2f} at {s:g}" for s, _, merged in curve if abs(s - at) < 0.11)
    session.log(f"near-duplicates from {at:g}, {bands} bands of {rows} hashes; merged by estimate: {told}")
    session.table(
        "s_curve",
        ["similarity", "compared", "merged, by the estimate alone"],
        [[s, round(compared, 3), round(merged, 3)] for s, compared, merged in curve],
        f"{bands} bands of {rows} hashes; near-duplicates from {at:g}, around it the texts decide",
    )
    fine = s_curve(bands, rows, at, tuple(step / 50 for step in range(51)))
    session.chart(
        "s_curve",
        title="How likely a pair is found, by its similarity",
        x_label="Jaccard similarity of word 5-grams",
        y_label="probability",
        series={
            "compared": [[s, compared] for s, compared, _ in fine],
            "merged by the estimate": [[s, merged] for s, _, merged in fine],
            "wanted": [[0.0, 0.0], [at, 0.0], [at, 1.0], [1.0, 1.0]],
        },
    )


def show_masked(session: StageSession, masked: Mapping[str, Counter[str]]) -> None:
    """What was masked in what was read: how many of each kind, and in how many documents and records."""
    for number in filter(None, (counts["simplified"] for counts in masked.values())):
        session.log(f"records with traditional characters made simplified: {number:,}")
    kinds = [name for name in personal_schema().names if any(counts[name] for counts in masked.values())]
    if kinds:
        rows = [[name, *(masked[where][name] for where in sorted(masked))] for name in kinds]
        rows.append(["with any", *(masked[where]["with_any"] for where in sorted(masked))])
        session.table("masked", ["personal data", *sorted(masked)], rows, "Personal data masked on reading")


def masked_numbers(masked: Mapping[str, Counter[str]]) -> dict[str, int]:
    """For the manifest: of each kind, how many were masked in documents and records together."""
    kinds = {name: sum(counts[name] for counts in masked.values()) for name in personal_schema().names}
    return {f"masked_{name.removeprefix('pii_')}": number for name, number in kinds.items() if number}


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
