"""Two runs side by side: what was set differently, what came out differently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flows.report.record import RunRecord
from flows.run_report import gather
from stages.runtime.store import Store

SAMPLE_CHARACTERS = 160


def compare_runs(store: Store, old: RunRecord, new: RunRecord) -> str:
    """Markdown: changed settings, changed metrics with their difference, samples of the same prompts."""
    old_manifests, old_events = gather(store, old)
    new_manifests, new_events = gather(store, new)
    sections = [f"# {old.run_id} and {new.run_id}", "## Settings"]
    sections.append(_table(["setting", old.run_id, new.run_id], list(_settings(old.configs, new.configs))))
    sections.append("## Figures")
    sections.append(
        _table(["figure", old.run_id, new.run_id, "difference"], _metrics(old_manifests, new_manifests))
    )
    samples = list(_samples(old_events, new_events))
    if samples:
        sections += [
            "## Samples that differ",
            _table(["stage and kind", "prompt", old.run_id, new.run_id], samples),
        ]
    return "\n\n".join(sections) + "\n"


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[list[str]]:
    for stage in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(stage, {}), new.get(stage, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield [f"{stage}.{name}", json.dumps(before.get(name)), json.dumps(after.get(name))]


def _metrics(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for stage in [name for name in old if name in new]:
        before, after = old[stage].metrics, new[stage].metrics
        for name in [n for n in before if n in after and before[n] != after[n]]:
            if not _is_end_of_interval(name, before):
                told = [_with_interval(name, metrics) for metrics in (before, after)]
                rows.append([f"{stage} {name}", *told, f"{after[name] - before[name]:+.4g}"])
    return rows


def _is_end_of_interval(name: str, metrics: Mapping[str, float]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in metrics for end in ("_low", "_high"))


def _with_interval(name: str, metrics: Mapping[str, float]) -> str:
    """`0.71 (0.67 to 0.75)` where the stage gave an interval."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"
    return f"{metrics[name]:.6g}{interval}"


def _samples(
    old: Mapping[str, list[dict[str, Any]]], new: Mapping[str, list[dict[str, Any]]]
) -> Iterator[list[str]]:
    for stage in [name for name in old if name in new]:
        before, after = _last_samples(old[stage]), _last_samples(new[stage])
        for kind, prompt in [key for key in before if key in after and before[key] != after[key]]:
            texts = [_one_line(texts[kind, prompt]) for texts in (before, after)]
            yield [f"{stage} {kind}", _one_line(prompt), *texts]


def _last_samples(events: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {(e.get("kind", "text"), e["prompt"]): e["text"] for e in events if e["event"] == "sample"}


def _one_line(text: str) -> str:
    return text[:SAMPLE_CHARACTERS].replace("\n", " ⏎ ").replace("|", "\\|")


def _table(columns: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "no difference"
    lines = ["| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(lines)
