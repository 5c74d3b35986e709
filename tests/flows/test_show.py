"""`glassworks show` puts an artifact into words."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from data_contracts import CONVERSATIONS, REJECTS
from data_contracts.manifest import PartEntry
from data_contracts.tables import write_part
from flows import show
from flows.show import show_artifact
from stages.runtime.store import Artifact
from tests.flows.manifests import empty_manifest, provenance

PIECES = [b"<s>", b"Hi", b" there", b"\xe4", b"\xbd", b"\xa0", b"!"]


def artifact(folder: Path, **parts: str) -> Artifact:
    manifest = empty_manifest(
        "sft",
        parts={name: PartEntry(contract=contract, digest="d") for name, contract in parts.items()},
        metrics={"validation_loss": 1.25},
        provenance=provenance(seconds=75.0, peak_memory_bytes=3 * 2**20),
    )
    return Artifact(folder, manifest)


def shown(made: Artifact, width: int = 200) -> str:
    text = io.StringIO()
    show_artifact(made, Console(file=text, width=width))
    return text.getvalue()


def test_what_it_is_and_what_it_holds(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "2+2?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "A sum.",
            "tool_calls": [{"id": "", "name": "calculator", "arguments": '{"expression": "2+2"}'}],
        },
    ]
    row = {"conversation_id": "a", "source": "s", "kind": "qa", "split": "train", "messages": messages}
    write_part(tmp_path / "conversations", CONVERSATIONS, [row])
    text = shown(artifact(tmp_path, conversations="conversations@3"))
    assert "1m15s" in text and "3 MiB" in text and "validation_loss = 1.25" in text
    assert 'user: 2+2? / assistant: (A sum.) calculator({"expression": "2+2"})' in text


def test_rejects_by_reason_with_examples(tmp_path: Path) -> None:
    base = {"source": "s", "step": "quality", "detail": "", "num_bytes": 1, "preview": ""}
    rows = [base | {"doc_id": str(i), "title": f"page {i}", "reason": "too_short"} for i in range(5)]
    rows.append(base | {"doc_id": "x", "title": "odd", "reason": "symbols", "detail": "81 %"})
    write_part(tmp_path / "rejects", REJECTS, rows)
    lines = shown(artifact(tmp_path, rejects="rejects@2")).splitlines()
    assert any("too_short" in line and "5" in line and "page 0; page 1; page 2" in line for line in lines)
    assert any("symbols" in line and "odd (81 %)" in line for line in lines)


def test_masked_tokens_are_dim_and_borders_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "read_token_bytes", lambda _: PIECES)
    (tmp_path / "preview").mkdir()
    tensors = {
        "ids": np.array([[0, 1, 2, 3, 4, 5, 0, 6]]),
        "labels": np.array([[-100, -100, 2, 3, 4, 5, -100, -100]]),  # not shifted: the token itself
        "document_ids": np.array([[1, 1, 1, 1, 1, 1, 2, 0]]),
        "ends_cut": np.array([[0, 0, 0, 0, 0, 0, 1, 0]], dtype=np.uint8),
    }
    save_file(tensors, tmp_path / "preview" / "preview.safetensors")
    text = shown(artifact(tmp_path, preview="batch_preview@1"))
    assert "the loss counts 4 of 7 tokens" in text
    columns = (tensors[name][0] for name in ("ids", "labels", "document_ids", "ends_cut"))
    stretches = list(show._coloured(*columns, PIECES))
    assert stretches == [
        ("<s>Hi", "dim"),
        (" there你", "bold green"),  # three tokens that are one character
        ("\n┄┄┄┄\n", "dim"),
        ("<s>", "dim"),
        (" ✂ cut here: longer than a row", "yellow"),
    ]


def test_only_the_last_sample_of_a_prompt_is_shown(tmp_path: Path) -> None:
    events = [
        {"event": "sample", "prompt": "Hello", "text": text, "kind": "chat", "step": step}
        for step, text in enumerate(("early", "late"))
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(json.dumps(event) for event in events))
    text = shown(artifact(tmp_path))
    assert "Hello -> late" in text and "early" not in text
