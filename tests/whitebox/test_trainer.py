"""Accumulation is exact, a resumed run ends with the same bits, and trouble is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.losses import IGNORED, cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import (
    StepLoss,
    TrainerSettings,
    TrainingDiverged,
    TrainingStopped,
    TrainingSummary,
    train,
)
from stages.whitebox.training_state import Keep, list_checkpoints

Make = Callable[..., CausalLM]
SETTINGS = TrainerSettings(
    total_steps=12, learning_rate=3e-3, warmup_steps=2, accumulation_steps=2, checkpoint_every_steps=3
)


class Killed(BaseException):
    """Stands for a SIGKILL: nobody catches it."""


def next_token_loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
    """With dropout, so that the generator's state matters too."""
    hidden = F.dropout(model.hidden_states(batch["ids"]), 0.1)
    return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))


class Run:
    """One training from fresh weights, as often as needed on the same checkpoints."""

    def __init__(self, make_model: Make, shards: Path, folder: Path) -> None:
        self.make_model, self.folder = make_model, folder
        self.shards = TokenShards(shards, "train")
        self.batch_size = 2
        self.messages: list[str] = []
        self.steps: list[int] = []
        self.values: dict[int, dict[str, float]] = {}

    def __call__(
        self, settings: TrainerSettings = SETTINGS, kill_after: int = 0, stop_after: int = 0
    ) -> tuple[CausalLM, TrainingSummary]:
        model = self.make_model()

        def on_step(step: int, values: dict[str, float]) -> None:
            self.steps.append(step)
            self.values[step] = values
            if step == kill_after:
                raise Killed

        summary = train(
            model,
            PackedBatches(self.shards, self.batch_size, 16, seed=0),
            next_token_loss,
            settings,
            checkpoint_dir=self.folder,
            on_step=on_step,
            evaluate=lambda: {"validation_loss": float(model.output_weight().norm())},
            should_stop=lambda: bool(stop_after) and self.steps[-1] == stop_after,
            log=self.messages.append,
        )
        return model, summary


@pytest.fixture
def run(make_model: Make, counting_shards: Path, tmp_path: Path) -> Run:
    return Run(make_model, counting_shards, tmp_path / "checkpoints")


@pytest.fixture
def uninterrupted(make_model: Make, counting_shards: Path, tmp_path: Path) -> Run:
    return Run(make_model, counting_shards, tmp_path / "other")


