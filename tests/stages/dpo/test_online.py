"""Learning by reward on a model that has just learned to call the calculator: effect, resume, refusals."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import AGENT_SCENARIOS, CHECKPOINT
from data_contracts.tables import write_part
from stages.dpo.arithmetic_tasks import TrainingTasks, draw_task
from stages.dpo.experience import ExperienceBatches
from stages.dpo.policy_step import policy_loss
from stages.dpo.run import run
from stages.dpo.sampled_answers import Answerer
from stages.dpo.spec import DpoConfig
from stages.dpo.value_model import ValueModel
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.store import file_sha256
from stages.whitebox.chat_format import render
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.losses import IGNORED, cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.tool_results import calculate

PROGRAM = Path(__file__).with_name("online_program.py")
QUICK: dict[str, Any] = {
    "method": "grpo",
    "updates": 3,
    "prompts_per_step": 4,
    "group_size": 4,
    "micro_batch_pairs": 4,
    "max_answer_tokens": 40,
    "learning_rate": 2e-3,
    "max_bits_per_byte_increase": 9.0,
    "validation_tasks": 4,
    "validation_documents": 1,
    "multi_step_fraction": 0.0,
    "sample_prompts": ("The",),
    "chat_prompts": ("Hi",),
    "sample_tokens": 4,
    "evaluations": 1,
    "num_threads": 1,
}


@dataclass(frozen=True)
class Learned:
    """What a run left behind."""

    model: Path
    metrics: dict[str, float]
    events: list[dict[str, Any]]

    @property
    def weights(self) -> str:
        return file_sha256(self.model / "model.safetensors")


def lesson(tokenizer: Any, rng: random.Random) -> tuple[list[int], list[bool]]:
    """A conversation of the training corpus."""
    task = draw_task(rng, "seen", 0.0, frozenset())
    expression = task.expressions[0]
    call = {"name": "calculator", "arguments": {"expression": expression}}
    chat = render(
        [
            {"role": "user", "content": task.prompt},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": calculate(expression)},
            {"role": "assistant", "content": f"The answer is {task.answer}."},
        ],
        tokenizer,
    )
    return chat.ids, chat.is_target


def teach(model: CausalLM, tokenizer: Any, steps: int) -> None:
    """The form of a call, in two seconds; which expression belongs into it stays unclear."""
    rng, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        chats = [lesson(tokenizer, rng) for _ in range(8)]
        shape = (len(chats), max(len(ids) for ids, _ in chats))
        ids_BxT, targets_BxT = torch.full(shape, tokenizer.pad_id), torch.full(shape, IGNORED)
        for row, (ids, is_target) in enumerate(chats):
            ids_BxT[row, : len(ids)] = torch.tensor(ids)
            wanted = [token if own else IGNORED for token, own in zip(ids, is_target, strict=True)]
            targets_BxT[row, : len(ids) - 1] = torch.tensor(wanted[1:])
        total, count = cross_entropy_sum(model.hidden_states(ids_BxT), model.output_weight(), targets_BxT)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folders(
    base_model: Any, preferences_part: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The inputs of the stage; the model calls the calculator, mostly with a wrong expression."""
    root = tmp_path_factory.mktemp("online")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load_model(base_model.model)
    teach(model, base_model.tokenizer, steps=100)
    torch.set_num_threads(threads)
    save_model(model, root / "model")
    row = {
        "scenario_id": "1",
        "family": "calculator",
        "phrasing": "seen",
        "prompt": "What is 2+2?",
        "expected_calls": json.dumps([{"name": "calculator", "arguments": {"expression": "2+2"}}]),
        "expected_answer": "4",
    }
    write_part(root / "scenarios", AGENT_SCENARIOS, [row])
    return {
        "preferences": preferences_part,
        "scenarios": root / "scenarios",
        "tokenizer": base_model.tokenizer_folder,
        "tokens": base_model.tokens,
        "model": root / "model",
    }


@pytest.fixture(scope="module")
def learn(
    folders: dict[str, Path], open_session: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Learned]:
    """Call with config fields; `work` and `stop_after` (steps) try an interruption."""

    def go(work: Path | None = None, stop_after: int | None = None, **fields: Any) -> Learned:
        root = tmp_path_factory.mktemp("learned")
        (root / "model").mkdir()
        opened = open_session("dpo", work or root / "work")
        if stop_after is not None:
            polls = iter([False] * (stop_after - 1) + [True] * 999)
            opened.session.should_stop = lambda: next(polls)
        config = DpoConfig(**{**QUICK, **fields})
        metrics = run(config, folders, {"model": root / "model"}, opened.session)
        return Learned(root / "model", metrics, opened.events)

    return go


