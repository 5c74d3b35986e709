"""Training ends when held-out loss rises, with the best weights, and the same bits after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.runtime.errors import StopRequested
from stages.sft.early_stop import EarlyStop
from stages.whitebox.trainer import TrainingSummary

OVERFIT: dict[str, Any] = {"epochs": 60.0, "learning_rate": 3e-2, "evaluations": 30, "replay_fraction": 0.0}


def test_it_waits_as_long_as_it_should_and_gives_the_best_weights(tmp_path: Path) -> None:
    model, said = torch.nn.Linear(2, 2), []
    early, summary = EarlyStop(model, 2, tmp_path, said.append), TrainingSummary()
    answers = []
    for step, loss in enumerate([3.0, 1.0, 2.0, 0.5, 0.5, 0.6], start=1):
        with torch.no_grad():
            model.weight.fill_(step)
        summary.steps = step
        summary.history.setdefault("validation_loss", []).append([step, loss])
        answers.append(early.is_enough(summary))
    assert answers == [False] * 5 + [True]
    assert "2 evaluations without a held-out loss below 0.5000, that of step 4" in said[0]
    assert early.restore(summary)
    assert (model.weight == 4).all()
    kept = sorted(path.name for path in tmp_path.iterdir())  # an older checkpoint may want that one
    assert kept == ["best-00000002.safetensors", "best-00000004.safetensors"]


@pytest.fixture(scope="module")
def stopped_early(run_sft: Callable[..., Any]) -> Any:
    return run_sft(**OVERFIT, patience=2)


def test_the_model_is_that_of_the_best_evaluation(stopped_early: Any) -> None:
    events = stopped_early.events
    points = [
        (e["step"], e["values"]["validation_loss"])
        for e in events
        if "validation_loss" in e.get("values", {})
    ]
    best_step, best = min(points, key=lambda point: point[1])
    assert [loss > best for step, loss in points if step > best_step] == [True, True]
    assert stopped_early.metrics["validation_loss"] == best
    said = " ".join(e["message"] for e in events if e["event"] == "log")
    assert f"that of step {best_step}" in said and f"the weights are those of step {best_step}" in said


def test_a_run_that_was_stopped_in_between_ends_with_the_same_bits(
    stopped_early: Any, run_sft: Callable[..., Any], tmp_path: Path
) -> None:
    steps = [event["step"] for event in stopped_early.events if event["event"] == "metrics"]
    with pytest.raises(StopRequested):
        run_sft(**OVERFIT, patience=2, work=tmp_path / "work", stop_after=max(steps) - 2)
    resumed = run_sft(**OVERFIT, patience=2, work=tmp_path / "work")
    again = run_sft(**OVERFIT, patience=2, work=tmp_path / "work")  # killed before the artifact was kept
    wanted = load_file(stopped_early.outputs["model"] / "model.safetensors")
    for run in (resumed, again):
        found = load_file(run.outputs["model"] / "model.safetensors")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert run.metrics["validation_loss"] == stopped_early.metrics["validation_loss"]
