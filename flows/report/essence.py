"""The run in ten lines: what came out, against what it has to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_contracts.manifest import Manifest
from flows.report.formats import clean, duration, large, percent, size
from flows.report.record import RunRecord
from flows.report.run_view import RunView


@dataclass(frozen=True)
class Line:
    """One line: what it is about and what there is to say."""

    label: str
    text: str


def essence(
    run: RunRecord, manifests: Mapping[str, Manifest], events: Mapping[str, list[dict[str, Any]]]
) -> list[str]:
    """Ten lines for the terminal, whatever is missing; fewer of a run that was to end earlier."""
    lines = essence_lines(RunView(run, manifests, events))
    width = max(len(line.label) for line in lines)
    return [f"{line.label:<{width}}  {clean(line.text)}" for line in lines]


def essence_lines(view: RunView) -> list[Line]:
    """The same lines with label and text apart; none of a stage that the run was not asked for."""
    of_stages: list[tuple[str, str, Callable[[RunView], str]]] = [
        ("model", "pretrain", _model),
        ("base", "pretrain", _base),
        ("sft", "sft", _sft),
        ("dpo", "dpo", _dpo),
        ("int8", "quantize", lambda v: _quantized(v, "int8")),
        ("int4", "quantize", lambda v: _quantized(v, "int4")),
        ("search", "vector_store", _search),
        ("agent", "agent_smoke", _agent),
        ("benchmark", "benchmark_eval", _benchmark),
    ]
    asked = set(view.stage_names) or {stage for _, stage, _ in of_stages}
    told = [Line(label, _or_state(view, stage, tell)) for label, stage, tell in of_stages if stage in asked]
    return [*told, Line("cost", _cost(view))]


def _or_state(view: RunView, stage: str, tell: Callable[[RunView], str]) -> str:
    """What `tell` says, or in what state the stage is when it left nothing to tell."""
    if stage in view.manifests:
        return tell(view) or f"{stage} reports no figures"
    record = view.stage(stage)
    why = f": {record.error.splitlines()[0]}" if record.error.strip() else ""
    state = record.outcome if record.outcome in ("failed", "not reached") else "no manifest"
    return f"{stage} {state}{why}"


def _told(parts: Sequence[str | None]) -> str:
    return ", ".join(part for part in parts if part)


def _figure(template: str, value: float | None) -> str | None:
    return None if value is None else template.format(value)


def _with_interval(view: RunView, stage: str, name: str, shown: Callable[[float], str]) -> str | None:
    """`0.712 (0.671 to 0.753)`; None without the figure."""
    value = view.metric(stage, name)
    low, high = view.metric(stage, f"{name}_low"), view.metric(stage, f"{name}_high")
    if value is None:
        return None
    if low is None or high is None:
        return shown(value)
    return f"{shown(value)} ({shown(low).removesuffix(' %')} to {shown(high)})"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _model(view: RunView) -> str:
    parameters, tokens = view.metric("pretrain", "num_params"), view.metric("pretrain", "train_tokens")
    rows = view.tables("pretrain").get("pretrain_recipe", {}).get("rows", [])
    shape = next((f" ({row[1]})" for row in rows if row and row[0] == "layers x width"), "")
    return _told(
        [
            None if parameters is None else f"{large(parameters)} parameters{shape}",
            None if tokens is None else f"{large(tokens)} tokens of pretraining",
            _figure("{:,.0f} tokens/s", view.metric("pretrain", "tokens_per_second")),
        ]
    )


def _base(view: RunView) -> str:
    bits = view.metric("pretrain", "validation_bits_per_byte")
    if bits is None:
        return ""
    against = []
    for name, metric in (("gzip -9", "gzip_bits_per_byte"), ("xz -9", "xz_bits_per_byte")):
        reached = view.metric("pretrain", metric)
        if reached is not None:
            against.append(f"{'below' if bits < reached else 'NOT below'} {name} ({reached:.3f})")
    return _told([f"{bits:.3f} bits per byte on held-out text", *against])


def _sft(view: RunView) -> str:
    before, after = (view.metric("sft", f"{name}validation_loss") for name in ("base_", ""))
    calls = view.metric("sft", "exact_tool_calls")
    loss = None if after is None else f"loss on the assistant's words {after:.3f}"
    if loss and before is not None:
        loss += f" (base {before:.3f})"
    return _told(
        [
            loss,
            None if calls is None else f"tool calls exact {percent(calls)}",
            _figure("{:+.3f} bits per byte", view.metric("sft", "bits_per_byte_increase")),
        ]
    )


def _dpo(view: RunView) -> str:
    accuracy = _with_interval(view, "dpo", "validation_accuracy", _three)
    low, pairs = view.metric("dpo", "validation_accuracy_low"), view.metric("dpo", "num_validation_pairs")
    verdict = None if low is None else ("above chance" if low > 0.5 else "cannot be told from chance")
    return _told(
        [
            None if accuracy is None else f"held-out accuracy {accuracy}",
            None if verdict is None else verdict + (f" on {pairs:,.0f} pairs" if pairs else ""),
            _figure("{:+.3f} bits per byte", view.metric("dpo", "bits_per_byte_increase")),
        ]
    )


def _quantized(view: RunView, name: str) -> str:
    num_bytes, full = (view.metric("quantize", f"{kind}_bytes") for kind in (name, "float32"))
    stored = None if num_bytes is None else size(num_bytes)
    if stored and full:
        stored += f" of {size(full)}"
    return _told(
        [
            _figure("{:+.4f} bits per byte", view.metric("quantize", f"{name}_increase")),
            stored,
            _figure("{:.2f} x float32's speed", view.metric("quantize", f"{name}_times_float_speed")),
        ]
    )


def _search(view: RunView) -> str:
    ndcg = _with_interval(view, "vector_store", "ndcg_at_10_fused", _three)
    recall = _with_interval(view, "vector_store", "recall_at_10_fused", _three)
    legs = [
        f"{leg} {value:.3f}"
        for leg in ("bm25", "dense")
        if (value := view.metric("vector_store", f"ndcg_at_10_{leg}")) is not None
    ]
    return _told(
        [
            None if ndcg is None else f"nDCG@10 {ndcg}" + (f" ({', '.join(legs)})" if legs else ""),
            None if recall is None else f"recall@10 {recall}",
            _figure("Chroma {:.3f} of exact search", view.metric("vector_store", "recall_at_10_vs_exact")),
        ]
    )


def _agent(view: RunView) -> str:
    seen = _with_interval(view, "agent_smoke", "exact_call_fraction_seen", percent)
    unseen = _with_interval(view, "agent_smoke", "exact_call_fraction_unseen", percent)
    valid = view.metric("agent_smoke", "valid_call_fraction")
    return _told(
        [
            None if seen is None else f"exact calls {seen} with seen phrasings",
            None if unseen is None else f"{unseen} with unseen ones",
            None if valid is None else f"valid calls {percent(valid)}",
        ]
    )


def _benchmark(view: RunView) -> str:
    tables = view.tables("benchmark_eval")
    return _told(
        [_accuracy(tables.get("benchmark_accuracy")), _comparison(tables.get("benchmark_comparisons"))]
    )


def _accuracy(table: dict[str, Any] | None) -> str | None:
    """The last float model's row, in the chat format where there is one."""
    rows = [dict(zip(table["columns"], row, strict=False)) for row in table["rows"]] if table else []
    chosen = [row for name in ("base", "sft", "dpo") for row in rows if row.get("model") == name]
    if not chosen or table is None:
        return None
    row, metric = chosen[-1], table["columns"][2]
    against = f"chance {row.get('chance')}, best constant {row.get('best constant')}"
    interval = f"{row.get('95 % interval')}; {against}"
    return f"{row['model']} {metric} {row.get(metric)} ({interval}): {row.get('verdict') or 'no verdict'}"


def _comparison(table: dict[str, Any] | None) -> str | None:
    rows = [dict(zip(table["columns"], row, strict=False)) for row in table["rows"]] if table else []
    by_questions = [row for row in rows if row.get("measured by") != "bits_per_byte" and row.get("verdict")]
    if not by_questions:
        return None
    apart = [row["verdict"].split(" (p")[0] for row in by_questions]
    apart = [verdict for verdict in dict.fromkeys(apart) if not verdict.startswith("cannot tell")]
    return "; ".join(apart) if apart else "the models cannot be told apart by the questions"


def _cost(view: RunView) -> str:
    memory = [(m.provenance.peak_memory_bytes, name) for name, m in sorted(view.manifests.items())]
    stages = view.record.stages
    reused = sum(stage.outcome in ("hit", "trusted") for stage in stages)
    prices = [m.provenance.cost for m in view.manifests.values() if m.provenance.cost is not None]
    return _told(
        [
            f"{duration(view.record.seconds)} for {len(stages)} stages ({reused} reused)",
            f"peak memory {size(max(memory)[0])} in {max(memory)[1]}" if memory else "no memory measured",
            f"{sum(prices):.2f} in money for all artifacts" if prices else None,
        ]
    )