@pytest.fixture(scope="module")
def learned(learn: Callable[..., Learned]) -> Learned:
    """A run of grpo as long as it takes to see an effect."""
    return learn(updates=14, learning_rate=3e-3, max_answer_tokens=64, evaluations=2, validation_tasks=8)


def test_the_reward_rises_and_the_model_keeps_its_contract(learned: Learned) -> None:
    metrics = learned.metrics
    assert CHECKPOINT.check(learned.model) == []
    assert metrics["validation_reward"] > metrics["sft_validation_reward"]
    assert metrics["validation_kl"] > 0
    before = metrics["sft_validation_bits_per_byte"]
    assert metrics["bits_per_byte_increase"] == metrics["validation_bits_per_byte"] - before


def test_it_reports_rewards_samples_table_and_chart(learned: Learned) -> None:
    points = [event["values"] for event in learned.events if event["event"] == "metrics"]
    names = {name for values in points for name in values}
    assert {"reward", "entropy", "answer_tokens", "groups_without_signal", "validation_success"} <= names
    assert {"train_loss", "grad_norm", "validation_kl", "validation_bits_per_byte"} <= names
    assert all(0 <= values["groups_without_signal"] <= 1 for values in points)
    samples = [event for event in learned.events if event["event"] == "sample"]
    assert {event["kind"] for event in samples} == {"text", "chat", "rollout"}
    assert {event["step"] for event in samples if event["kind"] == "chat"} == {0, 7, 14}  # before and after
    assert all("\nreward " in event["text"] for event in samples if event["kind"] == "rollout")
    table = next(event for event in learned.events if event["event"] == "table")
    assert table["name"] == "grpo_before_after"
    assert table["rows"][0][0] == "tasks with the right answer" and "n = 8" in table["rows"][0][2]
    prompts = next(event for event in learned.events if event.get("name") == "grpo_prompts")
    texts = {event["step"]: event["text"] for event in samples if event["prompt"] == prompts["rows"][0][0]}
    assert prompts["rows"][0][1:] == [texts[0], texts[14]]
    chart = next(event for event in learned.events if event["event"] == "chart")
    assert len(chart["series"]["held-out tasks right"]) == 3


METHODS = [
    {"kl_coefficient": 0.05, "updates_per_rollout": 2},
    {"method": "ppo", "group_size": 2, "kl_coefficient": 0.05, "updates_per_rollout": 3},
    {"dynamic_sampling": True, "overlong_tokens": 32, "loss_mean": "constant", "divide_by_std": False},
]


@pytest.mark.parametrize("fields", METHODS)
def test_a_stopped_run_ends_with_the_same_bits(
    learn: Callable[..., Learned], tmp_path: Path, fields: dict[str, Any]
) -> None:
    whole = learn(**fields)
    with pytest.raises(StopRequested, match="stopped after step 1"):  # of two with the same answers
        learn(work=tmp_path / "work", stop_after=1, **fields)
    resumed = learn(work=tmp_path / "work", **fields)
    assert resumed.weights == whole.weights
    assert resumed.metrics["validation_reward"] == whole.metrics["validation_reward"]
    assert resumed.metrics["train_tokens"] == whole.metrics["train_tokens"]


