"""`glassworks look`: a page about the inside of one model. A program of its own measures what needs torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flows.commands import MODELS
from flows.records import artifact_of, newest_with, read_record
from flows.report.charts import chart_svg
from flows.report.markup import Html, join, table, tag, text
from flows.report.style import STYLE
from stages.runtime.errors import UserError
from stages.runtime.events import read_events
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.store import Store

LOOKED_INTO = ("base", "sft", "dpo")


def look(store: Store, run: str | None, model: str, extra: list[str], output: Path) -> int:
    """Measure a model of a run and write the page to `output`; returns the exit code.

    `extra` goes to `stages.pretrain.look`. Raises UserError for a model that is not in float32.
    """
    if model not in LOOKED_INTO:
        raise UserError(
            f"there is no looking into {model!r}", hint=f"models to look into: {', '.join(LOOKED_INTO)}"
        )
    stage, part = MODELS[model]
    record = read_record(store, run) if run else newest_with(store, stage, "tokenizer")
    folder = artifact_of(store, record, stage).part(part)
    tokens = artifact_of(store, record, "tokenizer").part("tokens")
    with tempfile.TemporaryDirectory() as work:
        events = Path(work) / "events.jsonl"
        command = [sys.executable, "-m", "stages.pretrain.look", "--model", str(folder)]
        command += ["--tokens", str(tokens), "--events", str(events), *extra]
        code = subprocess.run(command, check=False, cwd=REPOSITORY).returncode
        if code == 0:
            output.write_text(
                page(f"{model} of {record.run_id}", list(read_events(events))), encoding="utf-8"
            )
            print(output)
    return code


def page(name: str, events: list[dict[str, Any]]) -> str:
    """The charts, maps and tables as one HTML file that needs nothing else."""
    figures = join(chart_svg(event) for event in events if event["event"] == "chart")
    tables = [
        table(event["columns"], event["rows"], event["caption"])
        for event in events
        if event["event"] == "table"
    ]
    title = f"Inside {name}"
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", text(title)),
            tag("style", Html(STYLE)),
        ]
    )
    header = tag("header", tag("h1", text(title)))
    body = tag("body", header, tag("main", tag("div", figures, class_="charts"), *tables))
    return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"
