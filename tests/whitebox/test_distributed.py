"""Two processes train what one trains, with whole and with divided weights, and may take over from it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.losses import IGNORED
from stages.whitebox.one_process import OneProcess
from stages.whitebox.rank_batches import RankBatches, Share

PROGRAM = Path(__file__).with_name("rank_program.py")
MUON = 0.02


class Trained:
    """What a scenario left behind."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "steps.json").read_text())
        self.steps: dict[int, dict[str, float]] = {int(n): values for n, values in told["steps"].items()}
        self.messages: list[str] = told["messages"]
        self.weights: dict[str, Tensor] = load_file(folder / "model.safetensors")

    def series(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.steps.items() if name in values}


class Scenarios:
    """Trainings in one process here, and in two processes that go through all of theirs in one life."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder, self.shards = folder, shards
        self.program = runpy.run_path(str(PROGRAM), run_name="rank_program")

    def alone(self, name: str, **changes: Any) -> Trained:
        self.program["run_scenario"](self.scenario(name, **changes), OneProcess())
        return Trained(self.folder / name)

    def scenario(self, name: str, **changes: Any) -> dict[str, Any]:
        return {"folder": str(self.folder / name), "shards": str(self.shards), "muon": MUON, **changes}

    def continued(self, name: str, start: str) -> str:
        """A folder with the checkpoints of another training."""
        shutil.copytree(self.folder / start / "checkpoints", self.folder / name / "checkpoints")
        return name

    def in_two(self, *scenarios: dict[str, Any]) -> None:
        path = self.folder / "scenarios.json"
        path.write_text(json.dumps(scenarios))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        started = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(path)],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(Path.cwd())},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], errors


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, counting_shards: Path) -> Scenarios:
    """All trainings of this file in two processes, and those of one that they start from."""
    found = Scenarios(tmp_path_factory.mktemp("distributed"), counting_shards)
    found.alone("half", stop_after=4)
    found.in_two(
        *(found.scenario(f"{way}-muon", way=way) for way in ("ddp", "fsdp")),
        *(found.scenario(f"{way}-adamw", way=way, muon=None) for way in ("ddp", "fsdp")),
        *(found.scenario(f"{way}-bad", way=way, spoiled_step=5) for way in ("ddp", "fsdp")),
        *(found.scenario(f"{way}-half", way=way, stop_after=4) for way in ("ddp", "fsdp")),
        *(found.scenario(found.continued(f"{way}-resumed", "half"), way=way) for way in ("ddp", "fsdp")),
        found.scenario("tensor", way="tensor"),
    )
    return found


WAYS = pytest.mark.parametrize("way", ["ddp", "fsdp"])


def assert_same_training(found: Trained, expected: Trained, after: int = 0) -> None:
    for name in ("train_loss", "grad_norm", "per_token", "validation_loss"):
        series = {step: value for step, value in expected.series(name).items() if step > after}
        assert found.series(name) == pytest.approx(series, abs=1e-4)
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, atol=1e-4, rtol=0)


@WAYS
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_processes_have_the_losses_of_one(two: Scenarios, way: str, optimizer: str) -> None:
    expected = two.alone(f"one-{optimizer}-{way}", muon=MUON if optimizer == "muon" else None)
    found = Trained(two.folder / f"{way}-{optimizer}")
    assert_same_training(found, expected)
    assert list(found.series("train_loss")) == list(range(1, 9))
    assert sum(found.series("grad_norm")[step] > 0.5 for step in range(1, 9)) > 3  # it was clipped
    assert found.steps[8]["train_loss"] < found.steps[1]["train_loss"] - 0.1  # it did learn


@WAYS
def test_a_run_goes_on_in_another_number_of_processes(two: Scenarios, way: str) -> None:
    whole = two.alone(f"whole-{way}")
    into_two = Trained(two.folder / f"{way}-resumed")
    assert list(into_two.steps) == [5, 6, 7, 8]
    assert into_two.messages == ["going on after step 4 of 8"]
    assert_same_training(into_two, whole, after=4)
    into_one = two.alone(two.continued(f"{way}-back", f"{way}-half"))
    assert list(into_one.steps) == [5, 6, 7, 8]
    assert_same_training(into_one, whole, after=4)


@WAYS
def test_a_stop_that_one_process_hears_of_stops_all(two: Scenarios, way: str) -> None:
    found = Trained(two.folder / f"{way}-half")
    assert list(found.steps) == [1, 2, 3, 4]
    assert found.messages == ["stopped after step 4 of 8; the checkpoint is saved"]
    kept = two.folder / f"{way}-half" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    alone = two.folder / "half" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    saved, expected = load_file(kept), load_file(alone)
    assert saved.keys() == expected.keys()
    assert all(saved[name].shape == tensor.shape for name, tensor in expected.items())


@WAYS
def test_a_loss_that_is_no_number_in_one_process_skips_the_step_in_all(two: Scenarios, way: str) -> None:
    found = Trained(two.folder / f"{way}-bad")
    (skipped,) = found.series("skipped_steps")
    assert skipped == 3  # two micro batches of each step: the fifth is in the third
    assert "train_loss" not in found.steps[3] and all("train_loss" in found.steps[n] for n in (2, 4, 8))
    (message,) = found.messages
    assert message.startswith("step 3 of 8 is skipped: the loss is nan")
    # Rows 10 to 14 are the step's; the other process, whose loss is bad, has the last three.
    assert "rows 12 to 13 of epoch 0" in message


@pytest.mark.parametrize("rank", [0, 1])
def test_products_can_be_divided_by_the_names_of_the_readme(two: Scenarios, rank: int) -> None:
    found = load_file(two.folder / "tensor" / str(rank) / "compared.safetensors")
    for name in ("hidden", "embedding", "down", "q"):
        assert found[f"whole.{name}"].abs().max() > 1e-3
        torch.testing.assert_close(found[f"divided.{name}"], found[f"whole.{name}"], atol=2e-4, rtol=1e-4)


def drawn(batches: PackedBatches | RankBatches, count: int) -> list[dict[str, Tensor]]:
    return [batches.next_batch() for _ in range(count)]


@pytest.mark.parametrize(
    ("rows", "processes", "micro"), [(8, 2, 2), (5, 2, 2), (7, 3, 1), (13, 4, 3), (5, 5, 1)]
)
def test_the_processes_share_the_rows_of_one(
    counting_shards: Path, rows: int, processes: int, micro: int
) -> None:
    shards, steps = TokenShards(counting_shards, "train"), 12  # more than an epoch
    expected = drawn(PackedBatches(shards, rows, 16, seed=3, separate_documents=True), steps)
    share = Share(rows, processes, micro)
    ranks = [
        RankBatches(PackedBatches(shards, 1, 16, seed=3, separate_documents=True), share, rank)
        for rank in range(processes)
    ]
    shapes = set()
    for step in range(steps):
        parts = [part for rank in ranks for part in drawn(rank, share.accumulation_steps)]
        shapes |= {tuple(part["ids"].shape) for part in parts}
        counted = {
            name: torch.cat([part[name][(part["targets"] != IGNORED).any(dim=1)] for part in parts])
            for name in expected[step]
        }
        for name, tensor in expected[step].items():
            assert torch.equal(counted[name], tensor), name
        assert len({json.dumps(rank.state_dict()) for rank in ranks}) == 1
    assert shapes == {(share.micro_batch_size, 16)}
    assert share.micro_batch_size <= micro


def test_more_processes_than_rows_are_refused() -> None:
    with pytest.raises(
        ValueError, match="3 rows, fewer than the 4 processes; start fewer, or set global_batch_tok"
    ):
        Share(3, 4, 1)


def test_one_process_imports_nothing_of_several() -> None:
    code = (
        "import sys, stages.pretrain.run, stages.whitebox.trainer\n"
        "assert 'stages.whitebox.distributed' not in sys.modules\n"
        "assert 'torch.distributed.fsdp' not in sys.modules\n"
        "assert 'torch.distributed.elastic.agent' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
