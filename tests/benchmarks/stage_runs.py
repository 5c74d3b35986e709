"""Runs of the pretrain stage for benchmarks: remembered in a JSON file, so that a script that was stopped goes on.

A run is the stage itself, as a user has it, on token shards that are there or on the documentation of this
machine's Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages.pretrain.run import run
from stages.pretrain.spec import PretrainConfig
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards

REPOSITORY = Path(__file__).resolve().parents[2]
STORE = Path("store/benchmarks")
COMMON = {
    "context_tokens": 256,
    "evaluations": 1,
    "validation_tokens": 2_000,
    "final_validation_tokens": 60_000,
    "sample_prompts": ["The module"],
    "sample_tokens": 1,
    "checkpoint_every_seconds": 1e6,
    "compile": "off",
}
"""What every run has: little is scored on the way, so that nearly all of the time is training."""


class Runs:
    """The results so far; `of` trains what is not among them."""

    def __init__(self, tokens: Path, tokenizer: Path, results: Path) -> None:
        self.inputs = {"tokens": tokens, "tokenizer": tokenizer}
        self.results = results
        self.known: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.is_file() else {}
        self.text = _digest(tokens)

    def of(self, **changes: Any) -> dict[str, float]:
        """The stage's metrics and `cpu_seconds` for these settings, other settings as in `COMMON`."""
        settings = {**COMMON, **changes}
        key = f"{self.text} {json.dumps(settings, sort_keys=True)}"
        if key not in self.known:
            self.known[key] = self._train(settings)
            self.results.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.results.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self.known, indent=1))
            unfinished.replace(self.results)
        return self.known[key]

    def _train(self, settings: dict[str, Any]) -> dict[str, Any]:
        started = sum(os.times()[:4])
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as quiet:
            work = Path(folder) / "work"
            session = StageSession("pretrain", work, EventLog(work / "events", as_json=False, stream=quiet))
            metrics = run(PretrainConfig(**settings), self.inputs, {"model": Path(folder) / "model"}, session)
        return {**metrics, "cpu_seconds": round(sum(os.times()[:4]) - started, 1)}


def parser_of(description: str | None, results: str) -> argparse.ArgumentParser:
    """The options that both scripts have: the text, where to build it, where to keep results, threads."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path, help="token shards; default: the documentation of this Python")
    parser.add_argument("--tokenizer", type=Path, help="default: `tokenizer` beside the shards")
    parser.add_argument(
        "--store", type=Path, default=Path("benchmark-store"), help="where to build the default"
    )
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--threads", type=int, default=0)
    return parser


def inputs_of(tokens: Path | None, tokenizer: Path | None, store: Path) -> tuple[Path, Path]:
    """The folders that were given, or those of a tokenizer artifact in `store`, which is built where it lacks."""
    if tokens is not None:
        return tokens, tokenizer or tokens.parent / "tokenizer"
    command = [sys.executable, "-m", "flows.cli", "build", "--until", "tokenizer", "--store", str(store)]
    if not list(store.glob("artifacts/tokenizer/*/manifest.json")):
        print("building tokens of the documentation of this Python", flush=True)
        subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    newest = max(store.glob("artifacts/tokenizer/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return newest.parent / "tokens", newest.parent / "tokenizer"


def describe(tokens: Path) -> str:
    """One line about the text."""
    train, validation = TokenShards(tokens, "train"), TokenShards(tokens, "validation")
    return (
        f"{train.num_tokens:,} training tokens, vocabulary {train.vocab_size:,}, "
        f"{bytes_per_token(validation):.2f} bytes per token"
    )


def bytes_per_token(shards: TokenShards) -> float:
    """Bytes of text per token that is scored: neither BOS nor EOS."""
    return float(shards.num_bytes.sum()) / (shards.num_tokens - 2 * shards.num_documents)


def _digest(tokens: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(tokens.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:12]
