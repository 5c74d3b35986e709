"""`stages.pretrain.look` on a tiny model: what it tells, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from stages.pretrain.look import main
from stages.runtime.events import read_events
from stages.runtime.store import file_sha256
from stages.whitebox.batches import TokenShards
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.model import CausalLM


@pytest.fixture
def model_folder(inputs: dict[str, Path], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(CausalLM(ModelConfig.from_depth(1, 320, max_position_embeddings=64)), tmp_path / "model")
    shutil.copy(inputs["tokenizer"] / "tokenizer.model", tmp_path / "model")
    return tmp_path / "model"


def test_the_middle_of_the_landscape_is_the_models_own_loss(
    inputs: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    events = tmp_path / "events.jsonl"
    options = [f"--model={model_folder}", f"--tokens={inputs['tokens']}", f"--events={events}"]
    before = file_sha256(model_folder / "model.safetensors")
    assert main([*options, "--points=3", "--extent=0.5", "--threads=1", "--prompt=The hen sleeps"]) == 0
    assert file_sha256(model_folder / "model.safetensors") == before
    charts = {event["name"]: event for event in read_events(events) if event["event"] == "chart"}
    (rows,) = charts["landscape"]["panels"].values()
    known = evaluate_bits_per_byte(
        load_model(model_folder),
        TokenShards(inputs["tokens"], "validation"),
        max_documents=4,
        context_tokens=64,
    )
    assert rows[1][1] == pytest.approx(known.loss, abs=2e-4)
    slices = charts["landscape_slices"]["series"]
    assert slices["first direction"] == [[-0.5, rows[1][0]], [0.0, rows[1][1]], [0.5, rows[1][2]]]
    assert slices["second direction"] == [[-0.5, rows[0][1]], [0.0, rows[1][1]], [0.5, rows[2][1]]]
    assert len(charts["pretrain_attention"]["panels"]) == 1


def test_tokens_of_another_vocabulary_are_refused(
    inputs: dict[str, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(CausalLM(ModelConfig.from_depth(1, 330)), model_folder)
    options = [f"--model={model_folder}", f"--tokens={inputs['tokens']}", f"--events={tmp_path / 'e'}"]
    assert main(options) == 2
    assert "the model knows 330 tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*options, "--points=4"])
    assert "give an odd number" in capsys.readouterr().err
