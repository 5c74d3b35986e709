"""The results as a person reads them: tables, charts, and the figures for the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.benchmark_eval.results import ALL_TASKS, Row
from stages.runtime.session import StageSession
from stages.whitebox.multiple_choice import CHAT, PLAIN

BITS = "bits_per_byte"


def show(rows: Sequence[Row], metric: str, num_available: int, session: StageSession) -> None:
    """Emit tables and charts. `metric` is the accuracy to show, `num_available` all questions there were."""
    accuracies = _select(rows, metric, ALL_TASKS)
    bits = [row for row in rows if row["metric"] == BITS]
    num_documents = bits[0]["num_items"]
    session.table(
        "benchmark_bits_per_byte",
        ["model", "bits per byte", "95 % interval"],
        [[row["model"], round(row["value"], 4), _interval(row, 3)] for row in bits],
        caption=f"{num_documents} held-out documents, {bits[0]['protocol']}; the interval is over documents",
    )
    if accuracies:
        shown = f"{accuracies[0]['num_items']} of {num_available} questions"
        session.table(
            "benchmark_accuracy",
            ["model", "protocol", metric, "95 % interval", "chance", "best constant", "verdict"],
            [_accuracy_cells(row) for row in accuracies],
            caption=f"{shown}; {metric} of the choice that the model finds most likely",
        )
        _show_tasks(rows, metric, session)
    session.table(
        "benchmark_comparisons",
        ["models", "measured by", "protocol", "difference", "95 % interval", "verdict"],
        [_comparison_cells(row) for row in _comparisons(rows, metric)],
        caption="paired: the same documents and questions; p by McNemar's exact test, one test at a time",
    )
    _draw(bits, accuracies, metric, session)


def headline(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Per model its bits per byte and its accuracy, a chat model's in the chat format."""
    found = {f"{row['model']}_{BITS}": row["value"] for row in rows if row["metric"] == BITS}
    accuracies = _select(rows, metric, ALL_TASKS)
    for row in accuracies:  # chat comes after plain, and so wins
        found[f"{row['model']}_{metric}"] = row["value"]
    if accuracies:
        found |= {name: accuracies[0][name] for name in ("chance", "best_constant")}
        found["num_questions"] = accuracies[0]["num_items"]
    return found


def _select(rows: Sequence[Row], metric: str, task: str) -> list[Row]:
    return [row for row in rows if row["metric"] == metric and row["task"] == task]


def _comparisons(rows: Sequence[Row], metric: str) -> list[Row]:
    wanted = {f"{metric}_difference", f"{BITS}_difference"}
    return [row for row in rows if row["metric"] in wanted]


def _show_tasks(rows: Sequence[Row], metric: str, session: StageSession) -> None:
    found = [row for row in rows if row["metric"] == metric and row["task"] != ALL_TASKS]
    if len({row["task"] for row in found}) > 1:
        session.table(
            "benchmark_tasks",
            [
                "task",
                "questions",
                "model",
                "protocol",
                metric,
                "95 % interval",
                "chance",
                "best constant",
                "verdict",
            ],
            [
                [row["task"], row["num_items"], *_accuracy_cells(row)]
                for row in sorted(found, key=lambda row: row["task"])
            ],
        )


def _accuracy_cells(row: Row) -> list[Any]:
    return [
        row["model"],
        row["protocol"],
        round(row["value"], 3),
        _interval(row, 3),
        round(row["chance"], 3),
        round(row["best_constant"], 3),
        row["verdict"],
    ]


def _comparison_cells(row: Row) -> list[Any]:
    name = row["metric"].removesuffix("_difference")
    return [row["model"], name, row["protocol"], f"{row['value']:+.4f}", _interval(row, 4), row["verdict"]]


def _interval(row: Row, digits: int) -> str:
    return f"{row['ci_low']:.{digits}f} to {row['ci_high']:.{digits}f}"


def _bars(rows: Sequence[Row]) -> list[list[Any]]:
    return [[row["model"], row["value"], row["ci_low"], row["ci_high"]] for row in rows]


def _draw(bits: Sequence[Row], accuracies: Sequence[Row], metric: str, session: StageSession) -> None:
    session.chart(
        "benchmark_bits_per_byte",
        title="Held-out text",
        x_label="model",
        y_label="bits per byte",
        kind="bar",
        series={"bits per byte": _bars(bits)},
    )
    if not accuracies:
        return
    series = {
        protocol: _bars([row for row in accuracies if row["protocol"] == protocol])
        for protocol in (PLAIN, CHAT)
    }
    models = list(dict.fromkeys(row["model"] for row in accuracies))
    for name in ("chance", "best_constant"):
        series[name.replace("_", " ")] = [[model, accuracies[0][name]] for model in models]
    session.chart(
        "benchmark_accuracy",
        title="Multiple choice, against guessing",
        x_label="model",
        y_label=metric,
        kind="bar",
        series=series,
    )
