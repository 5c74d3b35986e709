"""The micro batch follows the memory and is remembered; the update never changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.pretrain import micro_batch
from stages.pretrain import run as running
from stages.pretrain.micro_batch import REMEMBERED, fit_micro_batch, smaller_after_a_lack_of_memory
from stages.pretrain.recipe import Recipe, make_recipe
from stages.pretrain.run import next_token_loss
from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import RetryableError
from stages.runtime.session import StageSession
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import Device
from stages.whitebox.model import CausalLM

Events = Callable[[str], list[dict[str, Any]]]
CPU = Device(torch.device("cpu"), torch.float32, "test")
MIB = 2**20


class Case:
    """One fit, in a machine of a given memory."""

    def __init__(self, session: StageSession, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.monkeypatch = session, monkeypatch
        self.shape = ModelConfig.from_depth(1, 320, 32)

    def __call__(self, memory: float, num_processes: int = 1, **changes: object) -> Recipe:
        self.monkeypatch.setattr(micro_batch, "memory_bytes", lambda _: memory)
        settings = {"depth": 1, "context_tokens": 32, "global_batch_tokens": 32 * 24, "train_tokens": 6000}
        config = PretrainConfig(**{**settings, **changes})
        recipe = make_recipe(config, self.shape, 2**40)
        model = CausalLM(self.shape)
        fitted = fit_micro_batch(config, recipe, model, next_token_loss, CPU, self.session, num_processes)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert replace(fitted, micro_batch_size=recipe.micro_batch_size) == recipe
        assert fitted.accumulation_steps * fitted.micro_batch_size == recipe.rows_per_step == 24
        return fitted

    def forget(self) -> None:
        (self.session.work_dir / REMEMBERED).unlink()


@pytest.fixture
def fit(session: StageSession, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(session, monkeypatch)


def test_less_memory_makes_smaller_micro_batches(fit: Case, read_events: Events) -> None:
    sizes = []
    for memory in (2**40, 8 * MIB, 5 * MIB, 1 * MIB):
        sizes.append(fit(memory).micro_batch_size)
        fit.forget()
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (24, 1)
    assert len(set(sizes)) >= 3
    warnings = [event["message"] for event in read_events("log") if event["level"] == "warning"]
    assert len(warnings) == 1
    assert "set activation_checkpointing" in warnings[0]


def test_a_resumed_run_keeps_its_size_whatever_the_memory_is_now(fit: Case) -> None:
    first = fit(6 * MIB).micro_batch_size
    assert 1 < first < 24
    assert fit(2**40).micro_batch_size == first
    (fit.session.work_dir / REMEMBERED).write_text(json.dumps({"micro_batch_size": 7}))  # 24 rows, not by 7
    assert fit(2**40).micro_batch_size == 24


def test_processes_share_the_memory_of_their_machine(fit: Case) -> None:
    sizes = []
    for num_processes, way in ((1, "ddp"), (4, "ddp"), (4, "fsdp")):
        sizes.append(fit(12 * MIB, num_processes, data_parallel=way).micro_batch_size)
        fit.forget()
    alone, copied, divided = sizes
    assert copied < alone == divided


def test_separate_documents_are_probed_with_their_masks(fit: Case) -> None:
    assert fit(2**40, separate_documents=True).micro_batch_size == 24


def test_a_size_set_by_hand_stays(fit: Case) -> None:
    assert fit(1 * MIB, micro_batch_size=6).micro_batch_size == 6
    assert not (fit.session.work_dir / REMEMBERED).exists()


def test_a_pass_that_fails_leaves_no_activations_with_the_routers() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    shape = replace(ModelConfig.from_depth(1, 320, 32), **experts)
    model = CausalLM(shape)
    config = PretrainConfig(depth=1, context_tokens=32, global_batch_tokens=32 * 24, train_tokens=6000)

    def out_of_memory(model: CausalLM, batch: dict[str, torch.Tensor]) -> Any:
        next_token_loss(model, batch)
        raise torch.OutOfMemoryError("in the backward pass")

    step = micro_batch._Step(config, make_recipe(config, shape, 2**40), model, out_of_memory, CPU, 1)
    with pytest.raises(torch.OutOfMemoryError):
        step(2)
    assert [layer.mlp.routing for layer in model.model.layers] == [None]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no device")])
def test_memory_that_runs_out_after_the_probe_makes_the_next_start_smaller(
    config: PretrainConfig,
    inputs: dict[str, Path],
    session: StageSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read_events: Events,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    config = PretrainConfig(**{**config.model_dump(), "micro_batch_size": "auto"})
    with monkeypatch.context() as patch:
        patch.setattr(running, "train", fail)
        with pytest.raises((RetryableError, RuntimeError)) as caught:
            running.run(config, inputs, {"model": tmp_path / "model"}, session)
    remembered = json.loads((session.work_dir / REMEMBERED).read_text())
    is_memory = isinstance(error, torch.OutOfMemoryError)
    assert remembered["micro_batch_size"] == (4 if is_memory else 8)
    assert isinstance(caught.value, RetryableError) == is_memory
    assert ("memory ran out with 8 rows at a time: CUDA out of memory" in str(caught.value)) == is_memory
    assert ("goes on from its checkpoint with 4 rows at a time" in str(caught.value)) == is_memory
    (tmp_path / "model").mkdir()
    running.run(config, inputs, {"model": tmp_path / "model"}, session)
    recipes = [event["rows"] for event in read_events("table") if event["name"] == "pretrain_recipe"]
    assert f"x {remembered['micro_batch_size']} rows" in dict(recipes[-1])["one update"]


@pytest.mark.parametrize("rows", [24, 12, 9, 8, 3, 2, 1])
def test_a_lack_of_memory_halves_the_size_down_to_one_row(
    fit: Case, rows: int, session: StageSession
) -> None:
    config = PretrainConfig(depth=1, context_tokens=32, global_batch_tokens=32 * 72, train_tokens=6000)
    recipe = replace(make_recipe(config, fit.shape, 2**40), micro_batch_size=rows)
    path = session.work_dir / REMEMBERED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"micro_batch_size": rows, "device": "cpu"}))
    with pytest.raises((RetryableError, torch.OutOfMemoryError)) as caught:
        _run_out(config, recipe, session)
    assert isinstance(caught.value, RetryableError) == (rows > 1)
    expected = {24: 12, 12: 6, 9: 4, 8: 4, 3: 1, 2: 1, 1: 1}[rows]
    assert json.loads(path.read_text()) == {"micro_batch_size": expected, "device": "cpu"}
    assert list(path.parent.glob("*micro_batch*")) == [path]


def test_a_lack_of_memory_is_raised_as_it_is_where_nothing_is_remembered(
    fit: Case, session: StageSession
) -> None:
    """A size that was set by hand, and a process of a machine that is not the first."""
    config = PretrainConfig(depth=1, context_tokens=32, global_batch_tokens=32 * 72, train_tokens=6000)
    for chosen in (config, PretrainConfig(**{**config.model_dump(), "micro_batch_size": 24})):
        with pytest.raises(torch.OutOfMemoryError):
            _run_out(chosen, make_recipe(chosen, fit.shape, 2**40), session)
    assert not (session.work_dir / REMEMBERED).exists()


def _run_out(config: PretrainConfig, recipe: Recipe, session: StageSession) -> None:
    with smaller_after_a_lack_of_memory(config, recipe, session):
        raise torch.OutOfMemoryError("CUDA out of memory")
