"""A small tokenizer and its shards, and a session that remembers what it was told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from data_contracts.tokenizer_bundle import COMPRESSION_SCHEMA, IDLE_SCHEMA, QUALITY_SCHEMA
from stages.pretrain.spec import PretrainConfig
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.tokenizer.hugging_face import roles, special_tokens_map, tokenizer_config, tokenizer_json
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.chat_format import CHAT_TEMPLATE
from stages.whitebox.tokenizer import Tokenizer

ANIMALS = ("hen", "goat", "otter", "heron", "mole", "newt", "crane", "badger")
PLACES = ("barn", "pond", "meadow", "attic", "garden", "cellar")
VERBS = ("sleeps", "waits", "sings", "hides", "eats")


def sentence(number: int) -> str:
    """Short texts of one pattern: a few hundred bytes of training teach it."""
    animal, place, verb = ANIMALS[number % 8], PLACES[number % 6], VERBS[number % 5]
    return f"The {animal} {verb} in the {place}.\n  - In the {place} there is one {animal}.\n"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same bits on every machine."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts that the stage reads: `tokenizer` and `tokens`."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = [sentence(number) for number in range(240)]
    tokenizer = Tokenizer(train_sentencepiece(texts, 320, 1.0))
    write_tokenizer(tokenizer, folder / "tokenizer")
    write_tokens(tokenizer, folder / "tokens", texts)
    return {"tokenizer": folder / "tokenizer", "tokens": folder / "tokens"}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """A tokenizer bundle under its contract."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(tokenizer.model_proto)
    (folder / "vocab.txt").write_text("id\tpiece\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(roles(tokenizer))))
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens_map(roles(tokenizer))))
    tables = {"compression": COMPRESSION_SCHEMA, "quality": QUALITY_SCHEMA, "idle_pieces": IDLE_SCHEMA}
    for name, schema in tables.items():
        pq.write_table(schema.empty_table(), folder / f"{name}.parquet")


def write_tokens(tokenizer: Tokenizer, folder: Path, texts: list[str]) -> None:
    """Token shards under their contract; every eighth text is held out."""
    folder.mkdir()
    for split, held_out in (("train", False), ("validation", True)):
        chosen = [text for number, text in enumerate(texts) if (number % 8 == 3) is held_out]
        documents = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in chosen]
        save_file(
            {
                "tokens": np.concatenate(documents).astype(np.uint16),
                "doc_offsets": np.cumsum([0, *map(len, documents)]).astype(np.int64),
                "doc_num_bytes": np.array([len(text.encode()) for text in chosen], dtype=np.int64),
            },
            folder / f"{split}-00000.safetensors",
            metadata={
                "contract": "token_shards v1",
                "vocab_size": str(tokenizer.vocab_size),
                "tokenizer_sha256": tokenizer.sha256,
                "split": split,
            },
        )


@pytest.fixture
def config() -> PretrainConfig:
    """A run of a few seconds."""
    return PretrainConfig(
        depth=1,
        context_tokens=32,
        train_tokens=6_000,
        global_batch_tokens=256,
        micro_batch_size=4,
        evaluations=2,
        validation_tokens=200,
        num_threads=1,
        sample_prompts=("The hen",),
        sample_tokens=6,
    )


@pytest.fixture
def session(tmp_path: Path) -> StageSession:
    """A session whose events stand in `tmp_path/work/events.jsonl`."""
    work = tmp_path / "work"
    return StageSession("pretrain", work, EventLog(work / "events.jsonl", as_json=False))


@pytest.fixture
def read_events(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """What the session was told, of one kind."""

    def read(kind: str) -> list[dict[str, Any]]:
        lines = (tmp_path / "work" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    return read


class Program:
    """The stage as its own process, as the flows start it."""

    def __init__(self, folder: Path, inputs: dict[str, Path], config: PretrainConfig) -> None:
        self.output, self.work = folder / "artifact", folder / "work"
        (folder / "config.json").write_text(config.model_dump_json())
        self.command = [sys.executable, "-m", "stages.pretrain", "--config", str(folder / "config.json")]
        self.command += [f"--input={role}={path}" for role, path in inputs.items()]
        self.command += [f"--output={self.output}", f"--work={self.work}"]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self) -> str:
        process = self.start()
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        return text

    def end_with(
        self,
        number: signal.Signals,
        after_step: int,
        whom: Callable[[subprocess.Popen[str]], int] = lambda process: process.pid,
    ) -> tuple[int, str]:
        process = self.start()
        while process.poll() is None and self.newest_step() < after_step:
            time.sleep(0.02)
        os.kill(whom(process), number)
        text, _ = process.communicate(timeout=60)
        return process.returncode, text

    def newest_step(self) -> int:
        found = sorted(self.work.glob("checkpoints/step-*"))
        return int(found[-1].name.removeprefix("step-")) if found else 0


@pytest.fixture
def make_program(tmp_path: Path, inputs: dict[str, Path]) -> Callable[[PretrainConfig], Program]:
    """The stage as a program with a configuration; the same work folder each time."""
    return lambda config: Program(tmp_path, inputs, config)
