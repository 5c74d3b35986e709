"""The parts of the page about the run as a whole: stages, reasons, funnel, curves, scores, sizes."""

from __future__ import annotations

import itertools
from typing import Any

from flows.report.charts import chart_svg
from flows.report.formats import MISSING, duration, size
from flows.report.markup import (
    NOTHING,
    Html,
    details,
    join,
    missing,
    paragraph,
    table,
    table_of,
    tag,
    text,
)
from flows.report.record import StageRecord
from flows.report.run_view import Event, RunView

OUTCOMES = {
    "hit": "reused",
    "ran": "ran",
    "trusted": "trusted",
    "failed": "failed",
    "not reached": "not reached",
}
TRAINED = ("pretrain", "sft", "dpo")
SCORES = (
    ("benchmark_eval", "benchmark_bits_per_byte"),
    ("benchmark_eval", "benchmark_accuracy"),
    ("agent_smoke", "agent_success"),
    ("vector_store", "retrieval_quality"),
)
SIZES = (("quantize", "quantize_size"), ("quantize", "quantize_change"))
INSIDE = (
    ("pretrain", "pretrain_layer_gradients"),
    ("pretrain", "pretrain_layer_activations"),
    ("pretrain", "pretrain_attention"),
)
SHOWN_TABLES = frozenset(
    {
        ("corpus_prep", "funnel"),
        ("corpus_prep", "rejects"),
        ("corpus_prep", "dropped_examples"),
        ("benchmark_eval", "benchmark_accuracy"),
        ("benchmark_eval", "benchmark_comparisons"),
        ("quantize", "quantize_result"),
        ("pretrain", "pretrain_layers"),
    }
)
"""Tables that have their place in these sections, and so are not repeated under their stage."""


def stage_table(view: RunView) -> Html:
    """One row per stage: what became of it, how long, how much memory, and which artifact."""
    with_cost = any(manifest.provenance.cost is not None for manifest in view.manifests.values())
    columns = ["stage", "outcome", "in this run", "making it", "peak memory", "artifact"]
    names = [text(name) for name in [*columns, *(["cost"] if with_cost else [])]]
    flush = [False, False, True, True, True, False, True]
    rows = [_stage_row(view, name, with_cost) for name in view.stage_names]
    if not rows:
        return missing("The run's record names no stage.")
    note = "Making it: the seconds that the artifact took when it was made, in this run or an earlier one."
    return join([table_of(names, rows, flush[: len(names)]), paragraph(note, "note")])


def _stage_row(view: RunView, name: str, with_cost: bool) -> list[Html]:
    record, manifest = view.stage(name), view.manifests.get(name)
    made = manifest.provenance if manifest else None
    outcome = [badge(record.outcome)]
    if made is not None and made.resumed:
        outcome.append(tag("span", text(" resumed from a checkpoint"), class_="note"))
    fingerprint = record.fingerprint or (manifest.fingerprint if manifest else None)
    code = tag("code", text(fingerprint[:10]), title=fingerprint) if fingerprint else text(MISSING)
    cells = [
        tag("a", text(name), href=f"#stage-{name}"),
        join(outcome),
        text(MISSING if record.outcome == "not reached" else duration(record.seconds)),
        text(duration(made.seconds) if made else MISSING),
        text(size(made.peak_memory_bytes) if made else MISSING),
        code,
    ]
    if with_cost:
        cells.append(text(f"{made.cost:.2f}" if made and made.cost is not None else MISSING))
    return cells


def badge(outcome: str) -> Html:
    """The outcome as a coloured word."""
    return tag("span", text(OUTCOMES.get(outcome, outcome)), class_=f"badge {outcome.replace(' ', '-')}")


