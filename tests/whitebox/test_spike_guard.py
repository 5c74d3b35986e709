"""A bad step changes nothing and is named; too many end the run; a resumed run judges as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.spike_guard import LEVEL_STEPS, SpikeGuard
from stages.whitebox.trainer import StepLoss, TrainerSettings, TrainingDiverged, train
from stages.whitebox.training_state import list_checkpoints

Make = Callable[..., CausalLM]
SETTINGS = TrainerSettings(
    total_steps=8, learning_rate=3e-3, accumulation_steps=2, checkpoint_every_steps=2, max_skipped_in_a_row=3
)


class Killed(BaseException):
    """Stands for a SIGKILL."""


class Run:
    """Trainings of which given micro batches (counted from 1) are spoiled."""

    def __init__(self, make_model: Make, shards: Path, folder: Path) -> None:
        self.model, self.folder = make_model(), folder
        self.batches = PackedBatches(TokenShards(shards, "train"), 2, 16, seed=0)
        self.kill_after = 0
        self.messages: list[str] = []
        self.weights: dict[int, Tensor] = {}
        self.values: dict[int, dict[str, float]] = {}

    def __call__(self, factors: dict[int, float], settings: TrainerSettings = SETTINGS) -> None:
        def loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
            number = self.batches.state_dict()["row"] // 2
            hidden = model.hidden_states(batch["ids"])
            nats, count = cross_entropy_sum(hidden, model.output_weight(), batch["targets"])
            return StepLoss(nats * factors.get(number, 1.0), count)

        def on_step(step: int, values: dict[str, float]) -> None:
            self.weights[step] = self.model.output_weight().detach().clone()
            self.values[step] = values
            if step == self.kill_after:
                raise Killed

        train(
            self.model,
            self.batches,
            loss,
            settings,
            checkpoint_dir=self.folder,
            on_step=on_step,
            log=self.messages.append,
        )


@pytest.fixture
def run(make_model: Make, counting_shards: Path, tmp_path: Path) -> Run:
    return Run(make_model, counting_shards, tmp_path / "checkpoints")


def test_a_bad_step_changes_nothing_and_names_its_rows(run: Run) -> None:
    run({6: float("nan")})
    assert torch.equal(run.weights[3], run.weights[2])
    assert not torch.equal(run.weights[4], run.weights[3])
    assert torch.isfinite(run.weights[8]).all()
    assert run.values[3]["skipped_steps"] == 1
    assert "train_loss" not in run.values[3] and "train_loss" in run.values[4]
    (message,) = run.messages
    assert message.startswith(
        "step 3 of 8 is skipped: the loss is nan (rows 10 to 11 of epoch 0, train documents"
    )


def test_the_documents_that_are_named_are_those_of_the_rows(run: Run) -> None:
    run({6: float("nan")})
    named = run.messages[0].partition("documents ")[2].rstrip(")").removesuffix(", ...").split(", ")
    batches = PackedBatches(run.batches.shards, 1, 16, seed=0)
    batches.skip_rows(10)
    tokens = torch.cat([batches.next_batch()["targets"][0] for _ in range(2)])
    ordinary = {int(token) for token in tokens if token > 2}
    of_named = np.concatenate([run.batches.shards.document(int(number)) for number in named])
    assert ordinary <= set(of_named.tolist())


def test_packed_rows_name_their_documents(counting_shards: Path) -> None:
    batches = PackedBatches(TokenShards(counting_shards, "train"), 1, 16, seed=0, best_fit=True)
    start = batches.state_dict()
    row = batches.next_batch()["ids"][0].tolist()
    named = batches.describe(start, batches.state_dict()).partition("documents ")[2].split(", ")
    assert row.count(1) >= len(named)  # each begins with BOS
    first = batches.shards.document(int(named[0])).tolist()
    assert any(token in row for token in first[1:-1])


def test_bad_steps_in_a_row_end_the_run(run: Run) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"at step 5 of 8 .*3 steps in a row had to be skipped; try lea"
    ):
        run({number: float("inf") for number in (5, 8, 10)})
    assert torch.equal(run.model.output_weight(), run.weights[2])
    assert len(run.messages) == 2


def test_too_many_in_all_end_the_run(run: Run) -> None:
    with pytest.raises(TrainingDiverged, match=r"at step 6 of 8 .*2 steps had to be skipped in all"):
        run({4: float("nan"), 12: float("nan")}, replace(SETTINGS, max_skipped_steps=2))


def test_a_resumed_run_remembers_what_it_skipped(run: Run, make_model: Make, counting_shards: Path) -> None:
    spoiled = {4: float("nan"), 12: float("nan")}
    settings = replace(SETTINGS, max_skipped_steps=2)
    run.kill_after = 5
    with pytest.raises(Killed):
        run(spoiled, settings)
    assert list_checkpoints(run.folder)[0].name == "step-00000004"
    again = Run(make_model, counting_shards, run.folder)
    with pytest.raises(TrainingDiverged, match=r"at step 6 of 8 .*2 steps had to be skipped in all"):
        again(spoiled, settings)
    assert again.messages == ["going on after step 4 of 8"]


def test_weights_that_are_no_numbers_are_named(run: Run) -> None:
    with torch.no_grad():
        run.model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    wanted = r"model\.layers\.1\.mlp\.up_proj\.weight has values that are no numbers"
    with pytest.raises(TrainingDiverged, match=wanted):
        run({})
    assert len(run.messages) == 2


def guard_at(level: float, factor: float = 10.0) -> SpikeGuard:
    guard = SpikeGuard(factor, max_in_a_row=3, max_skipped=20)
    for number in range(LEVEL_STEPS):
        guard.accept(level * (2.0 if number % 2 else 0.5))
    return guard


def test_a_gradient_far_above_its_level_is_a_spike() -> None:
    guard = guard_at(0.7)
    assert guard.why_not_gradient(6.9) is None
    assert guard.why_not_gradient(7.2) == "the gradient norm is 7.2, 10 times its running level"
    assert guard_at(0.7, factor=0.0).why_not_gradient(1e9) is None


def test_the_first_steps_are_no_spikes() -> None:
    guard = SpikeGuard(10.0, 3, 20)
    for _ in range(LEVEL_STEPS - 1):
        guard.accept(1.0)
    assert guard.why_not_gradient(1e6) is None
    guard.accept(1.0)
    assert guard.why_not_gradient(1e6) is not None


def test_the_level_is_the_geometric_mean_of_what_was_accepted() -> None:
    norms = np.random.default_rng(0).uniform(0.1, 3.0, LEVEL_STEPS)
    guard = SpikeGuard(10.0, 3, 20)
    for norm in norms:
        guard.accept(float(norm))
    assert guard.log_level == pytest.approx(float(np.log(norms).mean()))


def test_what_it_knows_survives_json() -> None:
    guard, other = guard_at(0.3), SpikeGuard(10.0, 3, 20)
    guard.skip()
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert other == guard