def assert_same_bits(first: CausalLM, second: CausalLM) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("matrix_learning_rate", [None, 0.02])
def test_the_average_of_the_weights_is_evaluated_kept_and_survives_a_kill(
    run: Run, uninterrupted: Run, matrix_learning_rate: float | None
) -> None:
    settings = replace(
        SETTINGS, ema_decay=0.8, matrix_learning_rate=matrix_learning_rate, evaluate_every_steps=5
    )
    with pytest.raises(Killed):
        run(settings, kill_after=8)
    resumed, _ = run(settings)
    whole, _ = uninterrupted(settings)
    assert_same_bits(resumed, whole)
    evaluated = uninterrupted.values[12]["validation_loss"]
    assert evaluated == whole.output_weight().norm().item()
    newest = load_file(list_checkpoints(uninterrupted.folder)[0] / "tensors.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(newest[f"optimizer.average.{name}"], whole.state_dict()[name])
    assert not torch.equal(newest[f"model.{name}"], whole.state_dict()[name])


def test_the_average_does_not_change_the_training(run: Run, uninterrupted: Run) -> None:
    run(replace(SETTINGS, ema_decay=0.9, evaluate_every_steps=2))
    uninterrupted()
    with_it, without = (
        load_file(list_checkpoints(one.folder)[0] / "tensors.safetensors") for one in (run, uninterrupted)
    )
    assert all(torch.equal(with_it[name], without[name]) for name in without)


@pytest.mark.parametrize("matrix_learning_rate", [None, 0.02])
@pytest.mark.parametrize("kill_after", [1, 3, 8, 11])
def test_a_killed_run_ends_with_the_same_bits(
    run: Run, uninterrupted: Run, kill_after: int, matrix_learning_rate: float | None
) -> None:
    settings = replace(SETTINGS, matrix_learning_rate=matrix_learning_rate)
    with pytest.raises(Killed):
        run(settings, kill_after=kill_after)
    resumed, summary = run(settings)
    whole, expected = uninterrupted(settings)
    assert_same_bits(resumed, whole)
    assert summary.history["train_loss"] == expected.history["train_loss"]
    assert (summary.steps, summary.num_targets) == (expected.steps, expected.num_targets)
    saved_before = (kill_after - 1) // 3 * 3
    assert run.steps == [*range(1, kill_after + 1), *range(saved_before + 1, 13)]


def test_killed_again_and_again(run: Run, uninterrupted: Run) -> None:
    for kill_after in (4, 7, 8, 10):
        with pytest.raises(Killed):
            run(kill_after=kill_after)
    assert_same_bits(run()[0], uninterrupted()[0])


def test_a_stop_saves_at_once_and_the_run_goes_on_there(run: Run, uninterrupted: Run) -> None:
    with pytest.raises(TrainingStopped, match="after step 5 of 12"):
        run(stop_after=5)
    assert list_checkpoints(run.folder)[0].name == "step-00000005"
    assert_same_bits(run()[0], uninterrupted()[0])
    assert run.steps == list(range(1, 13))
    assert run.messages == ["going on after step 5 of 12"]


def test_a_finished_run_does_nothing_again(run: Run) -> None:
    model, summary = run()
    again, repeated = run()
    assert_same_bits(model, again)
    assert repeated == summary
    assert run.steps == list(range(1, 13))


def test_bits_do_not_depend_on_where_checkpoints_and_evaluations_lie(run: Run, uninterrupted: Run) -> None:
    other = replace(SETTINGS, checkpoint_every_steps=None, evaluate_every_steps=5)
    assert_same_bits(run(other)[0], uninterrupted()[0])


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-7] ^= 1
    path.write_bytes(raw)


def remove_state(path: Path) -> None:
    (path / "state.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip_a_byte(path / "tensors.safetensors"),
        lambda path: (path / "tensors.safetensors").write_bytes(b""),
        lambda path: (path / "state.json").write_text('{"step": 9, "ten'),
        remove_state,
    ],
    ids=["flipped bit", "empty tensors", "half a state", "no state"],
)
def test_a_damaged_checkpoint_is_passed_over(
    run: Run, uninterrupted: Run, damage: Callable[[Path], object]
) -> None:
    with pytest.raises(Killed):
        run(kill_after=10)
    newest, older = list_checkpoints(run.folder)
    assert (newest.name, older.name) == ("step-00000009", "step-00000006")
    damage(newest)
    assert_same_bits(run()[0], uninterrupted()[0])
    assert run.messages[0].startswith("skipping the checkpoint step-00000009: ")
    assert run.messages[1] == "going on after step 6 of 12"


def test_a_half_written_checkpoint_is_no_checkpoint(run: Run, uninterrupted: Run) -> None:
    with pytest.raises(Killed):
        run(kill_after=5)
    half = run.folder / ".unfinished-00000005"
    shutil.copytree(list_checkpoints(run.folder)[0], half)
    (half / "state.json").unlink()
    assert_same_bits(run()[0], uninterrupted()[0])
    assert not half.exists()
    assert run.messages == ["going on after step 3 of 12"]


def test_other_settings_do_not_go_on(run: Run) -> None:
    with pytest.raises(Killed):
        run(kill_after=4)
    with pytest.raises(ValueError, match=r"other settings \(learning_rate 0\.003 -> 0\.1\); delete"):
        run(replace(SETTINGS, learning_rate=0.1))


class FixedBatches:
    """Micro batches with very different numbers of targets."""

    def __init__(self, parts: list[dict[str, Tensor]]) -> None:
        self.parts, self.place = parts, 0

    def next_batch(self) -> dict[str, Tensor]:
        self.place += 1
        return self.parts[(self.place - 1) % len(self.parts)]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def plain_loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
    loss_sum, num_targets = cross_entropy_sum(
        model.hidden_states(batch["ids"]), model.output_weight(), batch["targets"]
    )
    return StepLoss(loss_sum, num_targets, {"share": float(num_targets)})


