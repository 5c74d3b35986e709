"""The stage as a whole: what it writes opens elsewhere, and a kill at any time costs no bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts.checkpoint import CHECKPOINT
from stages.pretrain.run import run
from stages.pretrain.spec import SPEC, PretrainConfig
from stages.runtime.errors import UserError
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.runtime.store import file_sha256
from stages.whitebox import model as whitebox_model
from stages.whitebox.checkpoint import load_model
from stages.whitebox.reply import continuation
from stages.whitebox.tokenizer import Tokenizer

Events = Callable[[str], list[dict[str, Any]]]
HEADLINES = {"validation_bits_per_byte", "validation_loss", "train_tokens", "tokens_per_second", "num_params"}


def changed(config: PretrainConfig, **changes: object) -> PretrainConfig:
    return PretrainConfig(**{**config.model_dump(), **changes})


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_it_learns_reports_and_writes_a_model_that_opens_elsewhere(
    config: PretrainConfig,
    inputs: dict[str, Path],
    model_folder: Path,
    session: StageSession,
    read_events: Events,
) -> None:
    metrics = run(config, inputs, {"model": model_folder}, session)

    assert metrics.keys() >= HEADLINES
    assert metrics["validation_bits_per_byte"] < 2.5
    assert metrics["num_params"] == sum(p.numel() for p in load_model(model_folder).parameters())
    assert CHECKPOINT.check(model_folder) == []

    names = {event["name"] for kind in ("table", "chart") for event in read_events(kind)}
    charts = {"pretrain_loss", "pretrain_bits_per_byte", "pretrain_attention"}
    inside = {"pretrain_layers", "pretrain_layer_gradients", "pretrain_layer_activations"}
    assert names == {"pretrain_recipe", "pretrain_references", *charts, *inside}
    curve = {name for event in read_events("metrics") for name in event["values"]}
    assert curve >= {
        "train_loss",
        "validation_loss",
        "learning_rate",
        "grad_norm",
        "mfu",
        "tokens_per_second",
    }
    assert {event["prompt"] for event in read_events("sample")} == {"The hen"}
    assert len(read_events("sample")) >= 2
    last = read_events("progress")[-1]
    assert last["done"] == last["total"] > 0

    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    ours = Tokenizer.from_folder(model_folder)
    ids = [ours.bos_id, *ours.encode("The hen sleeps")]
    assert tokenizer("The hen sleeps")["input_ids"] == ids
    with torch.no_grad():
        logits = peer(torch.tensor([ids])).logits
        torch.testing.assert_close(load_model(model_folder)(torch.tensor([ids])), logits, atol=1e-4, rtol=0)


def test_sigkill_and_sigterm_cost_no_bit(
    config: PretrainConfig,
    inputs: dict[str, Path],
    model_folder: Path,
    session: StageSession,
    make_program: Callable[[PretrainConfig], Any],
) -> None:
    config = changed(config, train_tokens=40_000, checkpoint_every_seconds=0.2, evaluations=1)
    program = make_program(config)

    code, _ = program.end_with(signal.SIGKILL, after_step=3)
    assert code == -signal.SIGKILL
    assert not program.output.exists()
    code, text = program.end_with(signal.SIGTERM, after_step=program.newest_step() + 5)
    assert code == 143, text
    assert "the checkpoint is saved" in text
    assert "going on after step" in program.finish()

    run(config, inputs, {"model": model_folder}, session)
    expected = file_sha256(model_folder / "model.safetensors")
    assert file_sha256(program.output / "model" / "model.safetensors") == expected
    assert json.loads((program.output / "manifest.json").read_text())["stage"] == SPEC.name


def fails_with(
    config: PretrainConfig, inputs: dict[str, Path], folder: Path, session: StageSession
) -> UserError:
    with pytest.raises(UserError) as caught:
        run(config, inputs, {"model": folder}, session)
    return caught.value


def test_lack_of_memory_names_the_setting(
    config: PretrainConfig,
    inputs: dict[str, Path],
    model_folder: Path,
    session: StageSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes")

    monkeypatch.setattr(whitebox_model, "_run_block", no_memory)
    error = fails_with(config, inputs, model_folder, session)
    assert "memory ran out" in error.message
    assert "micro_batch_size" in error.hint


def test_a_diverging_run_names_the_step_and_the_setting(
    config: PretrainConfig, inputs: dict[str, Path], model_folder: Path, session: StageSession
) -> None:
    wild = changed(config, optimizer="adamw", learning_rate=1e30, grad_clip=0.0, qk_norm=False)
    error = fails_with(wild, inputs, model_folder, session)
    assert "at step" in error.message
    assert "try learning_rate" in error.message


def test_too_little_text_names_the_setting(
    config: PretrainConfig, inputs: dict[str, Path], model_folder: Path, session: StageSession
) -> None:
    error = fails_with(changed(config, context_tokens=100_000), inputs, model_folder, session)
    assert "smaller context_tokens" in error.message


def test_tokens_of_another_tokenizer_are_refused(
    config: PretrainConfig,
    inputs: dict[str, Path],
    model_folder: Path,
    session: StageSession,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for path in inputs["tokens"].iterdir():
        raw = path.read_bytes().replace(b'"vocab_size":"320"', b'"vocab_size":"321"')
        (folder / path.name).write_bytes(raw)
    error = fails_with(config, {**inputs, "tokens": folder}, model_folder, session)
    assert "vocabulary of 321, the tokenizer has 320" in error.message


def test_every_way_to_save_time_or_memory_at_once(
    config: PretrainConfig,
    inputs: dict[str, Path],
    model_folder: Path,
    session: StageSession,
    read_events: Events,
) -> None:
    ways = {
        "micro_batch_size": "auto",
        "activation_checkpointing": True,
        "z_loss": 1e-4,
        "ema_decay": 0.9,
        "prefetch": False,
    }
    metrics = run(changed(config, **ways), inputs, {"model": model_folder}, session)
    assert metrics["validation_bits_per_byte"] < 2.8
    assert CHECKPOINT.check(model_folder) == []
    # What is shown was written by the averaged weights, which are saved.
    model, tokenizer = load_model(model_folder, dtype=torch.float32), Tokenizer.from_folder(model_folder)
    for shown in read_events("sample")[-len(config.sample_prompts) :]:
        text = continuation(model, tokenizer, shown["prompt"], config.sample_tokens)
        assert shown["text"] == text


def test_batches_read_ahead_give_the_same_weights(
    config: PretrainConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for prefetch in (True, False):
        folder, work = tmp_path / f"model-{prefetch}", tmp_path / f"work-{prefetch}"
        folder.mkdir()
        session = StageSession("pretrain", work, EventLog(work / "events.jsonl", as_json=False))
        run(changed(config, prefetch=prefetch, train_tokens=1500), inputs, {"model": folder}, session)
        found.append(file_sha256(folder / "model.safetensors"))
    assert found[0] == found[1]
