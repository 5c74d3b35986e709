"""`glassworks show`: an artifact as a person can read it: tables, headers, tokens. Needs no torch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.numpy import load_file

from data_contracts.contract import safetensors_header
from data_contracts.tables import part_files
from flows.vocabulary import read_token_bytes
from stages.runtime.events import EVENTS_NAME, format_seconds, read_events
from stages.runtime.store import Artifact

MASKED = -100
PADDING = 0
"""Conversations of a row count from 1."""
CELL_CHARACTERS = 200
SHOWN_TOKENS = 24


def show_artifact(artifact: Artifact, console: Console, rows: int = 3) -> None:
    """Print what the artifact is, what it holds, and a few of its rows, samples or tokens."""
    manifest = artifact.manifest
    console.print(f"[bold]{manifest.stage}[/bold] {manifest.fingerprint}", highlight=False)
    console.print(str(artifact.folder), markup=False, soft_wrap=True)
    made = manifest.provenance
    peak = made.peak_memory_bytes / 2**20
    console.print(f"made {made.started_at} in {format_seconds(made.seconds)}, peak memory {peak:,.0f} MiB")
    for role, entry in manifest.inputs.items():
        console.print(f"  reads {role}: {entry.stage} {entry.fingerprint} {entry.contract}", markup=False)
    for name, value in manifest.metrics.items():
        console.print(f"  {name} = {value:,.6g}", markup=False)
    for part in manifest.parts:
        _show_part(artifact, part, console, rows)
    _show_samples(artifact, console)


def _show_samples(artifact: Artifact, console: Console) -> None:
    """What the finished model wrote: the last sample of each prompt."""
    samples = [event for event in read_events(artifact.folder / EVENTS_NAME) if event["event"] == "sample"]
    latest = {(event.get("kind"), event["prompt"]): event for event in samples}
    if latest:
        console.print("\n[bold]samples[/bold]", highlight=False)
    for event in latest.values():
        console.print(Text.assemble("  ", (event["prompt"], "bold"), " -> ", event["text"].strip()))


def _show_part(artifact: Artifact, part: str, console: Console, rows: int) -> None:
    entry = artifact.manifest.parts[part]
    counted = f", {entry.num_rows:,} rows" if entry.num_rows is not None else ""
    console.print(f"\n[bold]{part}[/bold]: {entry.contract}{counted}", highlight=False)
    folder = artifact.part(part)
    if part == "rejects":
        _show_reasons(folder, console, rows)
    elif part == "preview":
        _show_preview(folder, artifact.part("model"), console, rows)
    elif part_files(folder):
        _show_rows(folder, console, rows)
    else:
        if part == "tokenizer":
            _show_vocabulary(folder, console)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            console.print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes", markup=False)
            if path.suffix == ".safetensors":
                console.print(f"    {_tensors(path)}", markup=False)


def _show_vocabulary(folder: Path, console: Console) -> None:
    """How many tokens of which kind, and some of the learned ones, evenly spread over the ids."""
    _, *lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    kinds = Counter(row[1] for row in rows)
    console.print(f"  {len(rows):,} tokens: " + ", ".join(f"{kind} {n:,}" for kind, n in kinds.items()))
    learned = [f"{row[0]} {row[2]}" for row in rows if row[1] == "text"]
    shown = learned[:: max(1, len(learned) // SHOWN_TOKENS)][:SHOWN_TOKENS]
    console.print(Text("  " + "  ".join(shown)), soft_wrap=True)


def _tensors(path: Path) -> str:
    header = safetensors_header(path)
    named = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    shown = ", ".join(f"{name} {entry['dtype']}{entry['shape']}" for name, entry in named[:4])
    return shown + (f" and {len(named) - 4} more tensors" if len(named) > 4 else "")


def _first_rows(folder: Path, rows: int) -> list[dict[str, Any]]:
    with pq.ParquetFile(part_files(folder)[0]) as file:
        for batch in file.iter_batches(batch_size=max(rows, 1)):
            found: list[dict[str, Any]] = batch.to_pylist()
            return found[:rows]
    return []


def _show_rows(folder: Path, console: Console, rows: int) -> None:
    for row in _first_rows(folder, rows):
        for name, value in row.items():
            text = _readable(value)
            cut = (
                text
                if len(text) <= CELL_CHARACTERS
                else f"{text[:CELL_CHARACTERS]}... ({len(text):,} characters)"
            )
            console.print(Text.assemble("  ", (name, "dim"), ": ", cut.replace("\n", "\\n")), soft_wrap=True)
        console.print()


def _readable(value: Any) -> str:
    """Text as it is, bytes as hex, a conversation as `user: ... / assistant: ...`, all else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        return " / ".join(f"{m['role']}: {_said(m)}" for m in value)
    if isinstance(value, dict) and "role" in value:
        return _said(value)
    return json.dumps(value, ensure_ascii=False)


