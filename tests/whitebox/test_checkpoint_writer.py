"""Checkpoints by a thread: the newest whole one always stays, and what goes wrong is said."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.whitebox import checkpoint_writer
from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.checkpoint_writer import CheckpointWriter
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import StepLoss, TrainerSettings, train
from stages.whitebox.training_state import Keep, TrainingState, list_checkpoints, load_newest, save_state

Make = Callable[..., CausalLM]


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a full disk: the kernel cuts each file off there (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def state(size: int = 10_000) -> TrainingState:
    return TrainingState({"model.x": torch.arange(float(size))}, {"settings": {}})


class Writer:
    def __init__(self, folder: Path) -> None:
        self.messages: list[str] = []
        self.writer = CheckpointWriter(folder, Keep(), self.messages.append)
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def made(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "checkpoints")


def test_a_full_disk_keeps_the_old_one_and_the_next_tries_again(made: Writer) -> None:
    made.writer.submit(1, state())
    made.writer.finish()
    with files_of_at_most(20_000):
        made.writer.submit(2, state())
        made.writer.wait()
    assert made.names() == ["step-00000001"]  # what was written of the other takes no room either
    (message,) = made.messages
    assert message.startswith("the checkpoint of step 2 could not be written")
    assert "step-00000001" in message and "tries again" in message
    made.writer.submit(3, state())
    made.writer.finish()
    assert made.names() == ["step-00000001", "step-00000003"]


def test_where_nothing_comes_after_it_the_error_is_raised(made: Writer) -> None:
    with files_of_at_most(20_000):
        made.writer.submit(7, state())
        with pytest.raises(OSError, match=r"step 7 could not be written .*there is no other"):
            made.writer.finish()
    made.writer.finish()  # once is enough
    assert made.messages == []


def test_it_is_written_meanwhile(made: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, save = threading.Event(), checkpoint_writer.save_state

    def slow(*arguments: object) -> Path:
        assert go_on.wait(timeout=30)
        return save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_writer, "save_state", slow)
    made.writer.submit(1, state())
    assert made.writer.is_busy and not made.folder.exists()
    made.writer.tell()  # says nothing about one that is on its way
    go_on.set()
    made.writer.finish()
    assert made.names() == ["step-00000001"] and not made.writer.is_busy


def test_who_is_interrupted_lets_the_checkpoint_become_whole(
    made: Writer, make_model: Make, counting_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second SIGTERM raises in the main thread, whatever the other one is doing."""

    class Interrupted(BaseException):
        pass

    def slow(*arguments: object) -> Path:
        assert interrupted.wait(timeout=30)
        return save(*arguments)  # type: ignore[arg-type]

    def on_step(step: int, _values: dict[str, float]) -> None:
        if step == 3:
            interrupted.set()
            raise Interrupted

    interrupted, save = threading.Event(), checkpoint_writer.save_state
    monkeypatch.setattr(checkpoint_writer, "save_state", slow)
    with pytest.raises(Interrupted):
        train_in(make_model(), counting_shards, made.folder, made.messages, on_step, total_steps=6)
    assert made.names() == ["step-00000002"]
    assert load_newest(made.folder, made.messages.append) is not None and made.messages == []


def train_in(
    model: CausalLM,
    shards: Path,
    folder: Path,
    messages: list[str],
    on_step: Callable[[int, dict[str, float]], None] = lambda _step, _values: None,
    **changes: int,
) -> None:
    def loss(model: CausalLM, batch: dict[str, torch.Tensor]) -> StepLoss:
        hidden = model.hidden_states(batch["ids"])
        return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))

    train(
        model,
        PackedBatches(TokenShards(shards, "train"), 2, 16, seed=0),
        loss,
        TrainerSettings(learning_rate=3e-3, checkpoint_every_steps=2, **changes),
        checkpoint_dir=folder,
        on_step=on_step,
        log=messages.append,
    )


def test_a_training_on_a_full_disk_goes_on_and_ends_with_the_error(
    make_model: Make, counting_shards: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    model, folder = make_model(), tmp_path / "checkpoints"
    with (
        files_of_at_most(20_000),
        pytest.raises(OSError, match="the checkpoint of step 6 could not be written"),
    ):
        train_in(model, counting_shards, folder, messages, total_steps=6)
    assert [text.split(" could")[0] for text in messages] == [
        "the checkpoint of step 2",
        "the checkpoint of step 4",
    ]
    assert list_checkpoints(folder) == []
    assert not torch.equal(model.output_weight(), make_model().output_weight())


def test_the_copy_is_of_one_moment(make_model: Make, counting_shards: Path, tmp_path: Path) -> None:
    """While the checkpoint of a step is written, the steps after it change the weights."""
    messages: list[str] = []
    train_in(make_model(), counting_shards, tmp_path / "long", messages, total_steps=6)
    short = make_model()
    train_in(short, counting_shards, tmp_path / "other", messages, total_steps=6)
    for path in list_checkpoints(tmp_path / "long"):
        tensors = load_file(path / "tensors.safetensors")
        twin = load_file(tmp_path / "other" / path.name / "tensors.safetensors")
        assert all(torch.equal(tensor, twin[name]) for name, tensor in tensors.items())
        steps = {float(t) for name, t in tensors.items() if name.startswith("optimizer.step.")}
        assert steps == {float(json.loads((path / "state.json").read_text())["step"])}
    assert messages == []


@pytest.mark.parametrize("keep", [Keep(), Keep(1, every_steps=10)])
def test_damaged_checkpoints_of_later_steps_make_room_for_a_whole_one(tmp_path: Path, keep: Keep) -> None:
    for step in (190, 200):
        save_state(tmp_path, step, state(), keep)
    for path in list_checkpoints(tmp_path):
        (path / "state.json").write_text("{", encoding="utf-8")
    assert load_newest(tmp_path, lambda _: None) is None
    written = save_state(tmp_path, 20, state(), keep)
    assert list_checkpoints(tmp_path) == [written]
    assert load_newest(tmp_path, lambda _: None) is not None
