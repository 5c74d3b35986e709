"""Documents about a small workshop, in enough variety to train, search and measure on."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import DOCUMENTS
from data_contracts.tables import write_part
from stages.runtime.events import EventLog, read_events
from stages.runtime.session import StageSession
from stages.vector_store.run import run
from stages.vector_store.spec import VectorStoreConfig

THINGS = {
    "lamp": ("burns oil to give light", "The wick soaks up oil. Trim the wick when the flame smokes."),
    "pump": ("lifts water out of a well", "The handle moves a piston. A valve keeps the water from falling."),
    "gate": ("closes a yard against cattle", "Two hinges carry it. A latch holds it shut in the wind."),
    "mill": ("grinds grain between two stones", "The upper stone turns. Flour runs out at the rim."),
    "kiln": ("bakes clay into bricks", "Stack the wet clay with gaps. Heat it slowly for two days."),
    "loom": ("weaves thread into cloth", "A shuttle carries the weft. The reed beats every row tight."),
    "sail": ("catches the wind for a boat", "Canvas is sewn in strips. Ropes along the edge take the pull."),
    "anvil": ("carries iron under the hammer", "The horn bends rods. The flat face is for straightening."),
}
PARTS = {
    "frame": ("holds the other pieces in place", "Cut the joints before you plane the beams."),
    "cover": ("keeps rain and dust away", "Paint it twice, and leave it open on dry days."),
    "crank": ("turns a slow push into motion", "Grease the bearing, or it will squeal."),
    "gauge": ("shows how much is left inside", "Read it at eye level, in the morning."),
    "chain": ("links two wheels over a distance", "Count the links in pairs when you shorten it."),
    "brake": ("stops the motion in an emergency", "Press the shoe against the rim, never the spokes."),
}
CHINESE = (
    "灯塔建在长长的石堤尽头。每天傍晚，守塔人爬上九十二级台阶，擦亮玻璃，点起灯火。起雾的夜里，他敲响铜钟。"
)


def document(number: int, title: str, text: str) -> dict[str, Any]:
    """A row of the documents part; every eighth one is in the validation split."""
    return {
        "doc_id": f"doc-{number:03d}",
        "source": "fixture",
        "title": title,
        "kind": "text",
        "language": "en",
        "split": "validation" if number % 8 == 3 else "train",
        "num_bytes": len(text.encode()),
        "text": text,
    }


def workshop_documents() -> list[dict[str, Any]]:
    """Forty-eight pages `# workshop.lamp.frame`, one that is Chinese, and one that is a single long line."""
    rows = []
    for thing, (purpose, care) in THINGS.items():
        for part, (role, advice) in PARTS.items():
            title = f"workshop.{thing}.{part}"
            summary = f"The {part} {role}, in a thing that {purpose}."
            care_of_it = f"{advice} Ask for {thing} oil."
            body = f"# {title}\n\n{summary}\n\n## How it works\n\n{care}\n\n## Care\n\n{care_of_it}"
            rows.append(document(len(rows), title, body))
    rows.append(document(len(rows), "灯塔", CHINESE * 6))
    rows.append(document(len(rows), "", "word " * 700))
    return rows


@dataclass
class Built:
    """Folders of one run of the stage, its figures and its events."""

    inputs: dict[str, Path]
    outputs: dict[str, Path]
    metrics: dict[str, float] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.outputs["store"]

    def named(self, event: str, name: str) -> dict[str, Any]:
        """The one event of this kind and name."""
        return next(e for e in self.events if e["event"] == event and e["name"] == name)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Any attempt to reach out fails, and is counted."""
    attempts: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        attempts.append(address)
        raise OSError(f"this test may not connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    yield attempts
    assert not attempts


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, base_model: Any) -> Callable[..., Built]:
    """Call with config fields (and `documents=` rows, `session=` changes) to run the stage in a fresh
    folder."""

    def make(
        documents: list[dict[str, Any]] | None = None,
        prepare: Callable[[StageSession], None] = lambda session: None,
        **fields: Any,
    ) -> Built:
        torch.set_num_threads(1)
        root = tmp_path_factory.mktemp("vector_store")
        write_part(root / "documents", DOCUMENTS, workshop_documents() if documents is None else documents)
        built = Built(
            {"documents": root / "documents", "tokenizer": base_model.tokenizer_folder},
            {part: root / "out" / part for part in ("store", "chroma")},
        )
        for folder in built.outputs.values():
            folder.mkdir(parents=True)
        log = EventLog(root / "work" / "events.jsonl", as_json=False, stream=io.StringIO())
        session = StageSession("vector_store", root / "work", log)
        prepare(session)
        small = {"training_steps": 30, "dimensions": 32, "chunk_tokens": 96, "overlap_tokens": 16}
        config = VectorStoreConfig(**{**small, **fields})
        built.metrics = run(config, built.inputs, built.outputs, session)
        built.events = list(read_events(log.path))
        return built

    return make


@pytest.fixture(scope="session")
def built(build: Callable[..., Built]) -> Built:
    """The stage run once."""
    return build()
