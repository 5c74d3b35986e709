"""What fine-tuning stages start from, in a few kilobytes: a tokenizer, token shards and a base model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import CONVERSATIONS, DOCUMENTS
from data_contracts.tables import write_part
from stages.runtime.events import EventLog, read_events
from stages.runtime.session import StageSession
from stages.tokenizer.run import run as run_tokenizer_stage
from stages.tokenizer.spec import TokenizerConfig
from stages.whitebox.checkpoint import save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer


@dataclass(frozen=True)
class BaseModel:
    """Folders that the tokenizer stage and pretraining leave behind."""

    tokenizer_folder: Path
    tokens: Path
    model: Path

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.tokenizer_folder)


@dataclass(frozen=True)
class Session:
    """A session of a stage with its events at hand."""

    session: StageSession
    log: EventLog

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(read_events(self.log.path))


def question(number: int) -> list[dict[str, Any]]:
    """A sum, the calculator's answer, and the sentence that reports it."""
    call = {"name": "calculator", "arguments": json.dumps({"expression": f"{number}+12"})}
    return [
        {"role": "user", "content": f"What is {number}+12?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": str(number + 12)},
        {"role": "assistant", "content": f"{number}+12 is {number + 12}."},
    ]


def conversation_row(number: int) -> dict[str, Any]:
    """Every fifth one is held out; every fourth one has no tool."""
    qa = [
        {"role": "user", "content": f"Who lights lamp {number}?"},
        {"role": "assistant", "content": f"The keeper lights lamp {number}."},
    ]
    return {
        "conversation_id": f"c{number:03d}",
        "source": "fixture",
        "kind": "qa" if number % 4 == 0 else "tool",
        "split": "validation" if number % 5 == 0 else "train",
        "messages": qa if number % 4 == 0 else question(number),
    }


def document_row(number: int, text: str) -> dict[str, Any]:
    """Every third one is held out."""
    return {
        "doc_id": f"d{number}",
        "source": "fixture",
        "title": "",
        "kind": "text",
        "language": "en",
        "split": "validation" if number % 3 == 0 else "train",
        "num_bytes": len(text.encode()),
        "text": text,
    }


@pytest.fixture(scope="session")
def open_session() -> Callable[..., Session]:
    """Call with a name and a work folder to get a session as the frame would give one."""

    def make(stage: str, work: Path) -> Session:
        log = EventLog(work / "events.jsonl", as_json=True, stream=io.StringIO())
        return Session(StageSession(stage, work, log), log)

    return make


@pytest.fixture(scope="session")
def conversations_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations, eight of them held out."""
    folder = tmp_path_factory.mktemp("conversations")
    write_part(folder, CONVERSATIONS, map(conversation_row, range(40)))
    return folder


@pytest.fixture(scope="session")
def base_model(
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    conversations_part: Path,
    open_session: Callable[..., Session],
) -> BaseModel:
    """A tokenizer of 600 pieces, its token shards, and an untrained model of two layers."""
    root = tmp_path_factory.mktemp("base")
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    write_part(root / "documents", DOCUMENTS, map(document_row, range(99), text.split("\n\n")))
    outputs = {"tokenizer": root / "tokenizer", "tokens": root / "tokens"}
    for folder in outputs.values():
        folder.mkdir()
    inputs = {"documents": root / "documents", "conversations": conversations_part}
    session = open_session("tokenizer", root / "work").session
    run_tokenizer_stage(TokenizerConfig(vocab_size=600), inputs, outputs, session)
    torch.manual_seed(0)
    model = CausalLM(ModelConfig(600, 32, 64, 2, 2, 1, 16, max_position_embeddings=128))
    save_model(model, root / "model")
    return BaseModel(outputs["tokenizer"], outputs["tokens"], root / "model")