def reasons(view: RunView) -> Html:
    """What was reused, and why the rest ran."""
    reused = [s.name for s in view.record.stages if s.outcome == "hit" and not s.reasons]
    first = paragraph(f"Reused, byte for byte: {', '.join(reused)}.") if reused else NOTHING
    rows = [
        [tag("b", text(stage.name)), badge(stage.outcome), _why(view, stage)]
        for stage in view.record.stages
        if stage.name not in reused and stage.outcome != "not reached"
    ]
    head = [text(column) for column in ("stage", "outcome", "why")]
    rest = table_of(head, rows) if rows else paragraph("Nothing had to run.")
    later = [s.name for s in view.record.stages if s.outcome == "not reached"]
    last = paragraph(f"Not reached: {', '.join(later)}.") if later else NOTHING
    return join([first, rest, last, *(_trusted(view, name) for name in view.stage_names)])


def _why(view: RunView, stage: StageRecord) -> Html:
    reason = join(tag("div", text(reason)) for reason in stage.reasons)
    if stage.outcome == "ran" and not stage.reasons:
        reason = missing("no reason was recorded")
    error = tag("pre", text(stage.error), class_="error") if stage.error else NOTHING
    return join([reason, error, _how_far(view, stage.name) if stage.outcome == "failed" else NOTHING])


def _how_far(view: RunView, name: str) -> Html:
    progress = view.last_progress(name)
    if progress is None:
        return NOTHING
    return paragraph(f"It came as far as {progress['done']:,} of {progress['total']:,} {progress['unit']}.")


def _trusted(view: RunView, name: str) -> Html:
    manifest = view.manifests.get(name)
    if manifest is None or not manifest.trusted_code:
        return NOTHING
    files = ", ".join(manifest.trusted_code)
    return paragraph(
        f"{name} was kept although code or packages changed since it was made (--trust-code): {files}.",
        "warning",
    )


def warnings(view: RunView) -> Html:
    """Everything that the stages warned of."""
    rows = [[name, warning] for name in view.stage_names for warning in view.warnings(name)]
    return table(["stage", "warning"], rows) if rows else paragraph("No stage warned of anything.")


def funnel(view: RunView) -> Html:
    """What each step of corpus_prep left of the documents, with the share of the first step as a bar."""
    tables = view.tables("corpus_prep")
    if "funnel" not in tables:
        return missing("corpus_prep left no funnel.")
    event = tables["funnel"]
    parts = [_funnel_table(event)]
    if "rejects" in tables:
        parts.append(_emitted(tables["rejects"]))
    if "dropped_examples" in tables:
        parts.append(_dropped(tables["dropped_examples"]))
    return join(parts)


def _dropped(event: Event) -> Html:
    """Under each reason the documents that went for it, with the text around what broke the rule."""
    rows = [dict(zip(event["columns"], row, strict=True)) for row in event["rows"]]
    parts = []
    for (step, reason), examples in itertools.groupby(rows, key=lambda row: (row["step"], row["reason"])):
        shown = join(_dropped_document(row) for row in examples)
        parts.append(details(join([tag("code", text(reason)), text(f" at {step}")]), shown))
    return join([tag("h3", text(event["caption"])), *parts]) if parts else NOTHING


def _dropped_document(row: dict[str, Any]) -> Html:
    detail, *others = row["detail"].split("; ")
    more = f"and {len(others)} more" if others else ""
    about = " · ".join(filter(None, (row["source"], detail, more)))
    head = [tag("b", text(row["title"])), text(" ")] if row["title"] else []
    quoted = tag("blockquote", text(row["text"] or "(nothing is left of it)"))
    return tag("div", *head, tag("span", text(about), class_="note"), quoted)


def _funnel_table(event: Event) -> Html:
    columns = event["columns"]
    first = next((row[1] for row in event["rows"] if len(row) > 2 and row[1]), 0)
    if columns[:3] != ["step", "in", "out"] or not first:
        return _emitted(event)
    rows = []
    for row in event["rows"]:
        kept = row[2] / first
        bar = tag("div", tag("i", style=f"width:{100 * kept:.1f}%"), class_="meter")
        share = text(f"{100 * kept:.1f} %")
        rows.append([text(row[0]), *(text(_amount(value)) for value in row[1:]), bar, share])
    flush = [False, *(True for _ in columns[1:]), False, True]
    return table_of([text(name) for name in [*columns, "kept", ""]], rows, flush, event.get("caption", ""))


