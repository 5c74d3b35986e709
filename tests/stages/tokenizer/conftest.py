"""A small multilingual corpus, and what the tokenizer stage makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_contracts import CONVERSATIONS, DOCUMENTS
from data_contracts.tables import write_part
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.tokenizer.run import run
from stages.tokenizer.spec import TokenizerConfig
from stages.whitebox.tokenizer import Tokenizer

LANGUAGE_OF_CHARACTER = {"灯": "zh", "ح": "ar", "ü": "other"}


@dataclass(frozen=True)
class Built:
    """Folders of one run of the stage, its returned metrics and its events."""

    inputs: dict[str, Path]
    outputs: dict[str, Path]
    metrics: dict[str, float]
    events: list[dict[str, Any]]

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.outputs["tokenizer"])


def language(text: str) -> str:
    """Good enough for the fixture."""
    return next((name for mark, name in LANGUAGE_OF_CHARACTER.items() if mark in text), "en")


def document_rows(text: str) -> list[dict[str, Any]]:
    """Each paragraph is a document, in both splits, with its language."""
    rows = []
    for split in ("train", "validation"):
        for number, paragraph in enumerate(p for p in text.split("\n\n") if p.strip()):
            rows.append(
                {
                    "doc_id": f"{split}-{number}",
                    "source": "fixture",
                    "title": f"paragraph {number}",
                    "kind": "text",
                    "language": language(paragraph),
                    "split": split,
                    "num_bytes": len(paragraph.encode()),
                    "text": paragraph,
                }
            )
    return rows


def conversation_rows() -> list[dict[str, Any]]:
    """Ten conversations with a tool call each."""
    rows = []
    for number in range(10):
        call = {"name": "calculator", "arguments": json.dumps({"expression": f"{number}+12"})}
        messages = [
            {"role": "user", "content": f"What is {number}+12?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(number + 12)},
            {"role": "assistant", "content": f"{number}+12 is {number + 12}."},
        ]
        split = "train" if number else "validation"
        rows.append(
            {"conversation_id": f"c{number}", "source": "fixture", "kind": "tool", "split": split}
            | {"messages": messages}
        )
    return rows


@pytest.fixture(scope="session")
def run_tokenizer(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """Call with config fields (and `documents=` rows) to run the stage in a fresh folder."""

    def build(documents: list[dict[str, Any]] | None = None, **fields: Any) -> Built:
        root = tmp_path_factory.mktemp("tokenizer")
        text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
        write_part(root / "documents", DOCUMENTS, document_rows(text) if documents is None else documents)
        write_part(root / "conversations", CONVERSATIONS, conversation_rows())
        inputs = {role: root / role for role in ("documents", "conversations")}
        outputs = {part: root / "out" / part for part in ("tokenizer", "tokens")}
        for folder in outputs.values():
            folder.mkdir(parents=True)
        log = EventLog(root / "work" / "events.jsonl", as_json=False, stream=io.StringIO())
        config = TokenizerConfig(**{"vocab_size": 600, **fields})
        metrics = run(config, inputs, outputs, StageSession("tokenizer", root / "work", log))
        events = [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]
        return Built(inputs, outputs, metrics, events)

    return build


@pytest.fixture(scope="session")
def built(run_tokenizer: Callable[..., Built]) -> Built:
    """The stage run once with 600 pieces."""
    return run_tokenizer()