def rows(num_targets: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    ids = torch.randint(4, 61, (4, 16))
    targets = ids.roll(-1, dims=1)
    for row, count in enumerate(num_targets):
        targets[row, count:] = IGNORED
    return {"ids": ids, "targets": targets}


def first_moments(model: CausalLM, parts: list[dict[str, Tensor]], folder: Path, **changes: object) -> dict:
    settings = replace(TrainerSettings(1, 1e-3, grad_clip=0, accumulation_steps=len(parts)), **changes)
    seen: dict[str, float] = {}
    train(
        model,
        FixedBatches(parts),
        plain_loss,
        settings,
        checkpoint_dir=folder,
        on_step=lambda _, values: seen.update(values),
    )
    tensors = load_file(list_checkpoints(folder)[0] / "tensors.safetensors")
    return {**{n: t for n, t in tensors.items() if "exp_avg." in n}, "values": seen}


def test_accumulation_is_the_gradient_of_the_whole_batch(make_model: Make, tmp_path: Path) -> None:
    whole = rows([16, 1, 5, 9])
    parts = [{name: tensor[i : i + 1] for name, tensor in whole.items()} for i in range(4)]
    expected = first_moments(make_model(), [whole], tmp_path / "whole")
    found = first_moments(make_model(), parts, tmp_path / "parts")
    for name in expected.keys() - {"values"}:
        torch.testing.assert_close(found[name], expected[name], atol=1e-7, rtol=1e-4)
    for name in ("train_loss", "grad_norm"):
        assert found["values"][name] == pytest.approx(expected["values"][name], rel=1e-5)
    assert found["values"]["share"] == pytest.approx((16**2 + 1 + 5**2 + 9**2) / 31)


def test_clipping_shortens_long_gradients_only(make_model: Make, tmp_path: Path) -> None:
    def length(grad_clip: float) -> tuple[float, float]:
        found = first_moments(make_model(), [rows([16] * 4)], tmp_path / str(grad_clip), grad_clip=grad_clip)
        moments = [t for name, t in found.items() if name != "values"]
        return 10 * float(torch.nn.utils.get_total_norm(moments)), found["values"]["grad_norm"]

    applied, reported = length(0)
    assert applied == pytest.approx(reported, rel=1e-4)
    assert length(reported / 4) == (pytest.approx(reported / 4, rel=1e-4), pytest.approx(reported))
    assert length(reported * 4)[0] == pytest.approx(reported, rel=1e-4)


def test_batches_without_targets_change_nothing_and_are_not_nan(make_model: Make, tmp_path: Path) -> None:
    model, fresh = make_model(), make_model()
    values: list[dict[str, float]] = []
    messages: list[str] = []
    train(
        model,
        FixedBatches([rows([0, 0, 0, 0])]),
        plain_loss,
        TrainerSettings(total_steps=2, learning_rate=0.1, accumulation_steps=2),
        checkpoint_dir=tmp_path,
        on_step=lambda _, v: values.append(v),
        log=messages.append,
    )
    assert_same_bits(model, fresh)
    assert all("train_loss" not in v and v["tokens_per_second"] == 0 for v in values)
    assert messages[0] == "step 1 has no targets, so it changes nothing"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_the_step_and_a_remedy(
    make_model: Make, tmp_path: Path, value: float
) -> None:
    calls = 0

    def breaks_at_the_third(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        nonlocal calls
        calls += 1
        part = plain_loss(model, batch)
        return StepLoss(part.loss_sum * (value if calls == 3 else 1.0), part.num_targets)

    with pytest.raises(
        TrainingDiverged, match=rf"loss is {value} at step 3 of 5 .* in a row .*; try learning_rate 1\.0e-02"
    ):
        train(
            make_model(),
            FixedBatches([rows([16] * 4)]),
            breaks_at_the_third,
            TrainerSettings(total_steps=5, learning_rate=0.03, max_skipped_in_a_row=1),
            checkpoint_dir=tmp_path,
            on_step=lambda _step, _values: None,
        )


def test_a_gradient_that_is_no_number_is_found_before_it_spoils_the_weights(
    make_model: Make, tmp_path: Path
) -> None:
    model, fresh = make_model(), make_model()

    def root_of_zero(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        part = plain_loss(model, batch)
        zero = (model.model.norm.weight * 0).sum()
        return StepLoss(part.loss_sum + zero.sqrt(), part.num_targets)

    with pytest.raises(TrainingDiverged, match="gradient norm is nan at step 1"):
        train(
            model,
            FixedBatches([rows([16] * 4)]),
            root_of_zero,
            TrainerSettings(total_steps=5, learning_rate=0.03, max_skipped_in_a_row=1),
            checkpoint_dir=tmp_path,
            on_step=lambda _step, _values: None,
        )
    assert_same_bits(model, fresh)


def test_it_evaluates_when_told_and_after_the_last_step(run: Run) -> None:
    run(replace(SETTINGS, evaluate_every_steps=5))
    assert [step for step, values in run.values.items() if "validation_loss" in values] == [5, 10, 12]


def test_it_learns(run: Run) -> None:
    settings = TrainerSettings(total_steps=30, learning_rate=3e-3, matrix_learning_rate=0.03)
    _, summary = run(settings)
    losses = [value for _, value in summary.history["train_loss"]]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_checkpoints_by_the_clock(run: Run) -> None:
    run(replace(SETTINGS, checkpoint_every_steps=None, checkpoint_every_seconds=1e-9))
    newest, older = list_checkpoints(run.folder)
    # One that falls due while another is being written waits, so which step the older is of may vary.
    assert newest.name == "step-00000012" > older.name


def test_milestones_stay_beside_the_newest(run: Run) -> None:
    keep = Keep(last=1, every_steps=4)
    run(replace(SETTINGS, checkpoint_every_steps=1, checkpoint_keep=keep))
    found = [path.name for path in list_checkpoints(run.folder)]
    assert found == ["step-00000012", "step-00000008", "step-00000004"]


def test_a_checkpoint_of_another_shape_is_refused(run: Run, make_model: Make) -> None:
    run(replace(SETTINGS, total_steps=3))
    run.make_model = lambda: make_model(intermediate_size=64)
    wanted = r"another model: model\S+\.gate_proj\.weight has shape \(48, 32\), this model has \(64, 32\)"
    with pytest.raises(ValueError, match=wanted):
        run(replace(SETTINGS, total_steps=3))


def test_no_whole_checkpoint_is_said(run: Run, uninterrupted: Run) -> None:
    with pytest.raises(Killed):
        run(kill_after=8)
    for path in list_checkpoints(run.folder):
        tensors = path / "tensors.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:1000])
    assert_same_bits(run()[0], uninterrupted()[0])
    assert all("has 1000 bytes" in text and "cut short" in text for text in run.messages[:2])
    assert "the training begins anew" in run.messages[2]


def test_the_cut_of_an_update_may_change_where_its_rows_are_known(run: Run, uninterrupted: Run) -> None:
    settings = replace(SETTINGS, rows_per_step=4)
    with pytest.raises(Killed):
        run(settings, kill_after=7)
    cut = replace(settings, accumulation_steps=1)
    run.batch_size = 4
    resumed, _ = run(cut)
    assert run.messages == ["going on after step 6 of 12"]
    expected, _ = uninterrupted(settings)
    for name, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="rows_per_step 4 -> 8"):
        run(replace(cut, rows_per_step=8))


@pytest.mark.parametrize("change", [{"total_steps": 0}, {"accumulation_steps": 0}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is 0"):
        replace(SETTINGS, **change)


def test_bfloat16_compute_keeps_float32_weights(run: Run) -> None:
    model, summary = run(replace(SETTINGS, compute_dtype=torch.bfloat16, matrix_learning_rate=0.02))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert summary.last["train_loss"] < 6