def _said(message: dict[str, Any]) -> str:
    """`(what was thought) what was said [calls]`."""
    thought, calls = message.get("reasoning"), message.get("tool_calls")
    parts = (f"({thought})" if thought else "", message["content"], _calls_told(calls) if calls else "")
    return " ".join(filter(None, parts))


def _calls_told(calls: Any) -> str:
    if isinstance(calls, str):  # conversations@1
        return calls
    return ", ".join(f"{call['name']}({call['arguments']})" for call in calls)


def _show_reasons(folder: Path, console: Console, rows: int) -> None:
    """Dropped documents by step and reason, with a few of each."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for path in part_files(folder):
        for row in pq.read_table(path, columns=["step", "reason", "title", "detail"]).to_pylist():
            key = (row["step"], row["reason"])
            counts[key] += 1
            if len(examples.setdefault(key, [])) < rows:
                examples[key].append(f"{row['title']} ({row['detail']})" if row["detail"] else row["title"])
    table = Table("step", "reason", "documents", "examples", box=None)
    for (step, reason), count in counts.most_common():
        table.add_row(step, reason, f"{count:,}", "; ".join(examples[step, reason]))
    console.print(table)


def _show_preview(folder: Path, tokenizer_folder: Path, console: Console, rows: int) -> None:
    """The first training batch: trained tokens bright, masked ones dim, a line between conversations."""
    tensors = load_file(folder / "preview.safetensors")
    pieces = read_token_bytes(tokenizer_folder / "tokenizer.json")
    console.print("bright: the loss counts this token; dim: it is only read")
    for row in range(min(rows, len(tensors["ids"]))):
        ids, labels, documents = (tensors[name][row] for name in ("ids", "labels", "document_ids"))
        counted = int((labels != MASKED).sum())
        console.rule(
            f"row {row}: the loss counts {counted} of {int((documents != PADDING).sum())} tokens", style="dim"
        )
        ends_cut = tensors["ends_cut"][row] if "ends_cut" in tensors else [0] * len(ids)
        console.print(Text.assemble(*_coloured(ids, labels, documents, ends_cut, pieces)))


def _coloured(
    ids: Any, labels: Any, documents: Any, ends_cut: Any, pieces: list[bytes]
) -> Iterator[tuple[str, str]]:
    """Stretches of text with their style; bytes that are one character together are put together."""
    columns = zip(ids, labels, documents, ends_cut, strict=True)
    tokens = [(int(d), int(t) != MASKED, pieces[int(i)], bool(c)) for i, t, d, c in columns if d != PADDING]
    before = tokens[0][0] if tokens else 0
    for (document, counts), grouped in itertools.groupby(tokens, key=lambda token: token[:2]):
        if document != before:
            yield "\n┄┄┄┄\n", "dim"
            before = document
        stretch = list(grouped)
        text = b"".join(piece for _, _, piece, _ in stretch).decode("utf-8", "replace")
        yield text, "bold green" if counts else "dim"
        if stretch[-1][3]:
            yield " ✂ cut here: longer than a row", "yellow"
