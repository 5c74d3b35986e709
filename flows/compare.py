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
        sections += ["## Samples that differ", _table(["stage", "prompt", old.run_id, new.run_id], samples)]
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
        for name in [n for n in before if n in after]:
            if before[name] != after[name]:
                difference = after[name] - before[name]
                rows.append(
                    [f"{stage} {name}", f"{before[name]:.6g}", f"{after[name]:.6g}", f"{difference:+.4g}"]
                )
    return rows


def _samples(
    old: Mapping[str, list[dict[str, Any]]], new: Mapping[str, list[dict[str, Any]]]
) -> Iterator[list[str]]:
    for stage in [name for name in old if name in new]:
        before, after = _last_samples(old[stage]), _last_samples(new[stage])
        for prompt in [p for p in before if p in after]:
            if before[prompt] != after[prompt]:
                yield [stage, *(_one_line(text) for text in (prompt, before[prompt], after[prompt]))]


def _last_samples(events: list[dict[str, Any]]) -> dict[str, str]:
    return {e["prompt"]: e["text"] for e in events if e["event"] == "sample"}


def _one_line(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1][:SAMPLE_CHARACTERS].replace("|", "\\|")


def _table(columns: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "no difference"
    lines = ["| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(lines)
