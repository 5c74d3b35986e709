"""The report as Markdown, for places that show no HTML, such as artifacts of Prefect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_contracts.manifest import Manifest
from flows.report.essence import essence_lines
from flows.report.formats import MISSING, cell, clean, duration, size
from flows.report.record import RunRecord
from flows.report.run_view import Event, RunView
from flows.report.samples import CHAT, MODELS, collect
from flows.report.sections import OUTCOMES
from flows.report.stage_details import changed_settings

SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")
TABLES = (
    ("Funnel", "corpus_prep", "funnel"),
    ("Multiple choice", "benchmark_eval", "benchmark_accuracy"),
    ("Comparisons", "benchmark_eval", "benchmark_comparisons"),
    ("Agent", "agent_smoke", "agent_families"),
    ("Retrieval", "vector_store", "retrieval_quality"),
    ("Quantization", "quantize", "quantize_result"),
)


def render_markdown(
    run: RunRecord, manifests: Mapping[str, Manifest], events: Mapping[str, list[dict[str, Any]]]
) -> str:
    """The essence, the stages with their reasons, the main tables, answers, changed settings and warnings."""
    view = RunView(run, manifests, events)
    parts = [
        f"# Glassworks run {plain(run.run_id)}: {run.status}",
        f"Preset {plain(run.preset)}, started {plain(run.started_at)}, {duration(run.seconds)}",
        _table(["", ""], [[line.label, line.text] for line in essence_lines(view)]),
        "## Stages",
        _stages(view),
        *_named_tables(view),
        *_answers(view),
        *_settings(view),
        *_warnings(view),
    ]
    return "\n\n".join(parts) + "\n"


def plain(value: object) -> str:
    """Any text on one line, with everything that Markdown or HTML would take for markup escaped."""
    one_line = " ".join(clean(value).split())
    entities = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", entities)


def _table(columns: Sequence[object], rows: Sequence[Sequence[Any]]) -> str:
    lines = [[plain(name) for name in columns], ["---"] * len(columns)]
    lines += [[plain(cell(value)) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _stages(view: RunView) -> str:
    rows = []
    for name in view.stage_names:
        record, manifest = view.stage(name), view.manifests.get(name)
        why = "; ".join([*record.reasons, *([record.error] if record.error else [])])
        memory = size(manifest.provenance.peak_memory_bytes) if manifest else MISSING
        fingerprint = (record.fingerprint or MISSING)[:10]
        rows.append([name, OUTCOMES[record.outcome], duration(record.seconds), memory, fingerprint, why])
    return _table(["stage", "outcome", "in this run", "peak memory", "artifact", "why"], rows)


def _named_tables(view: RunView) -> list[str]:
    parts = []
    for title, stage, name in TABLES:
        event: Event | None = view.tables(stage).get(name)
        if event is not None:
            parts += [f"## {title}", _table(event["columns"], event["rows"])]
    return parts


def _answers(view: RunView) -> list[str]:
    asked = {prompt: answers for (kind, prompt), answers in collect(view).items() if kind == CHAT}
    models = [model for model in MODELS if any(model in answers for answers in asked.values())]
    rows = [[prompt, *(answers.get(model) for model in models)] for prompt, answers in asked.items()]
    return ["## Answers", _table(["question", *models], rows)] if rows else []


def _settings(view: RunView) -> list[str]:
    rows = [[name, *setting] for name in view.stage_names for setting in changed_settings(view, name)]
    if not rows:
        return []
    return ["## Changed settings", _table(["stage", "setting", "in this run", "default"], rows)]


def _warnings(view: RunView) -> list[str]:
    rows = [[name, warning] for name in view.stage_names for warning in view.warnings(name)]
    return ["## Warnings", _table(["stage", "warning"], rows)] if rows else []