def _amount(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def curves(view: RunView) -> Html:
    """The loss curves of the trained models; of one that did not finish, what it had measured."""
    figures, absent = [], []
    for stage in TRAINED:
        found = [chart for name, chart in view.charts(stage).items() if (stage, name) not in INSIDE]
        charts = [chart for chart in found if chart.get("kind") == "line"]
        charts = charts or metric_charts(view, stage, ("loss", "bits_per_byte"))
        figures += [chart_svg(chart, stage) for chart in charts]
        absent += [] if charts else [stage]
    note = missing(f"No curve of: {', '.join(absent)}.") if absent else NOTHING
    return join([tag("div", join(figures), class_="charts") if figures else NOTHING, note])


def inside(view: RunView) -> Html:
    """The layers of the base model over the run, and where its heads look."""
    layers = view.tables("pretrain").get("pretrain_layers")
    return join([_charts(view, INSIDE), _emitted(layers) if layers is not None else NOTHING])


def metric_charts(view: RunView, stage: str, endings: tuple[str, ...]) -> list[Event]:
    """Charts of the metrics whose names end in this; those of one ending share a chart."""
    found = view.curves(stage)
    charts = []
    for ending in endings:
        series = {name: line for name, line in found.items() if name.endswith(ending)}
        if series:
            label = ending.replace("_", " ")
            charts.append(
                {
                    "title": label,
                    "x_label": "step",
                    "y_label": label,
                    "series": series,
                    "kind": "line",
                }
            )
    return charts


def scores(view: RunView) -> Html:
    """Every score with its interval, and the verdicts in words."""
    tables = view.tables("benchmark_eval")
    named = [tables[name] for name in ("benchmark_accuracy", "benchmark_comparisons") if name in tables]
    return join([_charts(view, SCORES), _preference(view), *(_emitted(event) for event in named)])


def _preference(view: RunView) -> Html:
    accuracy = view.metric("dpo", "validation_accuracy")
    low, high = (view.metric("dpo", f"validation_accuracy_{end}") for end in ("low", "high"))
    if accuracy is None:
        return missing("dpo left no accuracy.")
    interval = "" if low is None or high is None else f", 95 % interval {low:.3f} to {high:.3f}"
    return paragraph(
        f"dpo prefers the chosen answer in {accuracy:.3f} of the held-out pairs{interval}; chance is 0.5."
    )


def sizes(view: RunView) -> Html:
    """What the integers save and cost, and what every part takes on disk."""
    tables = view.tables("quantize")
    result = _emitted(tables["quantize_result"]) if "quantize_result" in tables else NOTHING
    rows = [
        [name, part, entry.contract, entry.num_rows, size(_part_bytes(view, name, part))]
        for name in view.stage_names
        if name in view.manifests
        for part, entry in view.manifests[name].parts.items()
    ]
    parts = table(["stage", "part", "contract", "rows", "on disk"], rows, "Every part of every artifact")
    return join([_charts(view, SIZES), result, parts if rows else missing("There is no artifact.")])


def _part_bytes(view: RunView, stage: str, part: str) -> int:
    return sum(f.num_bytes for f in view.manifests[stage].files if f.path.startswith(f"{part}/"))


def _charts(view: RunView, wanted: tuple[tuple[str, str], ...]) -> Html:
    found = [chart_svg(chart, stage) for stage, name in wanted if (chart := view.charts(stage).get(name))]
    absent = [f"{name} of {stage}" for stage, name in wanted if name not in view.charts(stage)]
    note = missing(f"Not there: {', '.join(absent)}.") if absent else NOTHING
    return join([tag("div", join(found), class_="charts") if found else NOTHING, note])


def _emitted(event: Event) -> Html:
    return table(event["columns"], event["rows"], event.get("caption") or event["name"].replace("_", " "))
