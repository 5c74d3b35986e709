"""A run that ruins the model is ended, what to change is said, and the last good weights are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_contracts import CHECKPOINT
from stages.dpo.guard import Guard
from stages.dpo.spec import DpoConfig
from stages.runtime.errors import UserError
from stages.runtime.store import file_sha256
from stages.whitebox.checkpoint import load_model
from stages.whitebox.trainer import TrainingSummary

LONG: dict[str, Any] = {"epochs": 6.0, "evaluations": 6}


@pytest.fixture(scope="module")
def unguarded(run_dpo: Callable[..., Any]) -> list[dict[str, float]]:
    """The evaluations of a run without bounds."""
    events = run_dpo(**LONG).events
    points = [{"step": e["step"], **e["values"]} for e in events if e["event"] == "metrics"]
    return [point for point in points if "validation_kl" in point]


def test_the_distance_grows_from_evaluation_to_evaluation(unguarded: list[dict[str, float]]) -> None:
    distances = [point["validation_kl"] for point in unguarded]
    assert len(distances) == 6
    assert 0 < distances[0] < distances[1] < distances[2] < distances[3]


def test_it_fails_with_the_last_good_weights_at_hand(
    unguarded: list[dict[str, float]], run_dpo: Callable[..., Any], tmp_path: Path
) -> None:
    good, bad = unguarded[1], unguarded[2]
    bound = (good["validation_kl"] + bad["validation_kl"]) / 2
    with pytest.raises(UserError) as caught:
        run_dpo(work=tmp_path / "work", max_kl=bound, **LONG)
    message = caught.value.message
    assert f"training was stopped: at step {bad['step']} the policy was {bad['validation_kl']:.2f}" in message
    assert f"the weights of step {good['step']}, which were within the bounds, are in" in message
    assert "set [dpo] learning_rate or epochs lower, beta higher, sft_term = 1 or more" in caught.value.hint
    assert CHECKPOINT.check(tmp_path / "work/last_good") == []
    with pytest.raises(UserError, match=f"at step {bad['step']} the policy"):  # again, from the checkpoint
        run_dpo(work=tmp_path / "work", max_kl=bound, **LONG)


def test_or_it_warns_and_takes_the_last_good_weights(
    unguarded: list[dict[str, float]], run_dpo: Callable[..., Any]
) -> None:
    good, bad = unguarded[1], unguarded[2]
    bound = (good["validation_kl"] + bad["validation_kl"]) / 2
    found = run_dpo(max_kl=bound, on_degradation="warn", **LONG)
    warned = [event["message"] for event in found.events if event.get("level") == "warning"]
    assert f"the weights of step {good['step']} are taken" in warned[0]
    assert found.metrics["validation_kl"] == good["validation_kl"]
    assert found.metrics["train_pairs"] == 8 * bad["step"]
    weights = file_sha256(found.outputs["model"] / "model.safetensors")
    assert weights == file_sha256(found.work / "last_good/model.safetensors")
    curves = {event["name"]: event["series"] for event in found.events if event["event"] == "chart"}
    steps = [point[0] for point in curves["dpo_kl"]["held out"]]
    assert steps == [0, *(point["step"] for point in unguarded[:3])]


def test_without_a_good_evaluation_the_model_stays_as_it_came(
    run_dpo: Callable[..., Any], base_model: Any
) -> None:
    harmful = {"learning_rate": 0.1, "epochs": 1.0, "max_kl": 0.5, "evaluations": 1}
    found = run_dpo(**harmful, on_degradation="warn")
    weights = file_sha256(found.outputs["model"] / "model.safetensors")
    assert weights == file_sha256(base_model.model / "model.safetensors")
    warned = [event["message"] for event in found.events if event.get("level") == "warning"]
    assert "the model stays as it came" in warned[0]
    assert found.metrics["validation_kl"] == 0.0
    assert found.metrics["bits_per_byte_increase"] == 0.0


@pytest.mark.parametrize(
    ("kl", "drop", "message"),
    [
        (
            0.1,
            0.6,
            "chosen answers had become 0.60 nats per token less likely than before (max_chosen_drop is 0.5)",
        ),
        (0.3, 0.1, "the policy was 0.30 nats per token from the reference"),
        (float("nan"), 0.1, "the policy was nan nats"),
        (float("inf"), float("nan"), "had become nan nats"),
    ],
)
def test_bounds(
    kl: float, drop: float, message: str, base_model: Any, open_session: Any, tmp_path: Path
) -> None:
    config = DpoConfig(max_kl=0.2, max_chosen_drop=0.5)
    inputs = {"tokenizer": base_model.tokenizer_folder, "model": base_model.model}
    session = open_session("dpo", tmp_path).session
    guard = Guard(config, load_model(base_model.model), inputs, [], session, chosen_before=-2.0)
    history = {"validation_kl": [[4, 0.2]], "validation_chosen_log_prob_per_token": [[4, -2.5]]}
    assert not guard.is_enough(TrainingSummary(steps=4, history=history))
    history["validation_kl"].append([7, kl])
    history["validation_chosen_log_prob_per_token"].append([7, -2.0 - drop])
    summary = TrainingSummary(steps=7, history=history)
    assert guard.is_enough(summary)
    assert message in guard.problem(summary)
    assert json.loads((guard.folder / "step.json").read_text()) == {"step": 4}


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_it_guards_the_other_methods_too(method: str, run_dpo: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="training was stopped"):
        run_dpo(method=method, learning_rate=0.1, epochs=2.0, max_kl=1e-6, evaluations=1)