def test_a_killed_run_ends_with_the_same_bits(
    learn: Callable[..., Learned], folders: dict[str, Path], tmp_path: Path
) -> None:
    fields = {"updates_per_rollout": 2, "checkpoint_every_seconds": 1e-6}
    whole = learn(**fields)
    arguments = json.dumps({**QUICK, **fields}), json.dumps({k: str(v) for k, v in folders.items()})
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(PROGRAM), *arguments, str(tmp_path / "work"), str(tmp_path / "out"), "2"]
    done = subprocess.run(command, env={"PYTHONPATH": str(Path.cwd())}, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert list((tmp_path / "work/checkpoints").glob("step-*"))
    resumed = learn(work=tmp_path / "work", **fields)
    assert any("going on after step" in event.get("message", "") for event in resumed.events)
    assert resumed.weights == whole.weights


def batches_of(folders: dict[str, Path], base_model: Any, **fields: Any) -> tuple[Any, ExperienceBatches]:
    config = DpoConfig(**{**QUICK, **fields})
    model = load_model(folders["model"])
    answerer = Answerer(config, model, base_model.tokenizer, torch.float32)
    critic = ValueModel(model) if config.method == "ppo" else None
    reference = load_model(folders["model"]) if config.kl_coefficient else None
    tasks = TrainingTasks(config.seed, 0.0, 0.5, frozenset())
    return critic or model, ExperienceBatches(config, answerer, tasks, critic, reference)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_only_what_the_model_wrote_has_a_gradient(
    folders: dict[str, Path], base_model: Any, method: str
) -> None:
    """Targets stand where tokens were sampled: never on the prompt, nor on what the calculator put in."""
    fields = {"method": method, "kl_coefficient": 0.1, "updates_per_rollout": 2}
    trained, batches = batches_of(folders, base_model, **fields)
    batch = batches.next_batch()
    tokenizer = base_model.tokenizer
    opening, closing = (tokenizer.special_id(f"<{slash}tool_response>") for slash in ("", "/"))
    num_results = 0
    for row in range(len(batch["ids"])):
        ids, targets = batch["ids"][row].tolist(), batch["targets"][row].tolist()
        for place, (token, target) in enumerate(zip(ids[1:], targets, strict=False)):
            assert target in (IGNORED, token), place
        results = [
            place for place, token in enumerate(ids) if token == opening and targets[place - 1] == IGNORED
        ]
        num_results += len(results)
        for start in results:
            end = ids.index(closing, start) if closing in ids[start:] else len(ids) - 1  # cut off
            assert targets[start - 1 : end] == [IGNORED] * (end - start + 1)
    assert num_results > 0
    is_free = batch["targets"] == IGNORED
    assert not batch["old"][is_free].any() and not batch["reference"][is_free].any()
    # The first loss is on answers of this very policy: the ratio is 1 and nothing is clipped.
    found = policy_loss(batches.config, batches)(trained, batch)
    assert found.metrics["clipped_share"] == 0.0
    assert found.metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    found.loss_sum.backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_dynamic_sampling_keeps_groups_that_differ(folders: dict[str, Path], base_model: Any) -> None:
    _, batches = batches_of(folders, base_model, dynamic_sampling=True, micro_batch_pairs=64)
    batch = batches.next_batch()
    assert batches.describe({"drawn": 0}, batches.state_dict()) == "answers of draw 0"
    kept = batch["advantages"].abs().amax(dim=1)
    assert 0 < len(batch["ids"]) <= 16 and len(batch["ids"]) % 4 == 0
    assert len(batches.latest) >= 16
    assert int((kept > 0).sum()) >= len(kept) / 2  # a zero may be in a group, but no group is all zeros


def test_groups_of_one_reward_change_nothing(learn: Callable[..., Learned], folders: dict[str, Path]) -> None:
    nothing = {"answer_reward": 0.0, "tool_reward": 0.0, "format_reward": 0.0}
    idle = learn(**nothing, dynamic_sampling=True, updates=2, evaluations=1)
    messages = [event.get("message", "") for event in idle.events]
    assert any("step 1 has no targets, so it changes nothing" in message for message in messages)
    assert idle.weights == file_sha256(folders["model"] / "model.safetensors")


HARMFUL: dict[str, Any] = {"learning_rate": 0.1, "updates": 2}


def test_harm_fails_the_stage(learn: Callable[..., Learned]) -> None:
    with pytest.raises(UserError, match="GRPO damaged the model: held-out bits per byte rose by") as caught:
        learn(**HARMFUL, max_bits_per_byte_increase=0.01, max_kl=99.0)
    assert "set [dpo] learning_rate or updates lower, kl_coefficient higher" in caught.value.hint


def test_a_policy_that_goes_too_far_is_stopped(
    learn: Callable[..., Learned], folders: dict[str, Path]
) -> None:
    with pytest.raises(
        UserError, match=r"at step 2 the policy was .* from the SFT model on answers of its own"
    ):
        learn(**HARMFUL, max_kl=0.01)
    kept = learn(**HARMFUL, max_kl=0.01, on_degradation="warn")
    assert kept.weights == file_sha256(folders["model"] / "model.safetensors")
    assert kept.metrics["validation_kl"] == pytest.approx(0.0, abs=1e-6)
    assert kept.metrics["train_tokens"] > 0  # what was trained on was spent, if in vain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 1}, "group_size is 1, but grpo compares the answers"),
    ],
)
def test_settings_that_cannot_be(learn: Callable[..., Learned], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn(**fields)
